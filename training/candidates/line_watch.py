"""The director's watch over the live line's own lists: feeds the guard of the line from the log, and turns a
fault into records of ``control``, by which the line before serves again.

A promoted line goes back to what it replaced while that still learns beside it, which loses nothing; any
other returns to its own state from before the fault, and what it learned since is left out. Item counters
stay. What a viewer in quarantine does, and what bounds of influence leave out, is no evidence. It keeps no
state but the holds on ``control``: after a restart the line is watched anew, by bounds of a young system.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.line_guard import LineFault, LineGuard
from recsys.config.system_config import Config
from recsys.events.control_records import Control, LineHold, Live, Unlearning
from recsys.events.event_types import Engagement, Verdict
from recsys.events.hashing import Id
from recsys.events.records import CLICK_LIST, EVENTS
from recsys.features.feature_set import FeatureSet
from recsys.features.influence import Influence
from recsys.log.protocol import Log, LogLost
from recsys.process.log_consumer import Consumer, decoded
from recsys.process.part_snapshot import quarantined_users
from training.candidates.promoter import Promoter
from training.deletion.live_unlearning import ranges_since
from training.lines.control import ControlReader
from training.lines.line import MAIN
from training.steps.delta_reader import LearnedSteps

_LOG: Final = logging.getLogger(__name__)
PAUSE_MS: Final = 6 * 3_600_000  # after a hold, until the next
ROLLBACK, REWIND = "rollback", "rewind"


class _Item(msgspec.Struct, gc=False):
    item_id: Id


class _Stamp(msgspec.Struct, gc=False):
    line: str
    epoch: int


class _List(msgspec.Struct, tag="impression", tag_field="type", gc=False):
    time_ms: int
    request_id: str
    user_id: Id
    items: list[_Item]
    stamp: _Stamp | None = None
    degraded: list[str] = []


class LineWatch:
    """``turn`` returns the records to append. ``holds``: by kind, on ``control``."""

    def __init__(self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int]) -> None:
        self._log, self._clock = log, clock
        self._is_on, self._label = config.promotion.line_guard, features.schema.labels[0]
        self._guard = LineGuard()
        self._influence = Influence(config.bounds, kinds=features.schema.kinds)
        self._quarantined = _quarantined(config.state, log) if self._is_on else set[str]()
        ends = {p: log.end(EVENTS, p) for p in range(log.partitions(EVENTS))}
        self._events = Consumer(log, EVENTS, list(ends), ends)
        control = ControlReader(log)
        control.turn()
        self._learned = LearnedSteps(log, control, MAIN, control.live_epoch(MAIN))
        self.holds = Counter[str]()
        self.lost = 0  # times that retention passed the watch

    def fold(self, record: Control) -> None:
        """Folds a record of ``control``."""
        if isinstance(record, LineHold):
            self.holds[record.kind] += 1

    def turn(self, promoter: Promoter) -> list[Control]:
        """Reads new events and steps; decides."""
        live = promoter.lifecycle.live
        if not self._is_on or live is None:
            return []
        if self._learned.follow():
            self._guard.restart()
        faults = [fault for fault in (self._read_events(live), self._read_steps()) if fault]
        if not faults or not self._may_hold(promoter):
            return []
        return self._held(faults[0], live, promoter)

    def _read_events(self, live: Live) -> LineFault | None:
        """Feeds new events; returns the first fault."""
        first: LineFault | None = None
        try:
            records = self._events.drain()
            for _, event in decoded(records, _List | Engagement | Verdict):
                user = str(event.user_id)
                if isinstance(event, Verdict):
                    put = self._quarantined.add if event.quarantined else self._quarantined.discard
                    put(user)
                elif user in self._quarantined:
                    continue
                elif isinstance(event, _List):
                    version = event.stamp and (event.stamp.line, event.stamp.epoch)
                    is_own = version == (live.line, live.epoch) and not event.degraded
                    if is_own and not event.request_id.startswith(CLICK_LIST):
                        items = [item.item_id for item in event.items]
                        self._guard.serve(event.user_id, event.request_id, items, event.time_ms)
                elif event.kind == self._label and event.attributed and self._influence.counts(event):
                    engaged = event.user_id, event.item_id, event.time_ms, event.request_id
                    fault = self._guard.engage(*engaged)
                    first = first or fault
        except LogLost:  # some events are missed
            self.lost += 1
            for partition in self._events.offsets:
                self._events.offsets[partition] = self._log.end(EVENTS, partition)
        return first

    def _read_steps(self) -> LineFault | None:
        first: LineFault | None = None
        for step in self._learned.read():
            positives = step.metrics.get(f"happened.{self._label}", 0.0)
            examples = step.metrics.get("examples", 0.0)
            fault = self._guard.learn(examples, positives, step.time_ms)
            first = first or fault
        return first

    def _may_hold(self, promoter: Promoter) -> bool:
        lifecycle = promoter.lifecycle
        if any(state.moves_live for state in lifecycle.active) or lifecycle.unlearnings.pending is not None:
            return False
        hold = lifecycle.hold
        return hold is None or self._clock() - hold.time_ms >= PAUSE_MS

    def _held(self, fault: LineFault, live: Live, promoter: Promoter) -> list[Control]:
        """The hold, with the record that lets another line serve if there is one."""
        now_ms, decided = self._clock(), list[Control]()
        state = _guard_of(live, promoter)
        if state is not None:
            action = ROLLBACK
            decided.append(promoter.rollback_to_guard(state, fault.reason))
        elif fault.was_well:
            action = REWIND
            left_out = ranges_since(self._log, promoter.lifecycle.lives, fault.since_ms)
            decided.append(
                Unlearning(
                    id=f"hold-{live.epoch}-{now_ms}", rewind_ms=fault.since_ms, left_out=left_out,
                    why=fault.reason, time_ms=now_ms,
                )
            )  # fmt: skip
        else:
            action = ""
        hold = LineHold(
            line=live.line, epoch=live.epoch, kind=fault.kind, reason=fault.reason, action=action,
            since_ms=fault.since_ms, evidence=fault.evidence, time_ms=now_ms,
        )  # fmt: skip
        return [hold, *decided]


def _quarantined(state: str, log: Log) -> set[str]:
    """Users in quarantine by the counters' newest snapshot; none where it can't be read."""
    try:
        return quarantined_users(state, log.id)
    except (LogLost, ValueError, OSError) as error:
        _LOG.warning("users in quarantine aren't known until their next verdict: %s", error)
        return set()


def _guard_of(live: Live, promoter: Promoter) -> LineState | None:
    """The line that can take live back to what it replaced, if there is one."""
    states = promoter.lifecycle.active
    return next((s for s in states if s.can_take_back(live, promoter.evidence(s))), None)
