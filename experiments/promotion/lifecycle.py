"""Lifecycle of candidates: a fold over the ``control`` topic, by which replicas, shadows and the director
agree.

proposed ──► shadow ──► canary ──► taking over ──► live
                └──────────┴───────────┴──► ended: held for good, rolled back

After a promotion the former live line guards against the new one, from the live record on:

shadow ──► taking back ──► ended: it is live again
   └──► ended: nothing was found, or another is live

A line trained by an arm of an experiment answers that arm and is never judged:

arm ──► ended: the experiment is over, or history was replaced

A request to unlearn users, or to rewind:

asked ──► assigned (an epoch) ──► replaying ──► replayed ──► done: its epoch is live, what it replaced removed
              └──────────────────────┴──► refused           (assigned again if another epoch becomes live)
"""

from dataclasses import dataclass, field, replace

import msgspec

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
from recsys.events.hashing import Id, uniform

SHADOW, CANARY, TAKING_OVER, LIVE, ENDED = "shadow", "canary", "taking over", "live", "ended"
TAKING_BACK = "taking back"
ARM = "arm"
ASKED, ASSIGNED, REPLAYING, REPLAYED = "asked", "assigned", "replaying", "replayed"
DONE, REFUSED = "done", "refused"
GUARD = "guard"  # kind of a guard, and prefix of its name
FEATURES = "features"  # kind of a candidate that began as the live line, with other features
_ACTIVE = (SHADOW, CANARY, TAKING_OVER, TAKING_BACK, ARM)
_MAX_EXCLUDED = 64  # newest rolled-back lines: their last examples arrive within hours
_SEED = 0  # changing it reassigns every user of every canary


@dataclass(frozen=True)
class CandidateState:
    """State of one candidate. ``share``: of users that it answers. ``since_ms``: start of its stage.
    ``guards``: epoch of the live line that it guards against; 0: not a guard. A guard is the former live
    line: it is in no registry, answers nobody, and isn't promoted like a candidate."""

    candidate: Candidate
    stage: str = SHADOW
    share: float = 0.0
    epoch: int = 0  # of the live line that will begin with it
    since_ms: int = 0
    why: str = ""
    guards: int = 0

    @property
    def line(self) -> str:
        return self.candidate.line

    @property
    def active(self) -> bool:
        """Whether it is scored and learns."""
        return self.stage in _ACTIVE


