"""Facts about an experiment: start time, state, and its readout from the log, with notes."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from experiments.assignment.definition import Experiment, name_in
from experiments.statistics.interleaving import Preference
from experiments.statistics.readout import Readout, metrics_needed
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Experiments
from recsys.events.records import CONTROL
from recsys.features.feature_set_file import labels_of
from recsys.log.protocol import Log
from recsys.process.log_consumer import readable
from runtime.reports.tables import plain_table
from training.outcomes.credit_fold import interleaving_readout, read_credits
from training.outcomes.experiment_fold import OTHER_SURFACES, ExperimentFold

_INCOMPLETE = "the log begins after the experiment did: events dropped by retention are missing"


def start_ms(records: Iterable[Control], name: str) -> int:
    """Time at which an experiment first assigned arms."""
    for control in records:
        if isinstance(control, Experiments) and (time_ms := starts_in(control).get(name)):
            return time_ms
    return 0


def starts_in(revision: Experiments) -> dict[str, int]:
    """When experiments began, by name, if no earlier revision tells: as recorded, or with the revision."""
    starts = {name: current.started_ms for name, current in revision.states.items()}
    for name in set(map(name_in, revision.configs.values())) - starts.keys():
        starts[name] = revision.time_ms
    return {name: time_ms for name, time_ms in starts.items() if time_ms}


def read_report(log: Log, config: Config, experiment: Experiment) -> tuple[Readout, list[str]]:
    """Reads an experiment's effects from the whole log, with notes."""
    labels = labels_of(config)
    metrics_needed(experiment, labels)
    started_ms = start_ms(readable(log, CONTROL, Control), experiment.name)
    fold = ExperimentFold(log, config, labels, experiment, started_ms)
    while fold.read():
        pass
    readout = fold.readout()
    return readout, notes_of(fold, readout)


def summary_row(experiment: Experiment, revision: Experiments) -> dict[str, Any]:
    """One row of `recsys experiment list`."""
    current = revision.states.get(experiment.name)
    return {
        "name": experiment.name, "kind": experiment.kind, "state": current.state if current else "running",
        "layer": experiment.layer, "traffic": current.traffic if current else experiment.traffic,
        "of": experiment.traffic, "since_ms": current.since_ms if current else 0,
        "arms": {arm.name: arm.share for arm in experiment.arms},
        "primary": list(experiment.credited if experiment.interleaves else experiment.primary),
        "guardrails": dict(experiment.metrics.guardrails),
        "hypothesis": experiment.hypothesis or experiment.about, "why": current.why if current else "",
    }  # fmt: skip


def notes_of(fold: ExperimentFold, readout: Readout) -> list[str]:
    """Caveats of a fold's readout: missing, pending and sampled data."""
    counts = {
        "shown items are still in their attribution window, and not counted yet": fold.waiting,
        f"further surfaces are pooled into the segment `{OTHER_SURFACES}`": fold.pooled_surfaces,
        "log records were empty or couldn't be read": fold.unreadable,
        "items were shown to its users outside their arm": readout.outside,
    }
    notes = _count_notes(fold.complete, counts)
    if readout.sampled < 1:
        share = f"{readout.sampled:g} of the users, to bound memory"
        notes.append(f"effects and `shown` cover a sample of {share}")
    if readout.counted < 1:
        notes.append(f"users by arm cover a sample of {readout.counted:g} of them")
    return notes


def _count_notes(complete: bool, counts: Mapping[str, int]) -> list[str]:
    """Notes on a log that is incomplete, and on each count that isn't 0."""
    notes = [f"{count:,} {text}" for text, count in counts.items() if count]
    return notes if complete else [_INCOMPLETE, *notes]


def read_interleaving(log: Log, config: Config, experiment: Experiment) -> tuple[dict[str, Any], list[Any]]:
    """Reads the result as plain values, and as lines and tables for a terminal."""
    started_ms = start_ms(readable(log, CONTROL, Control), experiment.name)
    credit = read_credits(log, config, labels_of(config), experiment, started_ms)
    preference = interleaving_readout(experiment, credit)
    counts = {
        "lists are still in their attribution window, and not counted yet": credit.waiting,
        "lists are on the log a second time, and count once": credit.repeats,
        "items that earned something were nobody's pick": credit.uncredited,
    }
    notes = _count_notes(credit.complete, counts)
    control, treatment = (arm.name for arm in experiment.arms)
    values = {
        "experiment": experiment.name, "kind": experiment.kind,
        "hypothesis": experiment.hypothesis or experiment.about, "credit": experiment.credited,
        "alpha": experiment.metrics.alpha, "control": control, "treatment": treatment,
        **asdict(preference), "notes": notes,
    }  # fmt: skip
    weights = " + ".join(f"{weight:g} {label}" for label, weight in experiment.credited.items())
    head = [
        f"{experiment.name}: {preference.verdict}  {values['hypothesis']}",
        f"  {preference.why}",
        f"  {preference.lists:,} interleaved lists of {preference.users:,} users; credit: {weights}",
    ]
    return values, [*head, _preference_table(preference, control, treatment), *notes]


def _preference_table(preference: Preference, control: str, treatment: str) -> Any:
    by_treatment, by_control = preference.earned
    won, lost, even = preference.wins
    first_control, first_treatment = preference.coins.counts[:2]
    earned = f"{by_treatment:,.1f} by {treatment}", f"{by_control:,.1f} by {control}"
    users = f"{won:,} to {treatment}", f"{lost:,} to {control}, {even:,} neither"
    looks = f"{preference.p:.3g} at any look", f"{preference.sign_p:.3g} sign test, for one look"
    picks = f"{first_treatment:,} {treatment}", f"{first_control:,} {control}"
    rows = [
        ("earned, shared", *earned),
        ("users who gave more to its picks", *users),
        ("p", *looks),
        ("first picks", *picks),
    ]
    return plain_table(("", "", ""), rows, title="in the same lists")
