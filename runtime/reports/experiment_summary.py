"""What is told of an experiment beside its readout: since when it runs, where it stands, what to know."""

import re
from collections.abc import Iterable
from typing import Any

from experiments.assignment.definition import Experiment
from experiments.statistics.readout import Readout
from recsys.events.control_records import Control, Experiments
from training.outcomes.experiment_fold import OTHER_SURFACES, ExperimentFold


def began_ms(told: Iterable[Control], name: str) -> int:
    """When an experiment first gave arms: as it stands, else by the first revision that has it."""
    named = re.compile(rf"^name:\s*['\"]?{re.escape(name)}['\"]?\s*(#.*)?$", re.MULTILINE)
    for control in told:
        if isinstance(control, Experiments):
            stand = control.stands.get(name)
            if stand is not None and stand.started_ms:
                return stand.started_ms
            if stand is None and any(named.search(text) for text in control.configs.values()):
                return control.time_ms
    return 0


def row_of(its: Experiment, said: Experiments) -> dict[str, Any]:
    """One experiment as `list` tells it."""
    stand = said.stands.get(its.name)
    return {
        "name": its.name,
        "kind": its.kind,
        "state": stand.state if stand else "running",
        "layer": its.layer,
        "traffic": stand.traffic if stand else its.traffic,
        "of": its.traffic,
        "since_ms": stand.since_ms if stand else 0,
        "arms": {arm.name: arm.share for arm in its.arms},
        "primary": list(its.credited if its.interleaves else its.primary),
        "guardrails": dict(its.metrics.guardrails),
        "hypothesis": its.hypothesis or its.about,
        "why": stand.why if stand else "",
    }


def notes_of(fold: ExperimentFold, seen: Readout) -> list[str]:
    """What one must know beside a readout of a fold."""
    notes = []
    if not fold.complete:
        notes.append("the log begins after the experiment did: what retention dropped is missing")
    if fold.waiting:
        notes.append(f"{fold.waiting:,} shown items are still in their window, and not counted yet")
    if fold.pooled_surfaces:
        notes.append(
            f"{fold.pooled_surfaces:,} further surfaces are pooled into the segment `{OTHER_SURFACES}`"
        )
    if fold.unreadable:
        notes.append(f"{fold.unreadable:,} places of the log were empty or couldn't be read")
    if seen.outside:
        notes.append(f"{seen.outside:,} items were shown to its users, but not under their arm")
    if seen.sampled < 1:
        notes.append(
            f"effects are of a share of {seen.sampled:g} of the users, as is `shown`: memory is bounded"
        )
    if seen.counted < 1:
        notes.append(f"users by arm are of a share of {seen.counted:g} of them")
    return notes
