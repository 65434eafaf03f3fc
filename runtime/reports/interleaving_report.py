"""Report of an interleaving experiment: which ranker's items earned more in the shared lists."""

from dataclasses import asdict
from typing import Any

from experiments.assignment.definition import Experiment
from experiments.statistics.interleaving import Preference
from recsys.config.system_config import Config
from recsys.log.protocol import Log
from runtime.reports.tables import plain_table
from training.outcomes.credit_fold import interleaving_readout, read_credits


def read_interleaving(
    log: Log, config: Config, labels: tuple[str, ...], experiment: Experiment, started_ms: int
) -> tuple[dict[str, Any], list[Any]]:
    """Reads the result as plain values, and as lines and tables for a terminal."""
    credit = read_credits(log, config, labels, experiment, started_ms)
    preference, notes = interleaving_readout(experiment, credit), list[str]()
    if not credit.complete:
        notes.append(
            "the log begins after the experiment did: events dropped by retention are missing"
        )
    if credit.waiting:
        notes.append(
            f"{credit.waiting:,} lists are still in their attribution window, and not counted yet"
        )
    if credit.repeats:
        notes.append(f"{credit.repeats:,} lists are on the log a second time, and count once")
    if credit.uncredited:
        notes.append(f"{credit.uncredited:,} items that earned something were nobody's pick")
    control, treatment = (arm.name for arm in experiment.arms)
    values = {
        "experiment": experiment.name,
        "kind": experiment.kind,
        "hypothesis": experiment.hypothesis or experiment.about,
        "credit": experiment.credited,
        "alpha": experiment.metrics.alpha,
        "control": control,
        "treatment": treatment,
        **asdict(preference),
        "notes": notes,
    }
    weights = " + ".join(f"{weight:g} {label}" for label, weight in experiment.credited.items())
    head = [
        f"{experiment.name}: {preference.verdict}  {values['hypothesis']}",
        f"  {preference.why}",
        f"  {preference.lists:,} interleaved lists of {preference.users:,} users; credit: {weights}",
    ]
    return values, [*head, _table(preference, control, treatment), *notes]


def _table(preference: Preference, control: str, treatment: str) -> Any:
    by_treatment, by_control = preference.earned
    won, lost, even = preference.wins
    first_control, first_treatment = preference.coins.counts[:2]
    rows = [
        (
            "earned, shared",
            f"{by_treatment:,.1f} by {treatment}",
            f"{by_control:,.1f} by {control}",
        ),
        (
            "users who gave more to its picks",
            f"{won:,} to {treatment}",
            f"{lost:,} to {control}, {even:,} neither",
        ),
        (
            "p",
            f"{preference.p:.3g} at any look",
            f"{preference.sign_p:.3g} sign test, for one look",
        ),
        ("first picks", f"{first_treatment:,} {treatment}", f"{first_control:,} {control}"),
    ]
    return plain_table(("", "", ""), rows, title="in the same lists")
