"""The report of an interleaving: which ranker earned more in the lists that both drew, and how surely."""

from dataclasses import asdict
from typing import Any

from experiments.assignment.definition import Experiment
from experiments.statistics.interleaving import Preference
from recsys.config.system_config import Config
from recsys.log.protocol import Log
from runtime.reports.experiment_table import number_table
from training.outcomes.credit_fold import interleaving_readout, read_credits


def read_interleaving(
    log: Log, config: Config, labels: tuple[str, ...], its: Experiment, started_ms: int
) -> tuple[dict[str, Any], list[Any]]:
    """As plain values, and as what a terminal shows."""
    read = read_credits(log, config, labels, its, started_ms)
    seen, notes = interleaving_readout(its, read), list[str]()
    if not read.complete:
        notes.append("the log begins after the experiment did: what retention dropped is missing")
    if read.waiting:
        notes.append(f"{read.waiting:,} lists are still in their window, and not counted yet")
    if read.repeats:
        notes.append(f"{read.repeats:,} lists stand on the log a second time, and count once")
    if read.uncredited:
        notes.append(f"{read.uncredited:,} items that earned something were nobody's pick")
    control, treatment = (arm.name for arm in its.arms)
    values = {
        "experiment": its.name,
        "kind": its.kind,
        "hypothesis": its.hypothesis or its.about,
        "credit": its.credited,
        "alpha": its.metrics.alpha,
        "control": control,
        "treatment": treatment,
        **asdict(seen),
        "notes": notes,
    }
    return values, [*_head(its, seen), _table(seen, control, treatment), *notes]


def _head(its: Experiment, seen: Preference) -> list[str]:
    credit = " + ".join(f"{weight:g} {label}" for label, weight in its.credited.items())
    return [f"{its.name}: {seen.verdict}  {its.hypothesis or its.about}", f"  {seen.why}",
            f"  {seen.lists:,} interleaved lists of {seen.users:,} users; credit: {credit}"]  # fmt: skip


def _table(seen: Preference, control: str, treatment: str) -> Any:
    earned_by, earned = seen.earned
    won, lost, even = seen.wins
    rows = [
        ("earned, shared", f"{earned_by:,.1f} by {treatment}", f"{earned:,.1f} by {control}"),
        (
            "users who gave more to its picks",
            f"{won:,} to {treatment}",
            f"{lost:,} to {control}, {even:,} neither",
        ),
        ("p", f"{seen.p:.3g} at any look", f"{seen.sign_p:.3g} sign test, for one look"),
        (
            "first picks",
            f"{seen.coins.counts[1]:,} {treatment}",
            f"{seen.coins.counts[0]:,} {control}",
        ),
    ]
    return number_table("in the same lists", rows)
