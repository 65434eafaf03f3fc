"""Lifecycle of lines: a fold over the ``control`` topic, by which replicas, shadows and the director agree.

It finds the lines that a record concerns and asks each for its next state. The stages of a kind of line are
in its file (experiments/promotion/kinds/), those of requests to unlearn in unlearning_requests.py.
"""

from dataclasses import dataclass, field

from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.line_kinds import begin, begin_beside
from experiments.promotion.unlearning_requests import UnlearningRequests
from recsys.events.control_records import (
    Candidate,
    Control,
    Decision,
    Definition,
    LineHold,
    Live,
    ModelSize,
    Unlearning,
)

_MAX_EXCLUDED = 64  # newest rolled-back lines: their last examples arrive within hours


@dataclass
class Lifecycle:
    """Fold of all records of ``control``, in order. ``candidates``: lines beside live, by name. ``lives``:
    all live records."""

    candidates: dict[str, LineState] = field(default_factory=dict)
    lives: list[Live] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)  # lines, in order
    unlearnings: UnlearningRequests = field(default_factory=UnlearningRequests)
    definition: Definition | None = None  # the newest that the system took up
    hold: LineHold | None = None  # the newest

    def fold(self, record: Control) -> bool:
        """Adds a record; returns whether anything changed about lines."""
        if isinstance(record, Live):
            self._fold_live(record)
            return True
        if isinstance(record, Candidate):
            return self._add(begin(record))
        if isinstance(record, Decision):
            return self._fold_decision(record)
        if isinstance(record, Unlearning):
            self.unlearnings.fold(record)
        elif isinstance(record, Definition):
            self.definition = record
        elif isinstance(record, LineHold):
            self.hold = record
        return False

    @property
    def live(self) -> Live | None:
        return self.lives[-1] if self.lives else None

    @property
    def unlearned(self) -> Live | None:
        """Newest epoch that repeats history without a forgotten user, if any."""
        pairs = zip(self.lives, self.lives[1:], strict=False)
        epochs = [b for a, b in pairs if b.parent_epoch == a.epoch != b.epoch and not b.candidate]
        return epochs[-1] if epochs else None

    @property
    def canary(self) -> LineState | None:
        """The line that answers a share of the users, if any."""
        canaries = [state for state in self.candidates.values() if state.share]
        return canaries[-1] if canaries else None

    @property
    def arms(self) -> list[str]:
        """Lines that answer arms of experiments."""
        return [state.line for state in self.active if state.arm is not None]

    @property
    def active(self) -> list[LineState]:
        return [state for state in self.candidates.values() if state.active]

    def size(self, line: str, epoch: int) -> ModelSize | None:
        """Model size of a line in an epoch, live or candidate; None: as configured, or unknown."""
        lives = [live for live in self.lives if live.line == line]
        if lives:
            return next((live.size for live in lives if live.epoch == epoch), None)
        state = self.candidates.get(line)
        return None if state is None else state.candidate.size

    @property
    def excluded(self) -> list[str]:
        """line/epoch of rolled-back models, newest last: nothing learns from what they served."""
        names = [f"{line}/0" for line in self.rolled_back]
        for before, live in zip(self.lives, self.lives[1:], strict=False):
            if live.parent_epoch != before.epoch:
                undone = [r for r in self.lives if live.parent_epoch < r.epoch < live.epoch]
                names += [f"{record.line}/{record.epoch}" for record in undone]
                names += [f"{record.candidate}/0" for record in undone if record.candidate]
        return names[-_MAX_EXCLUDED:]

    def _add(self, state: LineState) -> bool:
        """Adds a line, unless its name was used: a name is used once."""
        return self.candidates.setdefault(state.line, state) is state

    def _fold_live(self, record: Live) -> None:
        first = self.live is None
        self.lives.append(record)
        for line, state in self.candidates.items():
            self.candidates[line] = state.after_live(record, first)
        for begun in begin_beside(record, self.size(record.line, record.parent_epoch)):
            self._add(begun)

    def _fold_decision(self, decision: Decision) -> bool:
        state = self.candidates.get(decision.line)
        if state is None:
            return False
        if state.is_candidate and decision.verdict == "rollback":
            self.rolled_back.append(decision.line)
        self.candidates[decision.line] = moved = state.after_decision(decision)
        return moved is not state
