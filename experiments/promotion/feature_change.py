"""Change of a running system's features: which sets its lines read, and how far the change is. Pure."""

from experiments.promotion.epoch_model import features_of
from experiments.promotion.lifecycle import FEATURES, CandidateState, Lifecycle
from recsys.events.control_records import ALONE, FOLDED, ModelSize
from recsys.features.feature_set import FeatureSet


def sets_in_use(lifecycle: Lifecycle, first: FeatureSet) -> list[FeatureSet]:
    """Features that lines read: the live one, the one that a rollback brings back, and all active ones.
    ``first``: of the state folder's file."""
    sizes: list[ModelSize | None] = [live.size for live in reversed(lifecycle.lives)]
    sizes = [*sizes, None][:2]  # at first none is on record
    sizes += [state.candidate.size for state in lifecycle.active]
    return list(dict.fromkeys(features_of(first, size) for size in sizes))


def candidate_for(lifecycle: Lifecycle, features: str) -> CandidateState | None:
    """The newest candidate of a change to a set, as in its record."""
    for state in reversed(lifecycle.candidates.values()):
        size = state.candidate.size
        if state.candidate.kind == FEATURES and size is not None and size.features == features:
            return state
    return None


def progress(lifecycle: Lifecycle) -> str:
    """How far the newest change is, for ``recsys status``; empty without one."""
    definition = lifecycle.definition
    if definition is None:
        return ""
    state = candidate_for(lifecycle, definition.reads)
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
