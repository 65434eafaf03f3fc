"""The joiner as a part: one joiner per partition of ``events``, its examples appended to the same partition.

Exactly once, by its own output: after a restart the joiners go back to their snapshot and are fed again from
the offset that belongs to it; what comes out is the same, with the same sequence numbers, and what stands in
``examples`` already is not appended again. An append that failed halfway is treated in the same way.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from recsys.blueprint import feature_set
from recsys.config import Config, JoinConfig
from recsys.consumer import Consumer
from recsys.events import Rejected, decode
from recsys.features import FeatureSet
from recsys.log import Append, Log, LogUnavailable
from recsys.loops import Stop
from recsys.open_log import open_log
from recsys.part_state import PartState
from recsys.records import DEAD_LETTERS, EVENTS, EXAMPLES, DeadLetter, Example, pack, unpack
from training.joiner import Joiner
from training.sequencer_loop import wall_ms

PART: Final = "joiner"
_READ: Final = 500  # records of each partition in a turn
_SAVE_EVERY_MS: Final = 5_000
_SAVE_SHARE: Final = 0.05  # of the time at most: the state holds an hour's impressions
_LOG: Final = logging.getLogger(__name__)
_BACK: Final = 1_000  # examples read at once, backwards


class _Packed(msgspec.Struct):
    """The snapshot's blob: the joiners' states by partition."""

    features: str
    joiners: dict[int, bytes]


class _Sequence(msgspec.Struct):
    """All that is read of an example to know whether it was appended."""

    sequence: int


@dataclass
class _Place:
    """Where the loop goes on from: joiners, and what of their output is there already."""

    joiners: dict[int, Joiner]
    offsets: dict[int, int]
    appended: dict[int, set[int]] = field(default_factory=dict)  # sequences
    lettered: set[tuple[int, int]] = field(default_factory=set)  # (partition, offset)


class JoinerLoop:
    """The joiners of all partitions over a log. ``state`` keeps their snapshot; without it they start afresh.

    ``clock`` (milliseconds) says when to save; the join itself knows event time only.
    """

    def __init__(
        self,
        log: Log,
        config: Config,
        features: FeatureSet,
        clock: Callable[[], int],
        state: PartState | None = None,
    ) -> None:
        self._log, self._config, self._features = log, config, features
        self._clock, self._state = clock, state
        self._partitions = list(range(log.partitions(EVENTS)))
        self._due_ms = clock() + _SAVE_EVERY_MS
        self.unreadable = 0
        self.skipped = 0  # events passed over for want of a snapshot and of the beginning
        self._restore()

    @property
    def offsets(self) -> dict[int, int]:
        """The next offset of ``events`` to read, by partition."""
        return dict(self._consumer.offsets)

    def counts(self) -> dict[str, int]:
        """What the joiners counted since the log began, and what couldn't be read since the start."""
        total = {"unreadable": self.unreadable, "skipped": self.skipped}
        for joiner in self._place.joiners.values():
            for name, count in joiner.counts.items():
                total[name] = total.get(name, 0) + count
        return total

    def pending(self) -> int:
        """Impressions held."""
        return sum(joiner.pending() for joiner in self._place.joiners.values())

    def turn(self) -> int:
        """Joins what is there; returns how many events. When it returns, their examples are appended.

        After LogUnavailable it has gone back to its snapshot: call it again.
        """
        try:
            return self._turn()
        except LogUnavailable:
            self._restore()
            raise

    def save(self) -> None:
        """Takes a snapshot; the log then keeps what comes after the one before it."""
        if self._state is None:
            return
        started_ms = self._clock()
        joiners = {p: joiner.pack() for p, joiner in self._place.joiners.items()}
        blob = msgspec.msgpack.encode(_Packed(self._features.digest, joiners))
        held = self._state.save(self._log.id, {EVENTS: self.offsets}, blob)
        for partition, offset in held[EVENTS].items():
            self._log.hold(PART, EVENTS, partition, offset)
        now_ms = self._clock()
        self._due_ms = now_ms + max(_SAVE_EVERY_MS, int((now_ms - started_ms) / _SAVE_SHARE))

    def _turn(self) -> int:
        examples: list[Append] = []
        letters: list[Append] = []
        read = self._consumer.poll(_READ)
        for partition, record in read:
            try:
                event = decode(record.value)
            except Rejected as error:
                self._reject(letters, partition, record.offset, record.value, str(error))
                continue
            for example in self._place.joiners[partition].feed(record.offset, event):
                self._emit(examples, example)
        if examples:
            self._log.append(EXAMPLES, examples)
        if letters:
            self._log.append(DEAD_LETTERS, letters)
        if self._clock() >= self._due_ms:
            self.save()
        return len(read)

    def _emit(self, appends: list[Append], example: Example) -> None:
        appended = self._place.appended[example.partition]
        if example.sequence in appended:
            appended.remove(example.sequence)
        else:
            key = str(example.user_id).encode()
            appends.append(Append(example.partition, key, pack(example)))

    def _reject(
        self, appends: list[Append], partition: int, offset: int, raw: bytes, reason: str
    ) -> None:
        self.unreadable += 1
        if (partition, offset) in self._place.lettered:
            return
        letter = DeadLetter(
            topic=EVENTS,
            partition=partition,
            offset=offset,
            reason=reason[:500],
            raw=raw,
            time_ms=self._place.joiners[partition].watermark_ms,
        )
        appends.append(Append(0, b"", pack(letter)))

    def _restore(self) -> None:
        """Goes to the snapshot, and looks up what was put out after it."""
        labels, join = self._features.schema.labels, self._join_config()
        place = _Place({p: Joiner(p, labels, join) for p in self._partitions}, {})
        saved = self._state.load(self._log.id) if self._state is not None else None
        if self._state is not None and self._state.note:
            _LOG.warning("%s", self._state.note)
        if saved is not None:
            packed = msgspec.msgpack.decode(saved.blob, type=_Packed)
            if packed.features != self._features.digest:
                raise ValueError(
                    f"the joiner's snapshot is of feature set {packed.features}, expected "
                    f"{self._features.digest}: use another state folder for another feature set"
                )
            for partition, joiner in place.joiners.items():
                joiner.restore(packed.joiners[partition])
            place.offsets = dict(saved.offsets[EVENTS])
        for partition, joiner in place.joiners.items():
            place.appended[partition] = sequences_after(self._log, partition, joiner.sequence)
        if saved is None:
            self._begin_without_snapshot(place)
        place.lettered = lettered(self._log)
        self._place = place
        self._consumer = Consumer(self._log, EVENTS, self._partitions, place.offsets)

    def _join_config(self) -> JoinConfig:
        """The schema may say too that all that is served is shown: it goes with the data."""
        join = self._config.join
        return replace(
            join, all_shown=join.all_shown or self._features.schema.shown_by == "impression"
        )

    def _begin_without_snapshot(self, place: _Place) -> None:
        """From the beginning. Where that is gone and there are examples already, sequence numbers can't be
        found again: then from the end, and what lies between counts as skipped."""
        for partition, joiner in place.joiners.items():
            begin, end = self._log.begin(EVENTS, partition), self._log.end(EVENTS, partition)
            place.offsets[partition] = begin
            if begin > 0 and place.appended[partition]:
                joiner.sequence = max(place.appended[partition])
                place.appended[partition] = set()
                place.offsets[partition] = end
                self.skipped += end - begin


