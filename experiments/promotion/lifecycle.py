"""Where each candidate stands: a fold over ``control``. Pure; replicas, shadows and the director agree by it.

proposed ──► shadow ──► canary ──► taking over ──► live
                └──────────┴───────────┴──► ended: held for good, rolled back

What was live before a promotion guards against it: a standing of its own, which begins with the live record.

shadow ──► taking back ──► ended: it is live again
   └──► ended: nothing was found, or another is live

The line that an arm of an experiment trains answers that arm, and is never judged as a candidate is.

arm ──► ended: the experiment is over, or history was replaced
"""

from dataclasses import dataclass, field, replace

from recsys.events.control_records import Candidate, Control, Decision, Live, ModelSize
from recsys.events.hashing import Id, uniform

SHADOW, CANARY, TAKING_OVER, LIVE, ENDED = "shadow", "canary", "taking over", "live", "ended"
TAKING_BACK = "taking back"
ARM = "arm"
GUARD = "guard"  # its kind, and how the names of guards begin
_REMEMBERED = 64  # of those that were rolled back: their last examples come within hours
_SEED = 0  # changing it draws every user of every canary anew


@dataclass(frozen=True)
class CandidateState:
    """One candidate. ``share``: of the users who are answered by it. ``since_ms``: of its stage.

    ``guards``: the live line's epoch that it guards against; 0: it is no guard. A guard is what was live
    before that: it stands in no registry, answers nobody, and isn't promoted as a candidate is.
    """

    candidate: Candidate
    stage: str = SHADOW
    share: float = 0.0
    epoch: int = 0  # of the live line, that is to begin with it
    since_ms: int = 0
    why: str = ""
    guards: int = 0

    @property
    def line(self) -> str:
        return self.candidate.line

    @property
    def active(self) -> bool:
        """Whether it is to be scored, and to learn."""
        return self.stage in (SHADOW, CANARY, TAKING_OVER, TAKING_BACK, ARM)


