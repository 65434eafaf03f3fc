"""``recsys counterfactual``: the plug-in command."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer import Argument, Option

from plugins.off_policy.estimates import WeightedLists, by_rank, diagnose_support, estimates
from plugins.off_policy.logged_lists import MAX_GONE_SHARE, OTHER_CANDIDATES, read_lists
from plugins.off_policy.target_policy import TargetPolicy, read_target
from recsys.config.yaml_with_lines import YamlWithLines
from recsys.features.feature_set_file import feature_set
from runtime.cli.common import JsonOption, exit_on, show
from runtime.supervision.launch_plan import open_system


def estimate_policy(file: Path, state: Path | None, max_lists: int, alpha: float) -> dict[str, Any]:
    """Estimates the policy in a file. Raises ValueError, with the file's line, for an invalid file."""
    text = file.read_text("utf-8")
    torch.set_num_threads(1)  # as in a replica: sums must not depend on the number of cores
    with open_system(state or Path(str(_state_in(text, file) or "state"))) as (config, log):
        features = feature_set(config)
        target = read_target(text, file, config.policy, features.schema.labels)
        read = read_lists(log, config, features, target, max_lists)
    refused = []
    if read.gone > MAX_GONE_SHARE:
        refused.append(
            f"{read.gone:.0%} of the lists can't be recomputed, expected {MAX_GONE_SHARE:.0%} at most, since "
            "the others may not be representative: choose a time range that log and snapshots still cover "
            f"({read.why_gone})"
        )
    if read.left_out[OTHER_CANDIDATES] and not len(read.lists):
        refused.append(f"all lists have {OTHER_CANDIDATES}: give the policy an arm of an experiment")
    return _values(target, read.lists, alpha, refused) | {"left_out": dict(read.left_out)}


def _state_in(text: str, file: Path) -> object:
    value = YamlWithLines(text, file).value
    return value.get("state") if isinstance(value, dict) else None


def _values(target: TargetPolicy, lists: WeightedLists, alpha: float, refused: list[str]) -> dict[str, Any]:
    evidence = diagnose_support(lists)
    refused = [*refused, *evidence.problems()]
    values: dict[str, Any] = {
        "policy": target.name,
        "overrides": target.overrides,
        "reward": target.reward,
        "from_ms": target.from_ms,
        "until_ms": target.until_ms,
        "lists": evidence.lists,
        "users": evidence.users,
        "ranks": lists.ratios_LR.shape[1],
        "logged": float(lists.rewards_LR.sum(1).mean()) if evidence.lists else None,
        "ess": evidence.ess_R.tolist(),
        "mean_weight": evidence.mean_weight_R.tolist(),
        "unsupported": evidence.unsupported,
        "refused": refused,
        "alpha": alpha,
    }
    if not refused:
        values["estimates"] = [asdict(estimate) for estimate in estimates(lists, alpha)]
        values["by_rank"] = by_rank(lists).tolist()
    return values


def estimate_lines(values: dict[str, Any]) -> list[str]:
    """Formats the values as lines of text."""
    reward = " + ".join(f"{weight:g} {label}" for label, weight in values["reward"].items())
    lines = [
        f"{values['policy']}: {values['overrides']}",
        f"{values['lists']:,} lists of {values['users']:,} users, {values['ranks']} ranks; reward of a list: "
        f"{reward}",
    ]
    lines += [f"  left out: {count:,} {why}" for why, count in sorted(values["left_out"].items())]
    if values["lists"]:
        ess = min(values["ess"], default=0.0)
        lines.append(
            f"effective sample size {ess:,.0f} lists or more at every rank; {values['unsupported']:.2%} of "
            "the policy's items had no chance on the log"
        )
        lines.append(f"  {'as logged':<10} {values['logged']:.4f}")
    for item in values.get("estimates", []):
        lines.append(
            f"  {item['name']:<10} {item['value']:.4f} ({item['low']:.4f} to {item['high']:.4f}), lift over "
            f"the log {item['lift']:+.4f} ({item['lift_low']:+.4f} to {item['lift_high']:+.4f}), worth "
            f"{item['worth_lists']:,.0f} lists of its own"
        )
    return lines + [f"refused: {why}" for why in values["refused"]]


def counterfactual(
    file: Annotated[Path, Argument(metavar="POLICY.yaml", help="The policy: overrides, reward.")],
    state: Annotated[Path | None, Option(help="State folder; default: the file's.")] = None,
    lists: Annotated[int, Option(help="Maximum number of lists, hashed by user.")] = 5_000,
    alpha: Annotated[float, Option(help="Confidence level of intervals is 1 - α.")] = 0.05,
    json: JsonOption = None,
) -> None:
    """Estimates what another policy would have earned.

    Exit status 0: estimated; 1: the log can't answer, and why; 2: invalid input.
    """
    with exit_on():
        if lists < 1:
            raise ValueError(f"--lists is {lists}, expected 1 or more")
        if not 0 < alpha < 0.5:
            raise ValueError(f"--alpha is {alpha}, expected a probability between 0 and 0.5")
        values = estimate_policy(file, state, lists, alpha)
    show(values, json, estimate_lines)
    raise typer.Exit(1 if values["refused"] else 0)