def sequences_after(log: Log, partition: int, sequence: int) -> set[int]:
    """The sequence numbers above ``sequence`` that stand in a partition of ``examples``."""
    decoder = msgspec.msgpack.Decoder(_Sequence)
    found: set[int] = set()
    begin, stop = log.begin(EXAMPLES, partition), log.end(EXAMPLES, partition)
    while stop > begin:
        start = max(begin, stop - _BACK)
        block = []
        for record in log.read(EXAMPLES, partition, start, stop - start):
            if record.offset < stop:
                try:
                    block.append(decoder.decode(record.value).sequence)
                except msgspec.MsgspecError:
                    continue
        found.update(number for number in block if number > sequence)
        if block and max(block) <= sequence:
            break
        stop = start
    return found


def lettered(log: Log) -> set[tuple[int, int]]:
    """(partition, offset) of the events that have a dead letter."""
    found, offset = set(), log.begin(DEAD_LETTERS, 0)
    while records := log.read(DEAD_LETTERS, 0, offset):
        for record in records:
            letter = unpack(record.value, DeadLetter)
            if letter.topic == EVENTS:
                found.add((letter.partition, letter.offset))
        offset = records[-1].offset + 1
    return found


def run(config: Config, stop: Stop) -> None:
    """The part: joins until asked to stop, then takes a last snapshot."""
    log = open_log(config)
    loop = JoinerLoop(log, config, feature_set(config), wall_ms, PartState(config.state, PART))
    beat, told = stop.heartbeat, loop.counts()
    while not stop.is_set():
        try:
            moved = loop.turn()
        except LogUnavailable as error:
            _LOG.warning("log unavailable, trying again: %s", error)
            beat.add("retries")
            stop.wait(0.5)
            continue
        beat.add("events", moved)
        counts = loop.counts()
        for name, count in counts.items():
            beat.add(name, max(0, count - told[name]))
        told = counts
        beat.gauge("pending", loop.pending())
        beat.offsets(EVENTS, [offset for _, offset in sorted(loop.offsets.items())])
        if not moved:
            log.wait(EVENTS, 0.05)
    loop.save()
    log.close()
