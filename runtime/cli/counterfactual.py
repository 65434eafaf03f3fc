"""``recsys counterfactual POLICY.yaml``: what another policy would have earned, from what the log has.

It reads what stands in the state folder, of a running or a stopped system, and changes nothing.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from experiments.assignment.target_policy import TargetPolicy, read_target
from experiments.statistics.off_policy import WeightedLists, by_rank, estimates, support
from recsys.config.yaml_with_lines import YamlWithLines

REFUSED = 1


def counterfactual(
    file: Annotated[
        Path, typer.Argument(metavar="POLICY.yaml", help="The policy: overrides, reward.")
    ],
    state: Annotated[
        Path | None, typer.Option(help="The state folder; else the file's, else state.")
    ] = None,
    lists: Annotated[int, typer.Option(help="At most so many lists, of a share of users.")] = 5_000,
    alpha: Annotated[float, typer.Option(help="Intervals hold with probability 1 - α.")] = 0.05,
    json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Estimates what another policy would have earned. Exit status 0: it is told; 1: the log can't answer,
    and why; 2: something is wrong with what was asked."""
    from recsys.log.protocol import LogLost, LogUnavailable

    try:
        if lists < 1:
            raise ValueError(f"--lists is {lists}, expected 1 or more")
        if not 0 < alpha < 0.5:
            raise ValueError(f"--alpha is {alpha}, expected a probability between 0 and 0.5")
        found = measured(file, state, lists, alpha)
    except (OSError, ValueError, LogLost, LogUnavailable) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
    else:
        for line in told(found):
            typer.echo(line)
    raise typer.Exit(REFUSED if found["refused"] else 0)


def measured(file: Path, state: Path | None, most: int, alpha: float) -> dict[str, Any]:
    """What is found, as plain values. Raises ValueError, naming the file's line."""
    import torch

    from recsys.features.feature_set_file import feature_set
    from recsys.process.open_log import open_log
    from replay.logged_lists import read_lists
    from runtime.supervision import launch_plan as plans

    text = file.read_text("utf-8")
    folder = state or Path(str(_state_in(text, file) or "state"))
    config, _ = plans.read(folder)
    config = replace(config, state=str(folder.resolve()))  # the folder may have been moved
    features = feature_set(config)
    target = read_target(text, file, config.policy, features.schema.labels)
    torch.set_num_threads(1)  # as a replica has it: sums must not depend on the number of cores
    log = open_log(config)
    try:
        read = read_lists(log, config, features, target, most)
    finally:
        log.close()
    refused = _gone(read.gone, read.why_gone)
    return _values(target, read.lists, alpha, refused) | {"left_out": dict(read.left_out)}


def _state_in(text: str, file: Path) -> object:
    value = YamlWithLines(text, file).value
    return value.get("state") if isinstance(value, dict) else None


def _gone(share: float, why: str) -> list[str]:
    from replay.logged_lists import MAX_GONE_SHARE

    if share <= MAX_GONE_SHARE:
        return []
    return [
        f"{share:.0%} of the lists can't be made again, expected {MAX_GONE_SHARE:.0%} at most, as those that are "
        f"left may not stand for all: take a time range that log and snapshots still cover ({why})"
    ]


def _values(
    target: TargetPolicy, lists: WeightedLists, alpha: float, refused: list[str]
) -> dict[str, Any]:
    its = support(lists)
    refused = [*refused, *its.problems()]
    found: dict[str, Any] = {
        "policy": target.name,
        "overrides": target.overrides,
        "reward": target.reward,
        "from_ms": target.from_ms,
        "until_ms": target.until_ms,
        "lists": its.lists,
        "users": its.users,
        "ranks": lists.ratios_LR.shape[1],
        "logged": float(lists.rewards_LR.sum(1).mean()) if its.lists else None,
        "ess": its.ess_R.tolist(),
        "mean_weight": its.mean_weight_R.tolist(),
        "unsupported": its.unsupported,
        "refused": refused,
        "alpha": alpha,
    }
    if not refused:
        found["estimates"] = [asdict(one) for one in estimates(lists, alpha)]
        found["by_rank"] = by_rank(lists).tolist()
    return found


def told(found: dict[str, Any]) -> list[str]:
    """For people."""
    reward = " + ".join(f"{weight:g} {label}" for label, weight in found["reward"].items())
    lines = [
        f"{found['policy']}: {found['overrides']}",
        f"{found['lists']:,} lists of {found['users']:,} users, {found['ranks']} ranks; reward of a list: "
        f"{reward}",
    ]
    lines += [f"  left out: {count:,} {why}" for why, count in sorted(found["left_out"].items())]
    if found["lists"]:
        least = min(found["ess"], default=0.0)
        lines.append(
            f"effective sample size {least:,.0f} lists or more at every rank; {found['unsupported']:.2%} of "
            "what it would show had no chance on the log"
        )
        lines.append(f"  {'as logged':<10} {found['logged']:.4f}")
    for one in found.get("estimates", []):
        lines.append(
            f"  {one['name']:<10} {one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f}), over what was "
            f"logged {one['lift']:+.4f} ({one['lift_low']:+.4f} to {one['lift_high']:+.4f}), worth "
            f"{one['worth_lists']:,.0f} lists of its own"
        )
    return lines + [f"refused: {why}" for why in found["refused"]]
