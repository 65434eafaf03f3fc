"""Changed features: a candidate that begins as the live line, and reads another feature set.

After that it is judged as every candidate is. ``recsys app apply`` proposes it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from experiments.promotion.kinds.candidate import CandidateState
from experiments.promotion.kinds.line_state import LineState
from recsys.config.system_config import ModelConfig
from recsys.events.control_records import ALONE, FOLDED, Candidate, Definition, ModelSize
from recsys.features.feature_set import FeatureSet, set_text

FEATURES: Final = "features"  # kind of its record


@dataclass(frozen=True)
class FeaturesState(CandidateState):
    """State of a candidate with other features."""

    @classmethod
    def is_begun_by(cls, record: Candidate) -> bool:
        return record.kind == FEATURES

    def source(self, live_epoch: int) -> int:
        return live_epoch


def proposal(features: FeatureSet, model: ModelConfig, number: int, now_ms: int) -> Candidate:
    """Record that proposes the live line with other features. ``model``: live's. ``number``: of lines so
    far, since a name is used once."""
    name = f"{FEATURES}-{features.digest[:8]}-{number}"
    size = ModelSize(model.dim, model.hidden, set_text(features))
    return Candidate(line=name, registry="", kind=FEATURES, time_ms=now_ms, size=size)


def newest_change(lines: Iterable[LineState], features: str) -> LineState | None:
    """The newest candidate of a change to a set, as in its record."""
    for state in reversed([*lines]):
        size = state.candidate.size
        if isinstance(state, FeaturesState) and size is not None and size.features == features:
            return state
    return None


def progress(definition: Definition | None, lines: Iterable[LineState]) -> str:
    """How far the newest change is, for ``recsys status``; empty without one."""
    if definition is None:
        return ""
    state = newest_change(lines, definition.reads)
    if definition.stage == FOLDED:
        text = "its features are computed from the log"
    elif definition.stage != ALONE:
        text = "replicas change to its features"
    elif state is None:
        text = "logged, no candidate yet"
    else:
        why = f" ({state.why})" if state.why else ""
        text = f"logged, {state.line} is {state.stage}{why}"
    return f"definition {definition.digest[:8]}: {text}"
