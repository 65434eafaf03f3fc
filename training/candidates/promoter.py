"""Decides on candidates: a fold over ``control``, ``scores`` and ``examples`` that returns records to
append."""

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
from recsys.clock import timer_of
from recsys.config.system_config import Config
from recsys.events.control_records import TOO_LATE, Control, Decision, Live, OperatorRequest, is_too_late
from recsys.events.records import EXAMPLES, SCORES, Scores, unpack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE, Consumer
from training.candidates.canary_impressions import ServedImpressions, canary_impressions, guard_impressions
from training.candidates.candidate_evidence import CandidateEvidence, evidence_numbers, new_evidence
from training.lines.line import MAIN
from training.steps.lineage import CAUGHT_UP, Lineage, last_steps, newest_step, starts_after

_READ: Final = 500
_HOUR_MS: Final = 3_600_000
_LOG: Final = logging.getLogger(__name__)
_APPROVE, _ROLLBACK = "approve", "rollback"


class RollbackImpossible(ValueError):
    """Live can't be rolled back, with the reason."""


class Promoter:
    """Reads the log; ``turn`` returns the records to append to ``control``. ``clock``: milliseconds."""

    def __init__(self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int]) -> None:
        self._log, self._config, self._rules = log, config, config.promotion
        self._labels, self._clock = features.main_labels, clock
        self._folder = Path(config.state) / "snapshots"
        self.lifecycle = Lifecycle()
        self.collected: dict[str, CandidateEvidence] = {}
        self._retrieves = features.history_length > 0
        self._adopted: int | None = None  # an epoch made for a rollback that isn't live yet
        self._approved: set[str] = set()
        self._requests: list[OperatorRequest] = []  # for rollbacks
        self._scores = Consumer(log, SCORES, [0])
        self.unread = 0  # invalid records of ``scores``
        self._served: dict[str, ServedImpressions] = {}  # by the lines of a canary and a guard

    # --- folding ---

    def fold(self, record: Control) -> None:
        """Folds a record of ``control``."""
        lives = len(self.lifecycle.lives)
        if isinstance(record, OperatorRequest):
            if record.what == _APPROVE:
                self._approved.add(record.line)
            elif record.what == _ROLLBACK:
                self._requests.append(record)
        elif isinstance(record, Live | Decision):
            self._requests = [r for r in self._requests if not answers_request(r, record)]
        self.lifecycle.fold(record)
        if isinstance(record, Decision) and record.line in self.collected:
            self._restart_or_end_evidence(record)
        if len(self.lifecycle.lives) > lives:  # all comparisons were with another live line
            self._adopted = None
            self._served.clear()
            before = self.collected.items()
            self.collected = {line: self._restarted(line, e) for line, e in before}
        for line in self.lifecycle.candidates.keys() - self.collected.keys():
            self.collected[line] = self._new_evidence(line)

    def _restart_or_end_evidence(self, decision: Decision) -> None:
        """Restarts the recent evidence of a candidate at a new stage, or ends it."""
        evidence = self.collected[decision.line]
        if evidence.ended is not None:
            return
        if decision.verdict == "promote":
            evidence.restart_recent(self._rules)
        elif decision.final or decision.verdict == "rollback":
            evidence.end()

    def _restarted(self, line: str, evidence: CandidateEvidence) -> CandidateEvidence:
        """Evidence beside a new live line. Its own candidate ends, and any that learned what it hasn't."""
        if evidence.ended is None and not self.lifecycle.candidates[line].active:
            evidence.end()
        if evidence.ended is not None:
            return evidence
        return replace(self._new_evidence(line), refused=evidence.refused)

    def _new_evidence(self, line: str) -> CandidateEvidence:
        return new_evidence(self._rules, bool(self.lifecycle.candidates[line].guards))

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by line that couldn't go on."""
        return {line: e.refused for line, e in self.collected.items() if e.refused}

    @property
    def _epoch(self) -> int:
        """The live epoch."""
        return self.lifecycle.live.epoch if self.lifecycle.live else 0

    def read(self) -> None:
        """Reads new scores and examples."""
        self._read_scores()
        self._read_served()

    def turn(self) -> list[Control]:
        """Reads new records, and decides."""
        self.read()
        decided: list[Control] = [*self._answer_request()]
        if not decided:
            judged = [state for state in self.lifecycle.active if state.stage != ARM]
            for state in sorted(judged, key=self._priority):
                decided.extend(self._decide(state))
                if decided:
                    break  # one at a time: each changes the basis of the next
        return decided

    def _priority(self, state: CandidateState) -> tuple[bool, float]:
        """Guards first. Of several proven candidates, the one that gained most."""
        gained = self.collected[state.line].compared.loss.mean
        return not state.guards, math.inf if math.isnan(gained) else -gained

    def _read_scores(self) -> None:
        for record in self._scores.drain(_READ):
            try:
                scores = unpack(record.value, Scores)
                if scores.line in self.collected:
                    evidence = self.collected[scores.line]
                    evidence.take(scores, (MAIN, self._epoch), self._rules)
            except (ValueError, *UNREADABLE) as error:  # a bad record must stop no candidate
                self.unread += 1
                _LOG.warning("scores at %d can't be read: %s", record.offset, error)

    def _read_served(self) -> None:
        """Reads engagement with the lists of a canary and of a guarded live line, beside those of the line
        that each is compared with. A guard that takes live back needs no more evidence."""
        states = [s for s in self.lifecycle.active if s.guards and s.stage == SHADOW]
        states += [self.lifecycle.canary] if self.lifecycle.canary else []
        self._served = {s.line: self._served.get(s.line) or self._impressions(s) for s in states}
        for state in states:
            evidence, served = self.collected[state.line], self._served[state.line]
            served.read()
            evidence.rates = served.rates
            if state.guards:
                evidence.not_finite = served.not_finite

    def _impressions(self, state: CandidateState) -> ServedImpressions:
        if state.guards:
            live = self.lifecycle.guarded_live(state)
            return guard_impressions(self._log, live, self._labels, self._config)
        live_version = f"{MAIN}/{self._epoch}"
        return canary_impressions(self._log, state, live_version, self._labels, self._config)

    # --- deciding ---

    def evidence(self, state: CandidateState) -> Evidence:
        """The current evidence on a candidate."""
        evidence = self.collected[state.line]
        if state.guards:
            since_ms = state.since_ms or self._clock()  # a record may have no time
            return evidence.guard_evidence(state.stage, (self._clock() - since_ms) / _HOUR_MS)
        return Evidence(
            CANARY if state.stage == TAKING_OVER else state.stage, evidence.compared,
            tuple(evidence.failed(self._rules)), evidence.served, evidence.recent_result, self._retrieves,
        )  # fmt: skip

    def opinion(self, state: CandidateState) -> str:
        """The reason of the current verdict on a candidate; decides nothing."""
        if state.stage == TAKING_OVER:
            return "its snapshot is being written"
        if state.stage == TAKING_BACK:
            return state.why
        if state.stage == ARM:
            assert state.candidate.arm is not None
            return f"answers an arm of the experiment {state.candidate.arm.experiment}"
        match self._decide(state):
            case [Decision() as decision, *_]:
                return decision.why
        return self.collected[state.line].opinion

    def _decide(self, state: CandidateState) -> list[Control]:
        if state.stage == TAKING_BACK:
            return self._take_back(state)
        evidence = self.evidence(state)
        if isinstance(evidence, GuardEvidence):
            verdict: Verdict = judge_guard(evidence, self._rules)
        else:
            verdict = judge(evidence, self._rules)
        if state.stage == TAKING_OVER and not isinstance(verdict, Rollback):
            return self._live_record_if_ready(state)
        if isinstance(verdict, Rollback):
            return [self._decision(state, verdict)]
        if isinstance(verdict, Hold):
            if verdict.final:
                return [self._decision(state, verdict)]
            self.collected[state.line].opinion = verdict.why
            return []
        return self._promote(state, verdict)

    def rollback_to_guard(self, state: CandidateState, why: str) -> Decision:
        """The decision by which a guard takes live back, for a reason from elsewhere."""
        return self._decision(state, Rollback(why, self.evidence(state)))

    def _promote(self, state: CandidateState, verdict: Promote) -> list[Control]:
        evidence, canary = self.collected[state.line], self.lifecycle.canary
        behind = newest_step(self._log, MAIN, self._epoch) - evidence.step
        if canary is not None and canary.line != state.line:
            waits = f"{canary.line} is the canary or goes live: one candidate at a time"
        elif behind > CAUGHT_UP:  # it would bring back an old state
            waits = f"{behind} steps behind: it catches up"
        elif self._rules.manual and state.line not in self._approved:
            evidence.opinion = f"waits for approval: {verdict.why}"
            return []
        else:
            return [self._decision(state, verdict)]
        evidence.opinion = f"{waits}; {verdict.why}"
        return []

    def _live_record_if_ready(self, state: CandidateState) -> list[Control]:
        """Moves the live pointer once the first snapshot of the next epoch is written."""
        steps = snapshots.complete_steps(self._folder, MAIN, state.epoch)
        if not steps:
            return []
        snapshots.sync_snapshot(self._folder, MAIN, state.epoch, steps[-1])
        return [
            Live(
                line=MAIN, epoch=state.epoch, reason=state.why, time_ms=self._clock(),
                base_step=steps[-1], parent_epoch=self._epoch, candidate=state.line,
                size=state.candidate.size, guarded=self._rules.guard_examples > 0,
            )
        ]  # fmt: skip

    def _answer_request(self) -> list[Control]:
        """Answers an operator's request to roll back a candidate or the live line; always with a record."""
        if not self._requests:
            return []
        request, now_ms = self._requests[0], self._clock()
        if is_too_late(request, timer_of(self._clock)()):
            return [_refusal(request, TOO_LATE, now_ms)]
        state = self.lifecycle.candidates.get(request.line)
        why = request.reason or "requested by an operator"
        if state is not None and state.stage == ARM:
            refusal = "it answers an arm: stop its experiment, and it ends"
            return [_refusal(request, refusal, now_ms)]
        if state is not None and state.active:
            evidence = self.evidence(state)
            if not state.guards:
                return [self._decision(state, Rollback(why, evidence))]
            ended = self._decision(state, Hold(True, why, evidence))  # live stays
            return [msgspec.structs.replace(ended, to=_ROLLBACK)]
        live = f"{MAIN}/{self._epoch}"
        if request.line != live:
            over = f"{request.line} is over, or not known" if request.line else "it names no line"
            return [_refusal(request, f"{over}; what is live is {live}", now_ms)]
        try:
            return [self._rollback_record(why)]
        except (RollbackImpossible, snapshots.NoSnapshot, OSError) as error:
            return [_refusal(request, f"{request.line} can't go back: {error}", now_ms)]

    def _take_back(self, state: CandidateState) -> list[Control]:
        """Rolls live back to the guard's epoch; ends the guard if that is impossible."""
        try:
            return [self._rollback_record(f"{state.line}: {state.why}")]
        except OSError as error:  # a full disk, an unavailable folder: it may recover
            self.collected[state.line].opinion = f"waits: {error}"
            _LOG.warning("%s can't take %s/%d back yet: %s", state.line, MAIN, self._epoch, error)
            return []
        except (RollbackImpossible, snapshots.NoSnapshot) as error:
            why = f"{state.why}; but {MAIN}/{self._epoch} can't go back: {error}"
            return [self._decision(state, Hold(True, why, self.evidence(state)))]

    def _rollback_record(self, why: str) -> Live:
        """The live record before the newest promotion. Raises RollbackImpossible, NoSnapshot, OSError."""
        lives = self.lifecycle.lives
        if not lives or not lives[-1].candidate:
            began = f", and it began with: {lives[-1].reason}" if lives[1:] else ""
            raise RollbackImpossible(f"only a promotion can be taken back{began}")
        before = lives[-2].epoch
        steps = snapshots.complete_steps(self._folder, MAIN, before)
        if not steps:
            raise RollbackImpossible(f"no snapshot of epoch {before} is left")
        self._check_available(before, steps[-1])
        epoch = self.next_epoch() if self._adopted is None else self._adopted
        snapshots.adopt(self._folder, MAIN, (before, steps[-1]), epoch)
        self._adopted = epoch  # until it is live: a retry after a log failure makes no second one
        return Live(
            line=MAIN, epoch=epoch, reason=why, time_ms=self._clock(), base_step=steps[-1],
            parent_epoch=before, size=self.lifecycle.size(MAIN, before),
        )  # fmt: skip

    def _check_available(self, epoch: int, since: int) -> None:
        """Raises RollbackImpossible if the log no longer has the examples to learn again."""
        lives = [live for live in self.lifecycle.lives if live.epoch <= epoch]
        starts = starts_after(Lineage(self._log, MAIN, lives), since)
        gone = {p for p, start in starts.items() if start < self._log.begin(EXAMPLES, p)}
        if gone:
            raise RollbackImpossible(
                f"the log no longer has the examples after step {since} of epoch {epoch} (partitions "
                f"{sorted(gone)})"
            )

    def _decision(self, state: CandidateState, verdict: Verdict) -> Decision:
        to = verdict.to if isinstance(verdict, Promote) else ""
        return Decision(
            line=state.line, verdict=type(verdict).__name__.lower(), to=to,
            epoch=self.next_epoch() if to not in ("", CANARY) else 0,
            share=self._rules.canary_share if to == CANARY else 0.0,
            final=isinstance(verdict, Hold) and verdict.final, why=verdict.why,
            evidence=evidence_numbers(verdict.evidence), time_ms=self._clock(),
        )  # fmt: skip

    def next_epoch(self) -> int:
        """An epoch number that was never written."""
        used = [live.epoch for live in self.lifecycle.lives]
        used += [state.epoch for state in self.lifecycle.candidates.values()]
        used += [unlearning.epoch for unlearning in self.lifecycle.unlearnings.values()]
        used += [step.epoch for step in last_steps(self._log)]
        return 1 + max([*used, *snapshots.epochs(self._folder, MAIN)])


def answers_request(request: OperatorRequest, record: Live | Decision) -> bool:
    """Whether a record answers a rollback request: it is granted once, also when folded again. An epoch that
    goes on from the requested one, as after unlearning, is no rollback of it."""
    if isinstance(record, Live):
        goes_on = request.line == f"{record.line}/{record.parent_epoch}"
        return not record.candidate and request.line.startswith(f"{record.line}/") and not goes_on
    return record.line == request.line and (record.verdict == "rollback" or record.to == _ROLLBACK)


def _refusal(request: OperatorRequest, why: str, now_ms: int) -> Decision:
    return Decision(line=request.line, verdict="hold", to=_ROLLBACK, why=why, time_ms=now_ms)
