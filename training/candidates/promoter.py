"""What is to be decided of candidates: a fold over ``control``, ``scores`` and ``examples``.

It keeps one comparison for each candidate at work, and says which records the director is to append. Where it
comes back after a kill, it folds the same records again and is where it was.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from experiments.promotion.guard import GuardEvidence, judge_guard
from experiments.promotion.lifecycle import (
    ARM,
    CANARY,
    SHADOW,
    TAKING_BACK,
    TAKING_OVER,
    CandidateState,
    Lifecycle,
)
from experiments.promotion.promotion import Evidence, Hold, Promote, Rollback, Verdict, judge
from parameter_server.storage import snapshots
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Decision, Live, OperatorRequest
from recsys.events.records import EXAMPLES, SCORES, Scores, unpack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE
from training.candidates.canary_impressions import CanaryImpressions, GuardImpressions
from training.candidates.candidate_evidence import Case, begun, numbers
from training.lines.line import MAIN
from training.steps.lineage import CAUGHT_UP, Lineage, last_steps, newest_step, starts_after

_READ: Final = 500
_HOUR_MS: Final = 3_600_000
_LOG: Final = logging.getLogger(__name__)
_APPROVE, _ROLLBACK = "approve", "rollback"


class RollbackImpossible(ValueError):
    """Nothing to go back to, or not from here; says why."""


class Promoter:
    """Feeds on the log; ``turn`` returns what is to be appended to ``control``. ``clock``: milliseconds."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int]
    ) -> None:
        self._log, self._config, self._rules = log, config, config.promotion
        self._labels, self._clock = features.main_labels, clock
        self._folder = Path(config.state) / "snapshots"
        self.lifecycle = Lifecycle()
        self.cases: dict[str, Case] = {}
        self._retrieves = features.history_length > 0
        self._adopted: int | None = None  # an epoch that was made to go back to, and isn't live yet
        self._approved: set[str] = set()
        self._wishes: list[OperatorRequest] = []
        self._scores = log.begin(SCORES, 0)
        self.unread = 0  # records of ``scores`` that made no sense
        self._shown: CanaryImpressions | None = None  # what the canary that answers now has shown
        self._guard_shown: GuardImpressions | None = None  # what live has shown, while it is guarded

    # --- folding ---

    def fold(self, said: Control) -> None:
        """A record of ``control``."""
        lives = len(self.lifecycle.lives)
        if isinstance(said, OperatorRequest):
            if said.what == _APPROVE:
                self._approved.add(said.line)
            elif said.what == _ROLLBACK:
                self._wishes.append(said)
        elif isinstance(said, Live | Decision):
            self._wishes = [wish for wish in self._wishes if not answers_request(wish, said)]
        self.lifecycle.fold(said)
        if isinstance(said, Decision) and said.line in self.cases:
            self._moved(said)
        if len(self.lifecycle.lives) > lives:  # what was compared was compared with another
            self._shown = self._adopted = None
            self.cases = {line: self._anew(line, case) for line, case in self.cases.items()}
        for line in self.lifecycle.candidates.keys() - self.cases.keys():
            self.cases[line] = self._case(line)

    def _moved(self, said: Decision) -> None:
        """A candidate is at another stage: from now on it is judged by that alone, too."""
        case = self.cases[said.line]
        if case.ended is not None:
            return
        if said.said == "promote":
            case.begin_lately(self._rules)
        elif said.final or said.said == "rollback":
            case.end()

    def _anew(self, line: str, case: Case) -> Case:
        """Another line is live. Some end by that: those which it came of, or which learned what it hasn't."""
        if case.ended is None and not self.lifecycle.candidates[line].active:
            case.end()
        return case if case.ended is not None else replace(self._case(line), refused=case.refused)

    def _case(self, line: str) -> Case:
        return begun(self._rules, bool(self.lifecycle.candidates[line].guards))

    @property
    def refused(self) -> dict[str, str]:
        """Why lines couldn't go on, by their names."""
        return {line: case.refused for line, case in self.cases.items() if case.refused}

    @property
    def _epoch(self) -> int:
        """The live one."""
        return self.lifecycle.live.epoch if self.lifecycle.live else 0

    def read(self) -> None:
        """What candidates said and viewers did since."""
        self._read_scores()
        self._read_shown()

    def turn(self) -> list[Control]:
        """Reads what is new, and decides."""
        self.read()
        found: list[Control] = [*self._granted()]
        if not found:
            judged = [its for its in self.lifecycle.active if its.stage != ARM]
            for standing in sorted(judged, key=self._place):
                found.extend(self._decide(standing))
                if found:
                    break  # one at a time: each changes what the next rests on
        return found

    def _place(self, standing: CandidateState) -> tuple[bool, float]:
        """Guards first: what a bad line gives way to is what was before it, not the next candidate. Of
        several candidates that have proved themselves, the one that gained most."""
        gained = self.cases[standing.line].compared.loss.mean
        return not standing.guards, math.inf if math.isnan(gained) else -gained

    def _read_scores(self) -> None:
        while records := self._log.read(SCORES, 0, self._scores, _READ):
            self._scores = records[-1].offset + 1
            for record in records:
                try:
                    said = unpack(record.value, Scores)
                    if said.line in self.cases:
                        self.cases[said.line].take(said, (MAIN, self._epoch), self._rules)
                except (ValueError, *UNREADABLE) as error:  # whoever wrote it: it must stop nobody
                    self.unread += 1
                    _LOG.warning("scores at %d can't be read: %s", record.offset, error)

    def _read_shown(self) -> None:
        """What viewers do with the canary's lists and with live's, from its first on; and with those of a
        live line that is guarded."""
        self._read_guarded()
        canary = self.lifecycle.canary
        if canary is None:
            self._shown = None
            return
        if self._shown is None or self._shown.line != canary.line:
            live = f"{MAIN}/{self._epoch}"
            self._shown = CanaryImpressions(self._log, canary, live, self._labels, self._rules)
            self.cases[canary.line].rates = self._shown.rates
        self._shown.read()

    def _read_guarded(self) -> None:
        # One that takes live back has nothing more to learn.
        guards = [its for its in self.lifecycle.active if its.guards and its.stage == SHADOW]
        if not guards:
            self._guard_shown = None
            return
        (guard,) = guards  # each live record ends those before
        case = self.cases[guard.line]
        if self._guard_shown is None or self._guard_shown.line != guard.line:
            live = self.lifecycle.guarded_live(guard)
            self._guard_shown = GuardImpressions(self._log, guard, live, self._labels, self._rules)
            case.rates = self._guard_shown.rates
        self._guard_shown.read()
        case.not_finite = self._guard_shown.not_finite

    # --- deciding ---

    def evidence(self, standing: CandidateState) -> Evidence:
        """All that is known of a candidate now."""
        case = self.cases[standing.line]
        if standing.guards:
            since_ms = standing.since_ms or self._clock()  # a record may not say when
            return case.guard_evidence(standing.stage, (self._clock() - since_ms) / _HOUR_MS)
        return Evidence(
            CANARY if standing.stage == TAKING_OVER else standing.stage,
            case.compared,
            tuple(case.failed(self._rules)),
            case.served,
            case.lately,
            self._retrieves,
        )

    def opinion(self, standing: CandidateState) -> str:
        """What would be decided of a candidate now, and why; nothing is."""
        if standing.stage == TAKING_OVER:
            return "its snapshot is being written"
        if standing.stage == TAKING_BACK:
            return standing.why
        if standing.stage == ARM:
            return f"answers an arm of the experiment {standing.candidate.arm.experiment}"  # type: ignore[union-attr]
        decided = self._decide(standing)
        if isinstance(decided[0] if decided else None, Decision):
            return decided[0].why  # type: ignore[union-attr]
        return self.cases[standing.line].said

    def _decide(self, standing: CandidateState) -> list[Control]:
        if standing.stage == TAKING_BACK:
            return self._take_back(standing)
        evidence = self.evidence(standing)
        if isinstance(evidence, GuardEvidence):
            said: Verdict = judge_guard(evidence, self._rules)
        else:
            said = judge(evidence, self._rules)
        if standing.stage == TAKING_OVER and not isinstance(said, Rollback):
            return self._live(standing)
        if isinstance(said, Rollback):
            return [self._told(standing, said)]
        if isinstance(said, Hold):
            case = self.cases[standing.line]
            if said.final:
                return [self._told(standing, said)]
            case.said = said.why
            return []
        return self._promote(standing, said)

    def _promote(self, standing: CandidateState, said: Promote) -> list[Control]:
        case, other = self.cases[standing.line], self.lifecycle.canary
        if other is not None and other.line != standing.line:
            case.said = f"{other.line} is at it: one candidate at a time; {said.why}"
            return []
        behind = newest_step(self._log, MAIN, self._epoch) - case.step
        if behind > CAUGHT_UP:  # it would bring back what was
            case.said = f"{behind} steps behind: it catches up; {said.why}"
            return []
        if self._rules.manual and standing.line not in self._approved:
            case.said = f"waits for approval: {said.why}"
            return []
        return [self._told(standing, said)]

    def _live(self, standing: CandidateState) -> list[Control]:
        """The pointer moves once the snapshot is there that the next epoch begins from."""
        steps = snapshots.complete_steps(self._folder, MAIN, standing.epoch)
        if not steps:
            return []
        snapshots.sync_snapshot(self._folder, MAIN, standing.epoch, steps[-1])
        return [
            Live(
                line=MAIN, epoch=standing.epoch, reason=standing.why, time_ms=self._clock(),
                since=steps[-1], of=self._epoch, candidate=standing.line,
                size=standing.candidate.size, guarded=self._rules.guard_examples > 0,
            )
        ]  # fmt: skip

    def _granted(self) -> list[Control]:
        """What a person wished: a canary's, or the live line's, way back. It is answered in any case."""
        if not self._wishes:
            return []
        wish = self._wishes[0]
        standing = self.lifecycle.candidates.get(wish.line)
        why = wish.reason or "a person asked for it"
        if standing is not None and standing.stage == ARM:
            its = "it answers an arm: stop its experiment, and it ends"
            return [_refusal(wish, its, self._clock())]
        if standing is not None and standing.active:
            evidence = self.evidence(standing)
            if not standing.guards:
                return [self._told(standing, Rollback(why, evidence))]
            ended = self._told(standing, Hold(True, why, evidence))  # what is live stays
            return [msgspec.structs.replace(ended, to=_ROLLBACK)]
        if wish.line != f"{MAIN}/{self._epoch}":
            over = f"{wish.line} is over, or not known" if wish.line else "it says of what"
            return [_refusal(wish, f"{over}; what is live is {MAIN}/{self._epoch}", self._clock())]
        try:
            return [self._back(why)]
        except (RollbackImpossible, snapshots.NoSnapshot, OSError) as error:
            return [_refusal(wish, f"{wish.line} can't go back: {error}", self._clock())]

    def _take_back(self, standing: CandidateState) -> list[Control]:
        """What the guard stands for is live again. Where it can't be, it ends."""
        try:
            return [self._back(f"{standing.line}: {standing.why}")]
        except OSError as error:  # a full disk, a folder that is away: it may come back
            self.cases[standing.line].said = f"waits: {error}"
            _LOG.warning(
                "%s can't take %s/%d back yet: %s", standing.line, MAIN, self._epoch, error
            )
            return []
        except (RollbackImpossible, snapshots.NoSnapshot) as error:
            why = f"{standing.why}; but {MAIN}/{self._epoch} can't go back: {error}"
            return [self._told(standing, Hold(True, why, self.evidence(standing)))]

    def _back(self, why: str) -> Live:
        """The live line as it was before its newest promotion. Raises RollbackImpossible, NoSnapshot, OSError."""
        live = self.lifecycle.live
        if live is None or not live.candidate:
            raise RollbackImpossible("nothing was promoted before it")
        before = self.lifecycle.lives[-2].epoch
        steps = snapshots.complete_steps(self._folder, MAIN, before)
        if not steps:
            raise RollbackImpossible(f"no snapshot of epoch {before} is left")
        self._check_there(before, steps[-1])
        epoch = self._next_epoch() if self._adopted is None else self._adopted
        snapshots.adopt(self._folder, MAIN, (before, steps[-1]), epoch)
        self._adopted = epoch  # until it is live: a log that is away makes no second one
        return Live(
            line=MAIN, epoch=epoch, reason=why, time_ms=self._clock(), since=steps[-1], of=before,
            size=self.lifecycle.size(MAIN, before),
        )  # fmt: skip

    def _check_there(self, epoch: int, since: int) -> None:
        """Whether the log still has what is to be learned again. Raises RollbackImpossible."""
        lives = [live for live in self.lifecycle.lives if live.epoch <= epoch]
        starts = starts_after(Lineage(self._log, MAIN, lives), since)
        gone = {p for p, start in starts.items() if start < self._log.begin(EXAMPLES, p)}
        if gone:
            raise RollbackImpossible(
                f"the log no longer has the examples after step {since} of epoch {epoch} (partitions "
                f"{sorted(gone)})"
            )

    def _told(self, standing: CandidateState, said: Verdict) -> Decision:
        promoted = isinstance(said, Promote)
        taking_over = promoted and said.to != CANARY  # type: ignore[union-attr]
        return Decision(
            line=standing.line,
            said=type(said).__name__.lower(),
            to=said.to if isinstance(said, Promote) else "",
            epoch=self._next_epoch() if taking_over else 0,
            share=self._rules.canary_share if promoted and not taking_over else 0.0,
            final=isinstance(said, Hold) and said.final,
            why=said.why,
            evidence=numbers(said.evidence),
            time_ms=self._clock(),
        )

    def _next_epoch(self) -> int:
        """One that nothing of was ever written."""
        known = [live.epoch for live in self.lifecycle.lives]
        known += [standing.epoch for standing in self.lifecycle.candidates.values()]
        known += [step.epoch for step in last_steps(self._log)]
        return 1 + max([*known, *snapshots.epochs(self._folder, MAIN)])


def answers_request(wish: OperatorRequest, said: Live | Decision) -> bool:
    """Whether a record is what came of a wish to go back: it is granted once, also for who folds it again."""
    if isinstance(said, Live):
        return not said.candidate and wish.line.startswith(f"{said.line}/")
    return said.line == wish.line and (said.said == "rollback" or said.to == _ROLLBACK)


def _refusal(wish: OperatorRequest, why: str, now_ms: int) -> Decision:
    return Decision(line=wish.line, said="hold", to=_ROLLBACK, why=why, time_ms=now_ms)
