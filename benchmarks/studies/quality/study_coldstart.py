"""`recsys study coldstart`: quality for new users and new items in the simulated world
(docs/explanation/coldstart.md).

New users. Some people stay away while the system learns from the others. Then each of them comes: the study
measures the hit rate of their list after 0, 1, 5 and 20 swipes, for the whole system, for the same system
without their session and without exploration (greedy), for the ceiling (``coldstart_ceiling``), and for the
most popular items.

New items. The **regret** of a policy is its loss on good new items because it didn't know them:

    Σ over new items in the better half by true appeal of  max(0, worth(oracle) - worth(policy))

where true appeal is the mean P(long view) over all people when the item is published, and worth is the sum of
P(long view) over the slots that the item had in its first hour. The oracle is the same system without
exploration, with a panel of people who try each new item when it is published. Too much exposure of one item
doesn't compensate too little of another: hence the 0. All policies meet the same people at the same times.
The first catalogue is well known: each of its items was shown often enough before not to be on trial, so
that the quota goes to new items, as in a feed that has run for long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.quality.coldstart_world import (
    ARMS,
    Feed,
    newcomers,
    past_of,
    small,
    without,
)
from benchmarks.studies.quality.ratio_interval import RatioInterval, paired_ratio_interval
from examples.short_video.world import World
from recsys.config.policy_config import PolicyConfig
from recsys.events.hashing import Id

SWIPES: Final = (0, 1, 5, 20)
_HOUR_MS: Final = 3_600_000
_AWAY: Final = 4  # one in this many people stays away at first
_COMPARED: Final = ("whole", "greedy", "ceiling")  # with popularity
_PANEL: Final = 60  # people who try an item for the oracle
_BEFORE: Final = PolicyConfig().trust_after + 2  # 2: counters decay during the study


@dataclass(frozen=True)
class PolicyResults:
    """Results of the policies in one world; ``regrets`` of each good new item, by policy."""

    regrets: dict[str, list[float]]
    hit_rate: dict[str, float]
    ranks: int  # of the default policy: all, ...
    offered: int  # ... where the quota could be given, ...
    given: int  # ... and was


@study_command
def coldstart(
    seeds: Annotated[int, typer.Option(help="Simulated worlds.")] = 5,
    users: Annotated[int, typer.Option(help="People in each.")] = 800,
    items: Annotated[int, typer.Option(help="Initial items.")] = 800,
    hours: Annotated[float, typer.Option(help="Hours of learning in the world.")] = 4.0,
    requests_per_s: Annotated[float, typer.Option(help="Lists a second.")] = 0.3,
    publish_every_s: Annotated[float, typer.Option(help="Seconds between new items.")] = 300.0,
    only: Annotated[str, typer.Option(help="users or items; empty: both.")] = "",
) -> dict[str, Any]:
    """Quality for new users and new items, and the quota that was given."""
    check_at_least(1, seeds=seeds)
    if only not in ("", "users", "items"):
        raise ValueError(f"--only is {only!r}, expected users or items")
    if hours < 2:
        raise ValueError(f"--hours is {hours}, expected 2 or more: new items need an hour")
    figures = measure(range(seeds), users, items, hours, requests_per_s, publish_every_s, only)
    _print(figures)
    return figures


def measure(
    seeds: Sequence[int],
    users: int,
    items: int,
    hours: float,
    requests_per_s: float,
    publish_every_s: float = 300.0,
    only: str = "",
) -> dict[str, Any]:
    """All figures, over worlds of these seeds."""
    worlds = [
        World(seed, users, items, publish_every_s=publish_every_s, requests_per_s=requests_per_s)
        for seed in seeds
    ]
    figures: dict[str, Any] = {
        "options": {"users": users, "items": items, "hours": hours,
                    "requests_per_s": requests_per_s, "publish_every_s": publish_every_s},
        "seeds": list(seeds),
    }  # fmt: skip
    if only != "items":
        figures["new_users"] = new_users([_newcomers(world, hours) for world in worlds])
    if only != "users":
        figures |= new_items([_policies(world, hours) for world in worlds])
    return figures


def _newcomers(world: World, hours: float) -> NDArray[np.float64]:
    away = [f"u{n}" for n in range(0, world.num_users, _AWAY)]
    feed = Feed(world, small(PolicyConfig()), frozenset(away))
    feed.run(world.start_ms + round(hours * _HOUR_MS))
    return newcomers(feed, away, SWIPES)


def _policies(world: World, hours: float) -> PolicyResults:
    """Serves the same people by each policy. The first quarter of the time isn't measured."""
    usual, past = PolicyConfig(), past_of(world, _BEFORE)
    feeds = {}
    for name, policy in (
        ("oracle", without(usual)),
        ("none", without(usual)),
        ("quota 0", replace(usual, quota=0.0)),
        ("default", usual),
    ):
        feed = Feed(
            world,
            small(policy),
            panel=_PANEL if name == "oracle" else 0,
            measured_ms=world.start_ms + round(hours * _HOUR_MS / 4),
            past=past,
        )
        feed.run(world.start_ms + round(hours * _HOUR_MS))
        feeds[name] = feed
    return PolicyResults(
        _regrets(feeds),
        {name: float(np.mean([slot.worth for slot in f.slots])) for name, f in feeds.items()},
        feeds["default"].ranks,
        feeds["default"].offered,
        feeds["default"].given,
    )


