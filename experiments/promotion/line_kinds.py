"""All kinds of lines beside live, found in their folder, and the state with which a record begins a line."""

from importlib import import_module
from pkgutil import iter_modules

from experiments.promotion import kinds
from experiments.promotion.kinds.candidate import CandidateState
from experiments.promotion.kinds.line_state import KINDS, LineState
from recsys.events.control_records import Candidate, Live, ModelSize

for _module in iter_modules(kinds.__path__, f"{kinds.__name__}."):
    import_module(_module.name)


def begin(record: Candidate) -> LineState:
    """State of the line that a candidate record begins."""
    kinds_of_it = (kind for kind in KINDS if kind.is_begun_by(record))
    return next(kinds_of_it, CandidateState).begin(record)


def begin_beside(live: Live, replaced: ModelSize | None) -> list[LineState]:
    """States of the lines that begin with a live record. ``replaced``: size of the live model before."""
    begun = (kind.begin_beside(live, replaced) for kind in KINDS)
    return [state for state in begun if state is not None]


def reserved(name: str) -> str:
    """Reason why no candidate may have a name; empty if it may."""
    return next((reason for kind in KINDS if (reason := kind.reserves(name))), "")
