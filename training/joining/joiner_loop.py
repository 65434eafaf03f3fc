"""Runs the joiners as a part: one per partition of ``events``, appending to the same partition of
``examples``.

Exactly once, by its own output: after a restart the joiners return to their snapshot and read from its offset
again; sequence numbers that ``examples`` already contains aren't appended again. An engagement after the
window reads its impression from the log again, so the log retains everything after the oldest pending
impression of the snapshot.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Final

import msgspec

from recsys.clock import is_due, machine_ms, machine_ns, timer_of
from recsys.config.system_config import Config
from recsys.events.event_types import Impression, Rejected, decode
from recsys.events.records import EVENTS, EXAMPLES, ErasedExample, Example, Forget, non_example, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.influence import Influence
from recsys.log.compression import compressed
from recsys.log.protocol import Append, JumpReader, Log, LogLost, Record, read_range
from recsys.observability.recent_delays import RecentDelays
from recsys.observability.tracer import open_tracer
from recsys.process.clock_file import clock_of
from recsys.process.fold import PartFold, follow
from recsys.process.latency_tuning import gc_paused
from recsys.process.log_consumer import Consumer, DeadLetters, decoded, hold_available
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.part_snapshot import PartState, ShareState
from recsys.process.worker_share import WHOLE, Share, leased
from training.joining.join_trace import JoinTrace
from training.joining.joiner import Joined, Joiner
from training.joining.spill import Spill, SpillLost

PART: Final = "joiner"
_READ: Final = 500  # records of each partition in a turn
_SAVE_EVERY_MS: Final = 5_000
_SAVE_SHARE: Final = 0.05  # of the time at most: the state covers an hour's impressions
_JOIN_SETTINGS: Final = ("window_s", "horizon_s", "negatives")
_P95: Final = "view_to_example_p95_ms"
_LOG: Final = logging.getLogger(__name__)
_BACK: Final = 1_000  # examples read at once, backwards


class _Packed(msgspec.Struct):
    """Snapshot blob: the joiners' states by partition, and the settings that decide which examples come out
    of which events."""

    features: str
    joiners: dict[int, bytes]
    settings: dict[str, float | bool]


class _Engaged(msgspec.Struct, tag="engagement"):
    """Decodes only the request of an engagement."""

    request_id: str


class _Sequence(msgspec.Struct):
    """Decodes only the sequence number of an example."""

    sequence: int


class JoinerLoop(PartFold):
    """Runs the joiners of all partitions; ``state`` stores their snapshots, if any. ``clock`` (milliseconds)
    measures delays, and decides when to save. ``again`` is another client of the log for reading impressions
    again: a Kafka client is slow to jump."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int],
        state: PartState | None = None, again: Log | None = None, trace: JoinTrace | None = None,
        share: Share = WHOLE,
    ) -> None:  # fmt: skip
        self._trace = trace
        self._log, self._config, self._features = log, config, features
        self._again = again or log
        self._jumps = self._again if isinstance(self._again, JumpReader) else None
        self._clock, self._timer_ms, count = clock, timer_of(clock), log.partitions(EVENTS)
        self._partitions = share.partitions(count)
        self._folder = state.folder if state is not None else None  # of spilled rows
        self._state = ShareState(state, EVENTS, count, share) if state is not None else None
        self._letters = DeadLetters(log, (EVENTS,))
        self._spills: dict[int, Spill] = {}
        self._needed: dict[int, int] | None = None  # by the newest snapshot, if there is one
        self._save_every_ms, self._due_ms = _SAVE_EVERY_MS, self._timer_ms() + _SAVE_EVERY_MS
        self.unreadable = 0
        self.skipped = 0  # events passed over, without a snapshot and without the log's beginning
        # Delay of the newest example, from the event that caused it.
        self.joined_after_ms: int | None = None
        self._newest_ms = 0
        self._ended_ms: list[int] = []  # ends of views whose examples are appended in this turn
        # Impressions that this turn may read again, and those of the next windows.
        self._ahead: dict[tuple[int, int], Record | None] = {}
        self._left: dict[tuple[int, int], Record | None] = {}
        self.delays = RecentDelays()  # from the end of a view to its example on the log
        self._restore()
        self._reported = self.counts()

    @property
    def offsets(self) -> dict[int, int]:
        """The next offset of ``events`` to read, by partition."""
        return dict(self._consumer.offsets)

    def counts(self) -> dict[str, int]:
        """The joiners' counts since the beginning of the log, and unreadable records since the start."""
        total = Counter({"unreadable": self.unreadable, "skipped": self.skipped})
        for joiner in self._joiners.values():
            total.update(joiner.counts)
        return dict(total)

    def report(self, beat: Heartbeat, moved: int) -> None:
        beat.add("events", moved)
        counts = self.counts()
        for name, count in counts.items():
            beat.add(name, max(0, count - self._reported[name]))
        self._reported = counts
        beat.gauge("pending", self.pending())
        beat.gauge("spilled", self.spilled())
        if self.joined_after_ms is not None:
            beat.gauge("joined_after_s", self.joined_after_ms / 1000)
        partitions = range(self._log.partitions(EVENTS))
        beat.offsets(EVENTS, [self.offsets.get(partition, -1) for partition in partitions])

    def report_delays(self, beat: Heartbeat) -> None:
        beat.replace_gauges(_P95, self.delays.p95(_P95, self._clock()))

    def wait(self) -> None:
        self._log.wait(EVENTS, 0.5)

    def pending(self) -> int:
        """Number of pending impressions."""
        return sum(len(joiner.impressions) for joiner in self._joiners.values())

    def spilled(self) -> int:
        """Number of pending impressions on disk."""
        return sum(joiner.impressions.spilled for joiner in self._joiners.values())

    def save(self) -> None:
        """Takes a snapshot; the log then retains what resuming from the previous snapshot needs."""
        if self._state is None or self.needs_restore:
            return
        started_ms = self._timer_ms()
        self._state.save(self._log.id, self.offsets, self._pack)
        needed = self._needed_from()
        hold_available(self._log, PART, EVENTS, self._needed or needed)
        self._needed = needed
        now_ms = self._timer_ms()
        self._save_every_ms = max(_SAVE_EVERY_MS, int((now_ms - started_ms) / _SAVE_SHARE))
        self._due_ms = now_ms + self._save_every_ms

    def _pack(self, partitions: Sequence[int]) -> bytes:
        joiners = {partition: self._joiners[partition].pack() for partition in partitions}
        return msgspec.msgpack.encode(_Packed(self._features.digest, joiners, self._settings))

    def skip_to_end(self) -> None:
        """Takes all events of the log as joined."""
        ends = {p: self._log.end(EVENTS, p) for p in self._partitions}
        self._consumer = Consumer(self._log, EVENTS, self._partitions, ends)

    def close(self) -> None:
        """Closes the files, which revert to the last ``save``."""
        for spill in self._spills.values():
            spill.close()

    def _turn(self) -> int:
        """Joins new events; the examples are appended when it returns."""
        examples: list[Append] = []
        self._ended_ms.clear()
        if self._trace:
            self._trace.begin()
        events = self._consumer.poll(_READ)
        self._ahead = self._read_ahead(self._jumps, events) if self._jumps else {}
        with gc_paused():
            for partition, record in events:
                self._join(partition, record, examples)
        if examples:
            offsets = self._log.append(EXAMPLES, examples)
            now_ms = self._clock()
            self.joined_after_ms = now_ms - self._newest_ms
            self.delays.since(self._ended_ms, now_ms)
            if self._trace:
                self._trace.appended(offsets)
        self._letters.send()
        if is_due(self._timer_ms(), self._due_ms, self._save_every_ms):
            self.save()
        return len(events)

    def _join(self, partition: int, record: Record, examples: list[Append]) -> None:
        joiner = self._joiners[partition]
        try:
            event = decode(record.value)
        except Rejected as error:
            self.unreadable += 1
            self._letters.put(EVENTS, partition, record, str(error), joiner.watermark_ms)
            return
        for example in joiner.feed(record.offset, event):
            self._emit(examples, example)

    def _needed_from(self) -> dict[int, int]:
        """The lowest offset that resuming reads and that is left (Kafka ignores holds), by partition."""
        needed = {}
        for partition, offset in self._consumer.offsets.items():
            oldest = self._joiners[partition].impressions.oldest()
            if oldest is not None and oldest < offset:
                offset = min(offset, max(oldest, self._log.begin(EVENTS, partition)))
            needed[partition] = offset
        return needed

    def _read_ahead(
        self, log: JumpReader, events: Iterable[tuple[int, Record]]
    ) -> dict[tuple[int, int], Record | None]:
        """Reads the impressions of late engagements together: one by one, Kafka takes 50 ms for each."""
        wanted: dict[int, set[int]] = {}
        for partition, record in events:
            with suppress(msgspec.MsgspecError):  # another event, or an unreadable one
                id_ = _engaged.decode(record.value).request_id
                offset = self._joiners[partition].impressions.left_offset(id_)
                if offset is not None:
                    wanted.setdefault(partition, set()).add(offset)
        return log.read_each(EVENTS, wanted)

    def _recall(self, partition: int, offset: int) -> Impression | None:
        """Reads an impression again; None if retention has passed it. Raises LogLost for another log."""
        at = partition, offset
        if self._jumps and at not in self._ahead and at not in self._left:
            # After a restart windows close one after another, in this order.
            left = self._joiners[partition].impressions.left_offsets(offset, _READ)
            later = {k: r for k, r in self._left.items() if k[0] != partition or k[1] > offset}
            self._left = later | self._jumps.read_each(EVENTS, {partition: left})
        try:
            ahead = self._ahead.get(at) or self._left.get(at)
            records = [ahead] if ahead else self._again.read(EVENTS, partition, offset, 1)
        except LogLost:
            if offset < self._again.begin(EVENTS, partition):
                return None
            raise
        if not records or records[0].offset != offset:
            return None
        try:
            event = decode(records[0].value)
        except Rejected:
            return None
        return event if isinstance(event, Impression) else None

    def _emit(self, appends: list[Append], example: Joined) -> None:
        appended = self._appended[example.partition]
        if example.sequence in appended:
            appended.remove(example.sequence)
            return
        if self._trace and isinstance(example, Example):
            self._trace.made(len(appends), example)
        value = compressed(pack(example)) if isinstance(example, Example) else pack(example)
        appends.append(Append(example.partition, str(example.user_id).encode(), value))
        self._newest_ms = example.closed_ms
        if isinstance(example, Example) and example.view_ended_ms and not example.correction:
            self._ended_ms.append(example.view_ended_ms)

    def _restore(self) -> None:
        """Returns to the snapshot, and looks up the output that followed it."""
        schema, join, folder = self._features.schema, self._config.join, self._folder
        bounds = asdict(self._config.bounds).items()
        self._settings = {f"join.{name}": getattr(join, name) for name in _JOIN_SETTINGS}
        self._settings |= {f"bounds.{name}": value for name, value in bounds if name != "hold_nats"}
        cap = int(join.memory_mb * 2**20 / len(self._partitions))
        partitions = self._log.partitions(EVENTS)
        self.close()
        self._left.clear()
        if folder is not None:
            self._spills = {p: Spill(folder / f"spill-{p}.sqlite") for p in self._partitions}
        self._joiners = {
            p: Joiner(p, schema.labels, join, partial(self._recall, p), self._spills.get(p), cap,
                      Influence(self._config.bounds, partitions), schema.shown_by)
            for p in self._partitions
        }  # fmt: skip
        saved = self._state.load(self._log.id) if self._state is not None else {}
        settings: dict[int, dict[str, float | bool]] = {}
        for note in self._state.notes if self._state is not None else ():
            _LOG.warning("%s", note)
        for partition, snapshot in saved.items():
            packed = msgspec.msgpack.decode(snapshot.blob, type=_Packed)
            if packed.features != self._features.digest:
                raise ValueError(
                    f"the joiner's snapshot is of feature set {packed.features}, expected "
                    f"{self._features.digest}: use another state folder for another feature set"
                )
            self._restore_joiner(self._joiners[partition], packed.joiners[partition])
            settings[partition] = packed.settings
        # Sequence numbers that ``examples`` already contains, by partition.
        self._appended = {
            partition: sequences_after(self._log, partition, joiner.sequence)
            for partition, joiner in self._joiners.items()
        }
        for partition, before in settings.items():
            self._check_settings(partition, before)
        offsets = self._without_snapshot(self._joiners.keys() - saved.keys())
        offsets |= {p: snapshot.offsets[EVENTS][p] for p, snapshot in saved.items()}
        self._letters.forget()
        self._consumer = Consumer(self._log, EVENTS, self._partitions, offsets)
        self._needed = self._needed_from() if saved else None
        are_new = any(before != self._settings for before in settings.values())
        if self._state is not None and are_new and not any(self._appended.values()):
            # Before any output: else a kill would leave it after a snapshot with the former settings.
            self._state.save(self._log.id, self.offsets, self._pack)

    def _check_settings(self, partition: int, before: Mapping[str, float | bool]) -> None:
        """Raises ValueError if the output after the snapshot was joined with other settings: other examples
        would have its sequence numbers."""
        changed = [
            f"{name} was {before[name]}, is {value}"
            for name, value in self._settings.items()
            if before.get(name, value) != value
        ]
        if changed and self._appended[partition]:
            raise ValueError(
                f"{len(self._appended[partition])} examples of {EXAMPLES}/{partition}, in no snapshot of the "
                f"joiner yet, were joined with other settings: {'; '.join(changed)}. Start with the previous "
                "settings and stop with recsys down, which takes a snapshot; then change them"
            )

    def _restore_joiner(self, joiner: Joiner, packed: bytes) -> None:
        try:
            joiner.restore(packed)
        except ValueError as error:  # includes msgspec's
            folder = self._folder or ""
            is_spill = isinstance(error, SpillLost)
            mismatch = "doesn't fit its spill" if is_spill else "is of another version"
            raise ValueError(
                f"the joiner's snapshot in {folder} {mismatch} ({error}): remove that "
                "folder, and those of its partitions beside it, to join again. Examples on the log aren't "
                "appended again; where the log's beginning is gone, or a user was forgotten, joining "
                "continues at the log's end, and counts the skipped events"
            ) from error

    def _without_snapshot(self, partitions: Iterable[int]) -> dict[int, int]:
        """Offsets to start partitions at: the beginning of the log. If that is gone, or a user was forgotten,
        sequence numbers of existing examples can't be reproduced: then the end."""
        offsets = {}
        for partition in partitions:
            joiner = self._joiners[partition]
            begin, end = self._log.begin(EVENTS, partition), self._log.end(EVENTS, partition)
            offsets[partition] = begin
            appended = self._appended[partition]
            if appended and (begin > 0 or has_erased_examples(self._log, partition)):
                joiner.sequence = max(appended)
                self._appended[partition] = set()
                offsets[partition] = end
                self.skipped += end - begin
        return offsets


