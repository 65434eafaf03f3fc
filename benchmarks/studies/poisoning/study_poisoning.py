"""`recsys study poisoning`: what an attack gains and costs, with and without defences, and who is named."""

# U people

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import numpy as np
import typer

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.poisoning.attacked_loop import HOUR_MS, AttackedLoop, Probe
from benchmarks.studies.poisoning.attackers import DISLIKES, STYLES, Attack, AttackedWorld

CLEAN, OPEN, BOUNDED, HELD, UNLEARNED = "clean", "open", "bounded", "held", "unlearned"
# Quantiles of a pushed and of a sunk target among items, by true appeal.
_POOR: Final = 0.3
_GOOD: Final = 0.9
_PEOPLE_A_SECOND: Final = 6_000  # people who make one request a second: 14 lists of each a day


@dataclass(frozen=True)
class Setting:
    """Size of a world and of its attack, which begins after a third of the hours."""

    style: str
    share: float = 0.01
    users: int = 200
    items: int = 200
    hours: float = 12.0
    hold_nats: float = 20.0
    repeats: int = 10


@dataclass
class Run:
    """One run: probes from the attack's beginning on, the newest last."""

    probes: list[Probe]
    loop: AttackedLoop


def world_of(seed: int, setting: Setting) -> AttackedWorld:
    """The world without the attack."""
    return AttackedWorld(
        seed, setting.users, setting.items, publish_every_s=1e6,
        requests_per_s=setting.users / _PEOPLE_A_SECOND,
    )  # fmt: skip


def target_of(world: AttackedWorld, style: str) -> str:
    """An item of little appeal, or for dislikes one of much."""
    people = [f"u{index}" for index in range(0, world.num_users, 3)]

    def appeal(item: str) -> float:
        return sum(world.true_long_view(user, item, world.start_ms) for user in people)

    items = sorted((f"w{index}" for index in range(world.num_items)), key=appeal)
    return items[int((_GOOD if style == DISLIKES else _POOR) * len(items))]


def measure(seed: int, setting: Setting) -> dict[str, Any]:
    """Figures of one seed, against the run without an attack. People are shown the lists of that run, so the
    difference is the attack's direct effect."""
    clean_world = world_of(seed, setting)
    target = target_of(clean_world, setting.style)
    start_ms = clean_world.start_ms + round(setting.hours / 3 * HOUR_MS)
    attack = Attack(setting.style, (target,), setting.share, start_ms, repeats=setting.repeats)
    play = partial(_play, seed, setting, target=target, start_ms=start_ms)
    clean, open_clean = play(None, True), play(None, False)
    figures: dict[str, Any] = {
        "seed": seed, "target": target, "rank": float(np.median(clean.probes[-1].rank_U)),
        "auc": _auc(clean), "held_when_clean": len(clean.loop.held),
        "bounds_cost_auc": _auc(open_clean) - _auc(clean),
    }  # fmt: skip
    runs = {
        OPEN: play(attack, False, fixed=open_clean.loop.lists),
        BOUNDED: play(attack, True, fixed=clean.loop.lists),
        HELD: play(attack, True, setting.hold_nats, clean.loop.lists),
        UNLEARNED: play(attack, True, setting.hold_nats, clean.loop.lists, unlearned=True),
    }
    for name, run in runs.items():
        figures[name] = _compared(run, open_clean if name == OPEN else clean)
    held, accounts = set(runs[HELD].loop.held), set(runs[HELD].loop.world.accounts)
    figures["named"], figures["right"] = len(held), len(held & accounts)
    figures["accounts"] = len(accounts)
    if held:
        last_ms = max(runs[HELD].loop.held.values())
        figures["hours_until_held"] = (last_ms - start_ms) / HOUR_MS
    return figures


def _play(
    seed: int, setting: Setting, attack: Attack | None, bounds: bool, hold_nats: float | None = None,
    fixed: Any = None, *, target: str, start_ms: int, unlearned: bool = False,
) -> Run:  # fmt: skip
    world = world_of(seed, setting)
    if attack is not None:
        world.attacked(attack)
    elif bounds:
        hold_nats = setting.hold_nats  # whom the rule holds though nobody attacks
    loop = AttackedLoop(world, bounds, fixed, hold_nats or 0.0, unlearned)
    stop_ms = world.start_ms + round(setting.hours * HOUR_MS)
    loop.run(world.start_ms, start_ms, target)
    probes, quarter_ms = [], (stop_ms - start_ms) // 4
    for number in range(4):
        from_ms = start_ms + number * quarter_ms
        loop.run(from_ms, from_ms + quarter_ms, target)
        probes.append(loop.probe(target, from_ms + quarter_ms))
    return Run(probes, loop)