@dataclass
class Lifecycle:
    """Feed it every record of ``control`` in order. ``lives`` are all live records."""

    candidates: dict[str, CandidateState] = field(default_factory=dict)
    lives: list[Live] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)  # lines, in order

    def fold(self, said: Control) -> bool:
        """Whether anything is different after it."""
        if isinstance(said, Live):
            self._live(said)
        elif isinstance(said, Candidate):
            if said.line in self.candidates:
                return False  # a name is used once
            stage = SHADOW if said.arm is None else ARM
            self.candidates[said.line] = CandidateState(said, stage, since_ms=said.time_ms)
        elif isinstance(said, Decision):
            return self._decision(said)
        else:
            return False
        return True

    @property
    def live(self) -> Live | None:
        return self.lives[-1] if self.lives else None

    @property
    def unlearned(self) -> Live | None:
        """The newest epoch that is history once more without a user; None where nobody was unlearned."""
        pairs = zip(self.lives, self.lives[1:], strict=False)
        found = [b for a, b in pairs if b.of == a.epoch != b.epoch and not b.candidate]
        return found[-1] if found else None

    @property
    def canary(self) -> CandidateState | None:
        """The candidate that answers a share of the users now, if any does."""
        found = [s for s in self.candidates.values() if s.stage in (CANARY, TAKING_OVER) and s.share]
        return found[-1] if found else None

    @property
    def arms(self) -> dict[str, CandidateState]:
        """The lines of arms that are at work, by their names."""
        return {line: its for line, its in self.candidates.items() if its.stage == ARM}

    @property
    def active(self) -> list[CandidateState]:
        return [standing for standing in self.candidates.values() if standing.active]

    def size(self, line: str, epoch: int) -> ModelSize | None:
        """Of the model of a line in an epoch: of the live one's, else of a candidate's. None: as configured,
        or nothing is known of it."""
        lives = [live for live in self.lives if live.line == line]
        if lives:
            return next((live.size for live in lives if live.epoch == epoch), None)
        its = self.candidates.get(line)
        return None if its is None else its.candidate.size

    @property
    def quarantined(self) -> list[str]:
        """line/epoch of what was rolled back, the newest last: what they served teaches nothing more."""
        found = [f"{line}/0" for line in self.rolled_back]
        for before, live in zip(self.lives, self.lives[1:], strict=False):
            if live.of != before.epoch:
                left = [its for its in self.lives if live.of < its.epoch < live.epoch]
                found += [f"{its.line}/{its.epoch}" for its in left]
                found += [f"{its.candidate}/0" for its in left if its.candidate]
        return found[-_REMEMBERED:]

    def guarded_live(self, standing: CandidateState) -> Live:
        """The live record that a guard began with."""
        return next(live for live in reversed(self.lives) if live.epoch == standing.guards)

    def _live(self, said: Live) -> None:
        before = self.live
        self.lives.append(said)
        for its in self.active:
            if its.guards and said.candidate:
                why = f"{said.line}/{said.epoch} is live, and has a guard of its own"
                self._move(its, ENDED, said.time_ms, why)
            elif before is not None and not said.candidate:
                # They have learned what is no part of the line's history any more.
                self._move(its, ENDED, said.time_ms, said.reason)
        for line, its in self.candidates.items():
            if line == said.candidate:
                self._move(its, LIVE, said.time_ms, said.reason)
            elif its.stage == LIVE:
                self._move(its, ENDED, said.time_ms, said.reason)
        line = guard_name(said.epoch)
        if said.guarded and line not in self.candidates:  # a name is used once
            size = self.size(said.line, said.of)
            guard = Candidate(line=line, registry="", kind=GUARD, time_ms=said.time_ms, size=size)
            self.candidates[line] = CandidateState(guard, since_ms=said.time_ms, guards=said.epoch)

    def _decision(self, said: Decision) -> bool:
        its = self.candidates.get(said.line)
        if its is None:
            return False
        if its.guards:
            return self._by_guard(its, said)
        if its.candidate.arm is not None:
            return self._of_arm(its, said)
        if said.said == "rollback":
            self.rolled_back.append(said.line)
            self._move(its, ENDED, said.time_ms, said.why)
        elif said.said == "promote":
            stage = CANARY if said.to == CANARY else TAKING_OVER
            share = said.share or its.share  # as canary it goes on until it is live
            self._move(its, stage, said.time_ms, said.why, share, said.epoch)
        elif said.final:
            self._move(its, ENDED, said.time_ms, said.why)
        elif its.active:
            self.candidates[said.line] = replace(its, why=said.why)
        return True

    def _of_arm(self, its: CandidateState, said: Decision) -> bool:
        """It answers for as long as its experiment runs, and nothing else can become of it."""
        if not its.active or not said.final:
            return False
        self._move(its, ENDED, said.time_ms, said.why)
        return True

    def _by_guard(self, its: CandidateState, said: Decision) -> bool:
        if not its.active or (said.said != "rollback" and not said.final):
            return False
        stage = TAKING_BACK if said.said == "rollback" else ENDED
        self._move(its, stage, said.time_ms, said.why)
        return True

    def _move(
        self, its: CandidateState, stage: str, ms: int, why: str, share: float = 0.0, epoch: int = 0
    ) -> None:
        self.candidates[its.line] = replace(
            its, stage=stage, share=share, epoch=epoch, since_ms=ms, why=why
        )


def guard_name(epoch: int) -> str:
    """The name of the guard against an epoch of the live line."""
    return f"{GUARD}-{epoch}"


def is_guard_name(line: str) -> bool:
    """Whether a name is one that no candidate may have."""
    return line.startswith(f"{GUARD}-")


def answers(canary: CandidateState | None, user_id: Id) -> bool:
    """Whether a user is answered by the canary: a hash of both, the same on every replica."""
    return canary is not None and uniform(_SEED, "canary", canary.line, user_id) < canary.share
