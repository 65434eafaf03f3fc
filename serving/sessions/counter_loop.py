"""The part that counts what all viewers did with items, and tells the replicas through ``item_state``.

What it tells is absolute, so telling it twice does no harm: the fold's own snapshot may be a little old. All
counters are told again now and then, and what was told before is trimmed, so that a new replica reads little.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Impression
from recsys.events.records import EVENTS, ITEM_STATE, ItemState, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.item_counters import ItemCounters
from recsys.log.protocol import Append, Log, LogUnavailable
from recsys.process.log_consumer import hold_what_is_left
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from recsys.process.part_snapshot import PartState
from serving.sessions.event_reader import EventReader

NAME: Final = "counters"
_TELL_EVERY_MS: Final = 100
_SAVE_EVERY_MS: Final = 5_000
_SAVE_SHARE: Final = 0.05  # of the time at most goes into saving, however much there is
_KEYS: Final = 1_000  # of one record
_AGAIN_AFTER: Final = 5_000  # records, then all counters are told again
_COUNTERS: Final = 2_000_000  # rows: those longest untouched go when there are twice as many
_LOG: Final = logging.getLogger(__name__)


class _Counted(msgspec.Struct):
    """What a snapshot says beside the offsets: the counters, and the requests whose context and segment
    are remembered."""

    features: str
    keys: bytes
    values: bytes
    last_ms: bytes
    requests: list[tuple[str, int]]
    segments: list[tuple[str, int]] = []


class CounterLoop:
    """The fold of ``events`` into item counters. ``state`` keeps its snapshot; without it, it has none.

    Raises LogLost where the snapshot is of another log. One that can't be read is passed over: for the one
    before it, or for what the log still holds.
    """

    def __init__(
        self,
        log: Log,
        features: FeatureSet,
        state: PartState | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._log, self._features, self._now_ms = log, features, now_ms
        self._state = state
        self.events = EventReader(log, features)
        self.fold = ItemCounters(features)
        self._told_ms = self._saved_ms = 0
        self._save_every_ms = _SAVE_EVERY_MS
        self._told_all = self._told_all_before = -1  # where in item_state that began
        self._records = 0  # told since
        self.events.seek(self._restore())

    def turn(self, limit: int = 1_000) -> int:
        """Folds one batch, and tells and saves what is due; returns how many records it moved on."""
        before = sum(self.events.offsets)
        for _, _, event in self.events.read(limit):
            if isinstance(event, Impression):
                self.fold.impression(event, self.events.shown_keys(event))
            elif isinstance(event, Engagement):
                self.fold.engagement(event, self.events.keys_of(event.item_id))
        if len(self.fold.counters) > 2 * _COUNTERS:
            self.fold.counters.keep_newest(_COUNTERS)
        now_ms = self._now_ms()
        if now_ms - self._told_ms >= _TELL_EVERY_MS:
            self._told_ms = now_ms
            self.tell()
        if now_ms - self._saved_ms >= self._save_every_ms:
            self.save()
        return sum(self.events.offsets) - before

    def tell(self) -> None:
        """Appends the counters that changed; all of them at first and when many records were told since."""
        if self._told_all < 0 or self._records >= _AGAIN_AFTER:
            self._tell_all()
            return
        self._append(self.fold.take_changed())

    def save(self) -> None:
        """Takes a snapshot; the log then keeps what comes after the one before it."""
        if self._state is None:
            return
        started = time.monotonic()
        keys, values, last_ms = self.fold.counters.export()
        counted = _Counted(
            self._features.digest,
            keys.tobytes(),
            values.tobytes(),
            last_ms.tobytes(),
            self.fold.requests(),
            self.fold.segments(),
        )
        offsets = {EVENTS: dict(enumerate(self.events.offsets))}
        held = self._state.save(self._log.id, offsets, msgspec.msgpack.encode(counted))
        # A snapshot that wasn't taken up may reach back behind what is left of the log.
        hold_what_is_left(self._log, NAME, EVENTS, held[EVENTS])
        self._saved_ms = self._now_ms()
        took_ms = (time.monotonic() - started) * 1000
        self._save_every_ms = max(_SAVE_EVERY_MS, int(took_ms / _SAVE_SHARE))

    def _tell_all(self) -> None:
        """All counters anew. What was told before the *last* such time goes, so that slow readers have it."""
        begins = self._log.end(ITEM_STATE, 0)
        self.fold.take_changed()
        keys, _, _ = self.fold.counters.export()
        self._append(keys.tolist(), whole=True)
        self._told_all_before, self._told_all = self._told_all, begins
        self._records = 0
        if self._told_all_before >= 0:
            self._log.trim(ITEM_STATE, 0, self._told_all_before)

    def _append(self, keys: Sequence[int], whole: bool = False) -> None:
        for start in range(0, len(keys), _KEYS):
            found, values, last_ms = self.fold.counters.export(keys[start : start + _KEYS])
            state = ItemState(
                offsets=list(self.events.offsets),
                keys=found.tobytes(),
                values=values.tobytes(),
                last_ms=last_ms.tobytes(),
                part=start // _KEYS if whole else 0,
                parts=-(-len(keys) // _KEYS) if whole else 0,
            )
            self._log.append(ITEM_STATE, [Append(0, b"", pack(state))])
            self._records += 1

    def _restore(self) -> list[int] | None:
        """Loads the snapshot and returns its offsets; None where there is none to go on from."""
        if self._state is None:
            return None
        try:
            saved = self._state.load(self._log.id)
            counted = saved and msgspec.msgpack.decode(saved.blob, type=_Counted)
        except (ValueError, msgspec.MsgspecError) as error:
            _LOG.warning("counting again from where the log begins: %s", error)
            return None
        if self._state.note:
            _LOG.warning("%s", self._state.note)
        if not saved or not counted or counted.features != self._features.digest:
            return None  # with other features it counts other things: begins anew
        keys = np.frombuffer(counted.keys, np.int64)
        values = np.frombuffer(counted.values, np.float32).reshape(-1, self.fold.counters.columns)
        self.fold.counters.set(keys, values, np.frombuffer(counted.last_ms, np.int64))
        self.fold.remember(counted.requests, counted.segments)
        return [saved.offsets[EVENTS][p] for p in range(len(saved.offsets[EVENTS]))]


def run(config: Config, stop: Stop) -> None:
    """The part: turns until it is asked to stop, then saves. After an error it begins from its snapshot."""
    log = open_log(config)
    state, features = PartState(config.state, NAME), feature_set(config)
    loop: CounterLoop | None = None
    try:
        while not stop.is_set(starting=loop is None):
            try:
                loop = loop or CounterLoop(log, features, state)
                moved = loop.turn()
            except LogUnavailable as error:
                loop = None
                stop.heartbeat.add("failed_turns")
                _LOG.warning("turn failed, beginning again", extra={"error": str(error)})
                stop.wait(0.3, starting=True)
                continue
            stop.heartbeat.add("events", moved)
            stop.heartbeat.offsets(EVENTS, loop.events.offsets)
            stop.heartbeat.gauge("counters", len(loop.fold.counters))
            if not moved:
                log.wait(EVENTS, 0.05)
        if loop is not None:
            loop.tell()
            loop.save()
    finally:
        log.close()