def _auc(run: Run) -> float:
    """Mean over the probes: a model of one moment is noisy."""
    return float(np.mean([probe.auc for probe in run.probes]))


def _compared(run: Run, clean: Run) -> dict[str, float]:
    """Movement of the target, up is positive: at the end, and where it was largest; and the change of AUC."""
    moved = [
        float(np.median(before.rank_U - after.rank_U))
        for before, after in zip(clean.probes, run.probes, strict=True)
    ]
    return {
        "moved": moved[-1],
        "moved_most": max(moved, key=abs),
        "rank": float(np.median(run.probes[-1].rank_U)),
        "auc": _auc(run) - _auc(clean),
        "shown": run.loop.shown / max(1, clean.loop.shown),
    }


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of movements and means with standard errors over seeds, and precision and recall of names."""
    out: dict[str, Any] = {}
    for name in (OPEN, BOUNDED, HELD, UNLEARNED):
        rows = [result[name] for result in results]
        aucs = [row["auc"] for row in rows]
        error = float(np.std(aucs, ddof=1) / len(aucs) ** 0.5) if len(aucs) > 1 else None
        out[name] = {
            "moved": float(np.median([row["moved"] for row in rows])),
            "moved_most": max((row["moved_most"] for row in rows), key=abs),
            "auc": float(np.mean(aucs)),
            "auc_error": error,
        }
    named, right = sum(r["named"] for r in results), sum(r["right"] for r in results)
    out["precision"] = right / named if named else None
    out["recall"] = right / sum(r["accounts"] for r in results)
    out["held_when_clean"] = sum(r["held_when_clean"] for r in results)
    out["bounds_cost_auc"] = float(np.mean([r["bounds_cost_auc"] for r in results]))
    return out


@study_command
def poisoning(
    attack: Annotated[str, typer.Option(help="farm, drip, dislikes, hijack, or all.")] = "farm",
    share: Annotated[float, typer.Option(help="Share of the users who attack.")] = 0.01,
    seeds: Annotated[int, typer.Option(help="Worlds.")] = 5,
    users: Annotated[int, typer.Option(help="People of each world.")] = 200,
    items: Annotated[int, typer.Option(help="Items of each world.")] = 200,
    hours: Annotated[float, typer.Option(help="Event hours; the last two thirds with attack.")] = 12.0,
    repeats: Annotated[int, typer.Option(help="Times that a farm sends each engagement.")] = 10,
    nats: Annotated[float, typer.Option(help="Evidence with which the rule holds users.")] = 20.0,
    processes: Annotated[int, typer.Option(help="Worlds at the same time.")] = 2,
) -> Iterator[dict[str, Any]]:
    """Movement of an attacked item, AUC of honest people, and precision of the users named."""
    check_at_least(1, seeds=seeds, users=users, items=items, processes=processes)
    styles = STYLES if attack == "all" else (attack,)
    figures: dict[str, Any] = {"seeds": seeds, "attacks": {}}
    for style in styles:
        setting = Setting(style, share, users, items, hours, nats, repeats)
        Attack(style, ())  # checks the name before the work
        results = []
        with ProcessPoolExecutor(processes) as pool:
            for result in pool.map(partial(measure, setting=setting), range(seeds)):
                results.append(result)
                typer.echo(f"{style}, world {result['seed']}: {json.dumps(result)}")
                figures["attacks"][style] = {**summary(results), "worlds": results}
                yield figures
        typer.echo(f"\n{style:<16}{'moved':>8}{'most':>8}{'AUC':>10}")
        for name, row in summary(results).items():
            if isinstance(row, dict):
                typer.echo(f"{name:<16}{row['moved']:>8.1f}{row['moved_most']:>8.1f}{row['auc']:>10.4f}")
        typer.echo(json.dumps({k: v for k, v in summary(results).items() if not isinstance(v, dict)}))