@dataclass
class Lifecycle:
    """Fold of all records of ``control``, in order. ``lives``: all live records."""

    candidates: dict[str, CandidateState] = field(default_factory=dict)
    lives: list[Live] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)  # lines, in order
    unlearnings: dict[str, Unlearning] = field(default_factory=dict)  # the newest by id
    definition: Definition | None = None  # the newest that the system took up
    hold: LineHold | None = None  # the newest

    def fold(self, record: Control) -> bool:
        """Adds a record; returns whether anything changed about lines."""
        if isinstance(record, Live):
            self._fold_live(record)
        elif isinstance(record, Candidate):
            if record.line in self.candidates:
                return False  # a name is used once
            stage = SHADOW if record.arm is None else ARM
            state = CandidateState(record, stage, since_ms=record.time_ms)
            self.candidates[record.line] = state
        elif isinstance(record, Decision):
            return self._fold_decision(record)
        else:
            if isinstance(record, Unlearning):
                before = self.unlearnings.get(record.id, record)
                users = record.users or before.users
                self.unlearnings[record.id] = msgspec.structs.replace(record, users=users)
            elif isinstance(record, Definition):
                self.definition = record
            elif isinstance(record, LineHold):
                self.hold = record
            return False
        return True

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
    def unlearning(self) -> Unlearning | None:
        """The oldest request to unlearn or rewind that isn't over: one at a time."""
        pending = (u for u in self.unlearnings.values() if u.state not in (DONE, REFUSED))
        return next(pending, None)

    def unlearning_users(self) -> set[str]:
        """Users in requests that aren't over."""
        pending = [u.users for u in self.unlearnings.values() if u.state not in (DONE, REFUSED)]
        return {user for users in pending for user in users}

    def unlearned_requests(self) -> list[Unlearning]:
        """Requests that are done, with their users as far as they are named."""
        return [request for request in self.unlearnings.values() if request.state == DONE]

    @property
    def canary(self) -> CandidateState | None:
        """The candidate that answers a share of the users, if any."""
        stages = (CANARY, TAKING_OVER)
        canaries = [s for s in self.candidates.values() if s.stage in stages and s.share]
        return canaries[-1] if canaries else None

    @property
    def arms(self) -> dict[str, CandidateState]:
        return {line: state for line, state in self.candidates.items() if state.stage == ARM}

    @property
    def active(self) -> list[CandidateState]:
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

    def guarded_live(self, state: CandidateState) -> Live:
        """Live record with which a guard began."""
        return next(live for live in reversed(self.lives) if live.epoch == state.guards)

    def _fold_live(self, record: Live) -> None:
        before = self.live
        self.lives.append(record)
        for state in self.active:
            if state.guards and record.candidate:
                why = f"{record.line}/{record.epoch} is live, and has a guard of its own"
                self._move(state, ENDED, record.time_ms, why)
            elif before is not None and not record.candidate:
                # They learned from history that is no longer the line's.
                self._move(state, ENDED, record.time_ms, record.reason)
        for line, state in self.candidates.items():
            if line == record.candidate:
                self._move(state, LIVE, record.time_ms, record.reason)
            elif state.stage == LIVE:
                self._move(state, ENDED, record.time_ms, record.reason)
        line, time_ms = guard_name(record.epoch), record.time_ms
        if record.guarded and line not in self.candidates:  # a name is used once
            size = self.size(record.line, record.parent_epoch)
            guard = Candidate(line=line, registry="", kind=GUARD, time_ms=time_ms, size=size)
            state = CandidateState(guard, since_ms=time_ms, guards=record.epoch)
            self.candidates[line] = state

    def _fold_decision(self, decision: Decision) -> bool:
        state = self.candidates.get(decision.line)
        if state is None:
            return False
        time_ms, why, verdict = decision.time_ms, decision.why, decision.verdict
        if state.guards:
            if not state.active or (verdict != "rollback" and not decision.final):
                return False
            self._move(state, TAKING_BACK if verdict == "rollback" else ENDED, time_ms, why)
        elif state.candidate.arm is not None:  # answers until its experiment ends
            if not state.active or not decision.final:
                return False
            self._move(state, ENDED, time_ms, why)
        elif verdict == "rollback":
            self.rolled_back.append(decision.line)
            self._move(state, ENDED, time_ms, why)
        elif verdict == "promote":
            self.candidates[decision.line] = replace(
                state,
                stage=CANARY if decision.to == CANARY else TAKING_OVER,
                share=decision.share or state.share,  # as before, until it is live
                epoch=decision.epoch,
                since_ms=time_ms,
                why=why,
            )
        elif decision.final:
            self._move(state, ENDED, time_ms, why)
        elif state.active:
            self.candidates[decision.line] = replace(state, why=why)
        return True

    def _move(self, state: CandidateState, stage: str, since_ms: int, why: str) -> None:
        moved = replace(state, stage=stage, share=0.0, epoch=0, since_ms=since_ms, why=why)
        self.candidates[state.line] = moved


def guard_name(epoch: int) -> str:
    """Name of the guard against an epoch of the live line."""
    return f"{GUARD}-{epoch}"


def is_guard_name(line: str) -> bool:
    return line.startswith(f"{GUARD}-")


def is_in_canary(canary: CandidateState | None, user_id: Id) -> bool:
    """Whether the canary answers a user: a hash of both, equal on every replica."""
    return canary is not None and uniform(_SEED, "canary", canary.line, user_id) < canary.share