def new_users(rates: Sequence[NDArray[np.float64]]) -> list[dict[str, Any]]:
    """A row for each number of swipes: hit rate of each arm, and the ratio of some to popularity.

    ``rates``: the hit rates (users, swipes, arms) of each world.
    """
    rates_UKA = np.concatenate(rates)
    rows = []
    for k, swipes in enumerate(SWIPES):
        popular_U = rates_UKA[:, k, ARMS.index("popularity")]
        rows.append(
            {
                "swipes": swipes,
                "hit_rate": {
                    arm: round(float(rates_UKA[:, k, a].mean()), 4) for a, arm in enumerate(ARMS)
                },
                "to_popularity": {
                    arm: _rounded(
                        paired_ratio_interval(rates_UKA[:, k, ARMS.index(arm)], popular_U)
                    )
                    for arm in _COMPARED
                },
                "by_seed": {
                    arm: [
                        round(float(r[:, k, ARMS.index(arm)].mean() / r[:, k, -1].mean()), 4)
                        for r in rates
                    ]
                    for arm in _COMPARED
                },
            }
        )
    return rows


def new_items(worlds: Sequence[PolicyResults]) -> dict[str, Any]:
    """Regret of each policy over all worlds, and the quota that was given."""
    regrets = {
        name: [lost for world in worlds for lost in world.regrets[name]]
        for name in worlds[0].regrets
    }
    offered, given = (sum(getattr(w, name) for w in worlds) for name in ("offered", "given"))
    return {
        "new_items": {
            "items": len(regrets["default"]),
            "regret": {name: round(float(np.mean(lost)), 3) for name, lost in regrets.items()},
            **{
                f"{policy}_to_{baseline}".replace(" ", "_"): _rounded(
                    paired_ratio_interval(regrets[policy], regrets[baseline])
                )
                for policy, baseline in (
                    ("default", "none"), ("quota 0", "none"), ("default", "quota 0"),
                )
            },
            "by_seed": [
                {name: round(float(np.mean(lost)), 3) for name, lost in world.regrets.items()}
                for world in worlds
            ],
            "hit_rate": {
                name: round(float(np.mean([world.hit_rate[name] for world in worlds])), 4)
                for name in worlds[0].hit_rate
            },
        },
        "quota": {
            "asked": PolicyConfig().quota,
            "ranks": sum(world.ranks for world in worlds),
            "offered": offered,
            "given": given,
            "share_of_offered": round(given / max(1, offered), 5),
        },
    }  # fmt: skip


def _regrets(feeds: dict[str, Feed]) -> dict[str, list[float]]:
    """Loss of each policy on each good new item that had its first hour."""
    world, measured_ms = feeds["oracle"].world, feeds["oracle"].measured_ms
    new = world.new_items(measured_ms, feeds["oracle"].now_ms - _HOUR_MS)
    people = [f"u{n}" for n in range(0, world.num_users, max(1, world.num_users // 200))]
    appeal: dict[Id, float] = {
        item.item_id: float(
            np.mean([world.true_long_view(u, item.item_id, item.time_ms) for u in people])
        )
        for item in new
    }
    good = sorted(appeal, key=lambda item_id: -appeal[item_id])[: -(-len(appeal) // 2)]
    since = {item.item_id: item.time_ms for item in new if item.item_id in good}
    most = feeds["oracle"].earned(since, _HOUR_MS)
    regrets = {}
    for name, feed in feeds.items():
        if name != "oracle":
            earned = feed.earned(since, _HOUR_MS)
            regrets[name] = [max(0.0, most[item_id] - earned[item_id]) for item_id in since]
    return regrets


def _rounded(interval: RatioInterval) -> dict[str, float]:
    return {
        "ratio": round(interval.ratio, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
    }


def _print(figures: dict[str, Any]) -> None:
    for row in figures.get("new_users", ()):
        rates = ", ".join(f"{arm} {rate:.3f}" for arm, rate in row["hit_rate"].items())
        typer.echo(f"after {row['swipes']:>2} swipes: {rates}")
        for arm, ratio in row["to_popularity"].items():
            typer.echo(f"{'':>16} {arm} to popularity: {_ratio_text(ratio)}")
    if "new_items" in figures:
        new, quota = figures["new_items"], figures["quota"]
        rates = ", ".join(f"{name} {lost:.2f}" for name, lost in new["regret"].items())
        typer.echo(f"regret of each of {new['items']} good new items: {rates}")
        typer.echo(f"default to no exploration: {_ratio_text(new['default_to_none'])}")
        typer.echo(f"quota 0 to no exploration: {_ratio_text(new['quota_0_to_none'])}")
        typer.echo(f"default to quota 0: {_ratio_text(new['default_to_quota_0'])}")
        rates = ", ".join(f"{name} {rate:.4f}" for name, rate in new["hit_rate"].items())
        typer.echo(f"hit rate of all slots: {rates}")
        typer.echo(
            f"quota {quota['asked']}: {quota['given']} of {quota['offered']} ranks at which it could be "
            f"given ({quota['share_of_offered']:.4f}), of {quota['ranks']} in all"
        )


def _ratio_text(ratio: dict[str, float]) -> str:
    return f"{ratio['ratio']:.3f} times ({ratio['low']:.3f} to {ratio['high']:.3f})"
