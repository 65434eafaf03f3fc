"""Decides on candidates: a fold over ``control``, ``scores`` and ``examples`` that returns records to
append."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from experiments.evidence.line_evidence import LineEvidence
from experiments.evidence.verdict import (
    ALL,
    CANARY,
    Evidence,
    GoLive,
    Hold,
    Promote,
    Rollback,
    TakeBack,
    Verdict,
)
from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.storage import snapshots
from recsys.clock import timer_of
from recsys.config.system_config import Config
from recsys.events.control_records import TOO_LATE, Control, Decision, Live, OperatorRequest, is_too_late
from recsys.events.records import SCORES, Scores, unpack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE, Consumer
from training.candidates.live_pointer import LivePointer, RollbackImpossible
from training.candidates.served_impressions import ServedImpressions
from training.lines.line import MAIN
from training.steps.lineage import CAUGHT_UP, newest_step

_READ: Final = 500
_HOUR_MS: Final = 3_600_000
_LOG: Final = logging.getLogger(__name__)
_APPROVE, _ROLLBACK = "approve", "rollback"


class Promoter:
    """Reads the log; ``turn`` returns the records to append to ``control``. ``clock``: milliseconds."""

    def __init__(self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int]) -> None:
        self._log, self._config, self._rules = log, config, config.promotion
        self._labels, self._clock = features.main_labels, clock
        self.lifecycle = Lifecycle()
        self.pointer = LivePointer(log, Path(config.state) / "snapshots", self.lifecycle, clock)
        self.collected: dict[str, LineEvidence] = {}
        self._retrieves = features.history_length > 0
        self._approved: set[str] = set()
        self._requests: list[OperatorRequest] = []  # for rollbacks
        self._scores = Consumer(log, SCORES, [0])
        self.unread = 0  # invalid records of ``scores``
        self._served: dict[str, ServedImpressions] = {}  # by the lines whose lists are compared

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
            evidence.restart_recent()
        elif decision.final or decision.verdict == "rollback":
            evidence.end()

    def _restarted(self, line: str, evidence: LineEvidence) -> LineEvidence:
        """Evidence beside a new live line. Its own candidate ends, and any that learned what it hasn't."""
        if evidence.ended is None and not self.lifecycle.candidates[line].active:
            evidence.end()
        if evidence.ended is not None:
            return evidence
        restarted = self._new_evidence(line)
        restarted.refused = evidence.refused
        return restarted

    def _new_evidence(self, line: str) -> LineEvidence:
        return self.lifecycle.candidates[line].new_evidence(self._rules, self._retrieves)

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
            for state in sorted(self.lifecycle.active, key=self._priority):
                decided.extend(self._decide(state))
                if decided:
                    break  # one at a time: each changes the basis of the next
        return decided

    def _priority(self, state: LineState) -> tuple[int, float]:
        """By kind, guards first. Of several proven candidates, the one that gained most."""
        gained = self.collected[state.line].compared.loss.mean
        return state.priority, math.inf if math.isnan(gained) else -gained

    def _read_scores(self) -> None:
        for record in self._scores.drain(_READ):
            try:
                scores = unpack(record.value, Scores)
                if scores.line in self.collected:
                    evidence = self.collected[scores.line]
                    evidence.take(scores, (MAIN, self._epoch))
            except (ValueError, *UNREADABLE) as error:  # a bad record must stop no candidate
                self.unread += 1
                _LOG.warning("scores at %d can't be read: %s", record.offset, error)

    def _read_served(self) -> None:
        """Reads engagement with the lists of lines that are compared by them."""
        live, served = f"{MAIN}/{self._epoch}", dict[str, ServedImpressions]()
        for state in self.lifecycle.active:
            lines = state.served_lines(live, self._rules)
            if lines is None:
                continue
            impressions = self._served.get(state.line) or ServedImpressions(
                self._log, lines, self._labels, self._config
            )
            served[state.line] = impressions
            impressions.read()
            evidence = self.collected[state.line]
            evidence.rates, evidence.not_finite = impressions.rates, impressions.not_finite
        self._served = served

    # --- deciding ---

    def evidence(self, state: LineState) -> Evidence:
        """The current evidence on a line."""
        now_ms = self._clock()
        since_ms = state.since_ms or now_ms  # a record may have no time
        return self.collected[state.line].evidence((now_ms - since_ms) / _HOUR_MS)

    def opinion(self, state: LineState) -> str:
        """The reason of the current verdict on a line; decides nothing."""
        verdict = state.judge(self.evidence(state), self._rules)
        waits = self._waits(state, verdict) if isinstance(verdict, Promote) else ""
        return waits or verdict.why

    def _decide(self, state: LineState) -> list[Control]:
        """Records that follow from the verdict on a line."""
        verdict = state.judge(self.evidence(state), self._rules)
        match verdict:
            case TakeBack():
                return self._take_back(state, verdict)
            case GoLive():
                live = self.pointer.first_of(state, self._rules.guard_examples > 0)
                return [] if live is None else [live]
            case Promote() if self._waits(state, verdict):
                return []
            case Hold(final=False):
                return []
        return [self._decision(state, verdict)]

    def rollback_to_guard(self, state: LineState, why: str) -> Decision:
        """The decision by which a guard takes live back, for a reason from elsewhere."""
        return self._decision(state, Rollback(why, self.evidence(state)))

    def _waits(self, state: LineState, verdict: Promote) -> str:
        """Why a promotion isn't made now; empty if it is."""
        evidence, canary = self.collected[state.line], self.lifecycle.canary
        behind = newest_step(self._log, MAIN, self._epoch) - evidence.step
        if canary is not None and canary.line != state.line:
            waits = f"{canary.line} is the canary or goes live: one candidate at a time"
        elif behind > CAUGHT_UP:  # it would bring back an old state
            waits = f"{behind} steps behind: it catches up"
        elif self._rules.manual and state.line not in self._approved:
            return f"waits for approval: {verdict.why}"
        else:
            return ""
        return f"{waits}; {verdict.why}"

    def _answer_request(self) -> list[Control]:
        """Answers an operator's request to roll back a line beside live or the live one; always with a
        record."""
        if not self._requests:
            return []
        request, now_ms = self._requests[0], self._clock()
        if is_too_late(request, timer_of(self._clock)()):
            return [_refusal(request, TOO_LATE, now_ms)]
        state = self.lifecycle.candidates.get(request.line)
        why = request.reason or "requested by an operator"
        if state is not None and state.active:
            verdict = state.requested_rollback(why, self.evidence(state))
            if not isinstance(verdict, Hold):
                return [self._decision(state, verdict)]
            if not verdict.final:
                return [_refusal(request, verdict.why, now_ms)]
            return [msgspec.structs.replace(self._decision(state, verdict), to=_ROLLBACK)]
        live = f"{MAIN}/{self._epoch}"
        if request.line != live:
            over = f"{request.line} is over, or not known" if request.line else "it names no line"
            return [_refusal(request, f"{over}; what is live is {live}", now_ms)]
        try:
            return [self.pointer.back(why)]
        except (RollbackImpossible, snapshots.NoSnapshot, OSError) as error:
            return [_refusal(request, f"{request.line} can't go back: {error}", now_ms)]

    def _take_back(self, state: LineState, verdict: TakeBack) -> list[Control]:
        """Rolls live back to what it replaced; ends the guard if that is impossible."""
        try:
            return [self.pointer.back(f"{state.line}: {verdict.why}")]
        except OSError as error:  # a full disk, an unavailable folder: it may recover
            _LOG.warning("%s can't take %s/%d back yet: %s", state.line, MAIN, self._epoch, error)
            return []
        except (RollbackImpossible, snapshots.NoSnapshot) as error:
            why = f"{verdict.why}; but {MAIN}/{self._epoch} can't go back: {error}"
            return [self._decision(state, Hold(True, why, verdict.evidence))]

    def _decision(self, state: LineState, verdict: Verdict) -> Decision:
        to = verdict.to if isinstance(verdict, Promote) else ""
        return Decision(
            line=state.line, verdict=type(verdict).__name__.lower(), to=to,
            epoch=self.pointer.next_epoch() if to == ALL else 0,
            share=self._rules.canary_share if to == CANARY else 0.0,
            final=isinstance(verdict, Hold) and verdict.final, why=verdict.why,
            evidence=verdict.evidence.numbers(), time_ms=self._clock(),
        )  # fmt: skip


def answers_request(request: OperatorRequest, record: Live | Decision) -> bool:
    """Whether a record answers a rollback request: it is granted once, also when folded again. An epoch that
    goes on from the requested one, as after unlearning, is no rollback of it."""
    if isinstance(record, Live):
        goes_on = request.line == f"{record.line}/{record.parent_epoch}"
        return not record.candidate and request.line.startswith(f"{record.line}/") and not goes_on
    return record.line == request.line and (record.verdict == "rollback" or record.to == _ROLLBACK)


def _refusal(request: OperatorRequest, why: str, now_ms: int) -> Decision:
    return Decision(line=request.line, verdict="hold", to=_ROLLBACK, why=why, time_ms=now_ms)