def skip_events(log: Log, config: Config, features: FeatureSet, ends: Sequence[int]) -> bool:
    """Marks all events as joined, if those before ``ends`` are: what was imported is learned by the import.
    The system mustn't run."""
    loop = JoinerLoop(log, config, features, machine_ms, PartState(config.state, PART))
    joined = [offset for _, offset in sorted(loop.offsets.items())] == list(ends)
    if joined:
        loop.skip_to_end()
        loop.save()
    loop.close()
    return joined


def has_erased_examples(log: Log, partition: int) -> bool:
    """Whether events of a user may be erased whose examples have or had sequence numbers."""
    may_be_half = PART in log.holds(EVENTS, partition)  # erased by a first pass only
    begin, end = log.begin(EXAMPLES, partition), log.end(EXAMPLES, partition)
    for record in read_range(log, EXAMPLES, partition, begin, end):
        erased = non_example(record.value)
        if isinstance(erased, ErasedExample) or (isinstance(erased, Forget) and may_be_half):
            return True
    return False


def sequences_after(log: Log, partition: int, sequence: int) -> set[int]:
    """The sequence numbers above ``sequence`` in a partition of ``examples``."""
    sequences: set[int] = set()
    begin, stop = log.begin(EXAMPLES, partition), log.end(EXAMPLES, partition)
    while stop > begin:
        start = max(begin, stop - _BACK)
        records = read_range(log, EXAMPLES, partition, start, stop)
        block = [example.sequence for _, example in decoded(records, _Sequence)]
        sequences.update(number for number in block if number > sequence)
        if block and max(block) <= sequence:
            break
        stop = start
    return sequences


@contextmanager
def opened(config: Config, share: Share = WHOLE) -> Iterator[JoinerLoop]:
    """The part's fold, which takes a last snapshot at the end."""
    with closing(open_log(config)) as log, closing(open_log(config)) as again, ExitStack() as locks:
        partitions = log.partitions(EVENTS)
        locks.enter_context(leased(config.state, PART, share.partitions(partitions)))
        state = PartState(config.state, PART)
        tracer = open_tracer(config, PART)
        trace = JoinTrace(tracer, machine_ns) if tracer else None
        clock = clock_of(config)
        loop = JoinerLoop(log, config, feature_set(config), clock, state, again, trace, share)
        loop.tracer = tracer
        yield loop
        if tracer:
            tracer.close()
        loop.save()
        loop.close()


def run(config: Config, stop: Stop, share: Share = WHOLE) -> None:
    """Joins until asked to stop."""
    with opened(config, share) as loop:
        follow(loop, stop, _LOG)


_engaged: Final = msgspec.msgpack.Decoder(_Engaged)
