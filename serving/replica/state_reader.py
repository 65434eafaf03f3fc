"""Reads everything that a replica follows: items, item state, the live line's weights, control; and its
progress.

``read`` waits for disks, decodes and builds the tables of a snapshot, in a thread; ``apply`` changes the
replica, between two requests. A batch is small, and a snapshot is only swapped in, so that no request waits
long. A replica is ready once it has caught up with the log.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from experiments.assignment.policy import Policies
from experiments.promotion.epoch_model import config_at, features_at
from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from experiments.statistics.revision import running
from parameter_server.publish.deltas import StepDelta
from recsys.app.set_loops import SetsInUse
from recsys.clock import is_due, timer_of
from recsys.config.policy_config import check_rules, check_weights
from recsys.config.system_config import Config
from recsys.config.yaml_with_lines import YamlError
from recsys.events.control_records import ApiKey, Control, Experiments, Live
from recsys.events.event_types import Item, Rejected, decode
from recsys.events.field_schema import CATEGORICAL
from recsys.events.records import CONTROL, DELTAS, EVENTS, EXAMPLES, ITEM_STATE, ITEMS, STEPS, ItemState, Step
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost
from serving.access.keyring import Keyring
from serving.index import index_files
from serving.index.faiss_centroids import lists_for, sample_of, train
from serving.replica.catalogue_snapshot import CatalogueSnapshot
from serving.replica.index_maintenance import IndexMaintenance, SetProbes, SwapIndex
from serving.replica.item_vectors import ItemVectors, ModelVersion, PreparedVersion
from serving.replica.line_reader import MAIN, LineReader, LoadedSnapshot
from serving.replica.replica import Replica
from serving.replica.row_store import RowStore
from serving.tracing.freshness import Freshness, Rate
from serving.tracing.swipe_traces import SwipeTraces

R = TypeVar("R")
_ITEMS, _STATES, _DELTAS, _STEPS = 50, 8, 16, 500  # records in a batch
_STARTING: Final = 20  # factor on these while the replica doesn't answer yet
_STEPS_KEPT: Final = 2_000
_LAG_EVERY_MS: Final = 1_000
REBASED_ROWS: Final = 1 << 16  # rows in memory above which a newer snapshot is looked for


@dataclass
class Batch:
    """Records of one ``read``, in the order of their application."""

    prepared: PreparedVersion | None = None  # from a snapshot and the items applied before
    rows: dict[str, RowStore] | None = None  # the applied ones, over a newer snapshot
    items: list[tuple[Item, int]] = field(default_factory=list)
    states: list[tuple[ItemState, int]] = field(default_factory=list)
    steps: list[StepDelta] = field(default_factory=list)
    index_change: SwapIndex | SetProbes | None = None
    policies: Policies | None = None
    step_records: list[Step] = field(default_factory=list)
    events_end: int | None = None  # and by partition of ``examples``, about once a second:
    example_ends: list[int] = field(default_factory=list)
    keys: list[ApiKey] = field(default_factory=list)
    skipped_states: bool = False  # counters were trimmed before they were read

    def __bool__(self) -> bool:
        return bool(
            self.full or self.policies or self.index_change or self.step_records or self.keys
            or self.events_end is not None or self.skipped_states
        )  # fmt: skip

    @property
    def full(self) -> bool:
        """Whether there may be more of the state that answers depend on."""
        return bool(self.prepared or self.rows or self.items or self.states or self.steps)


class StateReader:
    """Reads for one replica, and applies to it. ``read`` belongs to one thread, all else to another; each
    batch is applied before the next ``read``."""

    def __init__(
        self, log: Log, replica: ItemVectors, config: Config, now_ms: Callable[[], int],
        pinned: tuple[str, int] | None = None, traces: SwipeTraces | None = None,
        first: FeatureSet | None = None,
    ) -> None:  # fmt: skip
        """``pinned``: the (line, epoch) to follow, whatever is live. ``traces``: for applied steps.
        ``first``: the set of the state folder's file, if the replica's is another. Raises ValueError where
        the configuration names what the schema lacks."""
        schema = replica.features.schema
        self.policies = Policies(config.policy, (), config.surfaces)
        for policy in self.policies.bases.values():
            check_weights(policy, schema.labels)
            check_rules(policy, schema.names("item", CATEGORICAL))
        self._log, self.replica, self._config = log, replica, config
        self._now_ms = timer_of(now_ms)
        self._first = first or replica.features
        self._set = SetsInUse(self._first).name(replica.features)
        self.line = LineReader(log, Path(config.state) / "snapshots", list(replica.rows))
        self.maintenance = IndexMaintenance(replica, train, sample_of, lists_for)
        self._indexes = Path(config.state) / index_files.FOLDER
        self.catalogue = None
        if isinstance(replica, Replica):
            self.catalogue = CatalogueSnapshot(config.state, log.id, replica)
        self.freshness, self._traces = Freshness(), traces
        self.examples, self.events = Rate(), Rate()
        self.ready = False
        self.unreadable = 0
        self.lag: dict[str, int] = {}  # unread records by topic, as of about a second ago
        self._learned = 0
        self._unlearned_ms: int | None = None  # since when examples have been waiting for a step
        self._ranges: dict[int, Step] = {}
        self._live: tuple[str, int | None] | None = None  # None: nothing is loaded yet
        self._pinned = pinned
        self._wanted: tuple[str, int | None] = pinned or (MAIN, None)
        self.lifecycle = Lifecycle()
        self.keyring = Keyring(complete=False)
        self.canary: LineState | None = None  # the candidate that answers a share of users
        self.arms: frozenset[str] = frozenset()  # lines that answer arms of experiments
        self._items, self._states = log.begin(ITEMS, 0), log.begin(ITEM_STATE, 0)
        self.items_applied = self._items  # every record of ``items`` before it is in the catalogue
        replica.item_state_from = self._states
        self._control = log.begin(CONTROL, 0)
        self._steps = log.end(STEPS, 0)
        # Where the examples after the newest applied step begin, by partition.
        self._learned_to = [log.end(EXAMPLES, p) for p in range(log.partitions(EXAMPLES))]
        self._lagged_ms = 0
        self._batch = Batch()

    # --- in the reading thread ---

    def read(self) -> Batch:
        """Reads on in all topics. Raises LogUnavailable, and LogLost where the catalogue is gone."""
        scale = 1 if self.ready else _STARTING
        batch = self._batch  # holds the records that were read before an error
        self._read_control(batch)
        self._read_items(batch, _ITEMS * scale)
        if not batch.items:  # the last ones are applied, and unreadable ones are skipped
            self.items_applied = self._items
        self._read_states(batch, _STATES * scale)
        self._read_line(batch, _DELTAS * scale)
        self._read_progress(batch)
        items, states = [item for item, _ in batch.items], [state for state, _ in batch.states]
        self.replica.make_room(items, states, batch.steps)
        if self.ready and batch.index_change is None:
            batch.index_change = self.maintenance.turn()
            if isinstance(batch.index_change, SwapIndex):
                index_files.save_centroids(self._indexes, batch.index_change.index)
        self._batch = Batch()
        return batch

    def catch_up(self, stopped: Callable[[], bool]) -> None:
        """Reads and applies up to the end of the log, in this thread: before the first answer. A large
        catalogue is read on from a snapshot, and one that lacks much is replaced, by one replica of those
        that start together."""
        saved, end = self.catalogue, self._log.end(ITEMS, 0)
        if saved is None:
            return self._read_to_end(stopped)
        if self._pinned is None:
            saved.prune()
        self._restore(saved, end)
        try:
            if saved.lacks(end) and self._pinned is None:
                # Otherwise reading on takes less time than waiting.
                lacks_most = 2 * self.replica.catalogue_offset < end
                saved.acquire(self._now_ms(), lambda: lacks_most and not stopped())
                self._restore(saved, end)  # another replica may have written one meanwhile
                if not saved.lacks(end):
                    saved.release()
            self._read_to_end(stopped)
        finally:
            saved.release()

    def _restore(self, saved: CatalogueSnapshot, end: int) -> None:
        before = self.replica.catalogue_offset
        if saved.lacks(end):
            saved.restore()
        offset = self.replica.catalogue_offset
        if offset == before:
            return
        self._items = self.items_applied = max(self._items, offset)
        # What was read before an error may be older than the snapshot, and weights are for fewer items.
        batch, self._live = self._batch, None
        batch.items = [item for item in batch.items if item[1] > offset]
        batch.prepared, batch.rows, batch.steps = None, None, []

    def _read_to_end(self, stopped: Callable[[], bool]) -> None:
        while not stopped():
            batch = self.read()
            self.apply(batch)
            if not batch.full:
                self._index_all()
                if self.catalogue is not None:
                    self.catalogue.save(self._now_ms())
                self.ready = True
                return

    def _index_all(self) -> None:
        """Restores or builds an index, if one is due, before the first answer."""
        if self.catalogue is not None and self._pinned is None:
            self.catalogue.restore_index()
        index = self.maintenance.build_now()
        if index is not None:
            index_files.save_centroids(self._indexes, index)
            self.maintenance.apply(SwapIndex(index))

    def _read_control(self, batch: Batch) -> None:
        while records := self._log.read(CONTROL, 0, self._control):
            revisions = list[Experiments]()
            for record in records:
                message = self._unpack(record.value, _control)
                if message is None:
                    continue
                if self.lifecycle.fold(message):
                    self.canary = self.lifecycle.canary
                    self.arms = frozenset(self.lifecycle.arms)
                if isinstance(message, Live) and self._pinned is None:
                    self._wanted = (message.line, message.epoch)
                elif isinstance(message, ApiKey):
                    batch.keys.append(message)
                elif isinstance(message, Experiments):
                    revisions.append(message)
            newest_first = map(self._policies_of, reversed(revisions))
            batch.policies = next(filter(None, newest_first), batch.policies)
            self._control = records[-1].offset + 1

    def _policies_of(self, message: Experiments) -> Policies | None:
        schema, base = self.replica.features.schema, self._config.policy
        try:
            return Policies(base, running(message, base, schema.labels), self._config.surfaces)
        except (YamlError, ValueError) as error:
            self.unreadable += 1
            extra = {"revision": message.revision, "error": str(error)}
            logging.getLogger(__name__).error("experiments rejected", extra=extra)
            return None

    def _read_items(self, batch: Batch, limit: int) -> None:
        for record in self._log.read(ITEMS, 0, self._items, limit):
            self._items = record.offset + 1
            try:
                event = decode(record.value)
            except Rejected:
                self.unreadable += 1
                continue
            if isinstance(event, Item):
                batch.items.append((event, record.offset + 1))

    def _read_states(self, batch: Batch, limit: int) -> None:
        if not self.ready and self._items < self._log.end(ITEMS, 0):
            return  # at first the items, so that counters find theirs
        try:
            records = self._log.read(ITEM_STATE, 0, self._states, limit)
        except LogLost:  # trimmed: all counters were written again after it
            self._states, batch.skipped_states = self._log.begin(ITEM_STATE, 0), True
            return
        for record in records:
            self._states = record.offset + 1
            state = self._unpack(record.value, _item_state)
            if state is not None and state.features == self._set:
                batch.states.append((state, record.offset + 1))

    def _read_line(self, batch: Batch, limit: int) -> None:
        if self._live != self._wanted:
            loaded: LoadedSnapshot | None = self.line.start(*self._wanted)
            self._live = self._wanted
        else:
            loaded = self.line.mend(self._now_ms())
        if loaded is not None:
            batch.prepared, batch.steps, batch.rows = self._prepared(loaded), [], None
        elif not (batch.prepared or batch.steps):
            batch.rows = self._rebased() or batch.rows
            if batch.rows:  # steps are applied to them, in a later batch
                return
        batch.steps.extend(self.line.read(limit))

    def _rebased(self) -> dict[str, RowStore] | None:
        """The rows over a newer snapshot, once many of them are in memory."""
        replica = self.replica
        due = sum(store.changed for store in replica.rows.values()) > REBASED_ROWS
        base = self.line.newer_base(self._now_ms(), replica.step, due)
        return replica.rebased(base.tables) if base is not None else None

    def _prepared(self, loaded: LoadedSnapshot) -> PreparedVersion:
        rows = loaded.rows
        tables = {} if rows is None else rows.tables
        dense = None if rows is None else rows.dense
        version = ModelVersion(loaded.line, loaded.epoch, loaded.step)
        logging.getLogger(__name__).info("weights loaded", extra=version._asdict())
        config = config_at(self._config, self.lifecycle, loaded.line, loaded.epoch)
        reads = features_at(self._first, self.lifecycle, loaded.line, loaded.epoch)
        return self.replica.prepare(tables, dense, version, config.model, reads)

    def _read_progress(self, batch: Batch) -> None:
        """Reads what the speed of learning needs, and no answer: steps and ends of topics."""
        for record in self._log.read(STEPS, 0, self._steps, _STEPS):
            self._steps = record.offset + 1
            step = self._unpack(record.value, _step)
            if step is not None:
                batch.step_records.append(step)
        now_ms = self._now_ms()
        if is_due(now_ms, self._lagged_ms + _LAG_EVERY_MS, _LAG_EVERY_MS):
            self._lagged_ms = now_ms
            partitions = range(self._log.partitions(EVENTS))
            batch.events_end = sum(self._log.end(EVENTS, p) for p in partitions)
            batch.example_ends = [self._log.end(EXAMPLES, p) for p in range(self._log.partitions(EXAMPLES))]
            self.lag = {
                ITEMS: self._log.end(ITEMS, 0) - self._items,
                ITEM_STATE: self._log.end(ITEM_STATE, 0) - self._states,
                DELTAS: self._log.end(DELTAS, 0) - self.line.offset,
            }

    def _unpack(self, value: bytes, decoder: "msgspec.msgpack.Decoder[R]") -> R | None:
        try:
            return decoder.decode(value)
        except msgspec.MsgspecError:
            self.unreadable += 1
            return None

    # --- between two requests ---

    def apply(self, batch: Batch) -> None:
        """Changes the replica. Never during a request."""
        now_ms = self._now_ms()
        if batch.prepared is not None:
            self.replica.install(batch.prepared)
        elif batch.rows is not None:
            self.replica.rows = batch.rows
        if batch.index_change is not None:
            self.maintenance.apply(batch.index_change)
        if batch.items:
            self.replica.apply_records(batch.items)
            self.items_applied = batch.items[-1][1]
        if batch.skipped_states:
            self.replica.item_state_from = -1
        for state, offset in batch.states:
            self.replica.apply_item_state(state, offset)
        self.policies = batch.policies or self.policies
        for key in batch.keys:
            self.keyring.fold(key)
        self.keyring.complete = True  # `read` reads `control` to its end, at first too
        for record in batch.step_records:
            self._ranges[record.step] = record
        while len(self._ranges) > _STEPS_KEPT:
            del self._ranges[next(iter(self._ranges))]
        for delta in batch.steps:
            self._apply_step(delta, now_ms)
        waits = any(end > to for end, to in zip(batch.example_ends, self._learned_to, strict=False))
        if waits:
            self._unlearned_ms = min(self._unlearned_ms or now_ms, now_ms)
        if batch.events_end is not None:
            self.events.observe(batch.events_end, now_ms)
            self.examples.observe(self._learned, now_ms)

    def stale(self, now_ms: int) -> bool:
        """Whether the weights are too old: examples have waited for a step for ``serve.stale_s``. Without new
        examples, weights don't age, nor do those of a candidate that doesn't learn."""
        state = self.lifecycle.candidates.get(self.replica.line)
        is_frozen = state is not None and not state.candidate.learns
        if self._unlearned_ms is None or self.replica.step == 0 or is_frozen:
            return False
        return now_ms - self._unlearned_ms > 1000 * self._config.serve.stale_s

    def _apply_step(self, delta: StepDelta, now_ms: int) -> None:
        self._unlearned_ms = None
        began_ns = self._traces.now_ns() if self._traces else 0
        if not self.replica.apply_step(delta):
            self.line.diverge(delta.step)
        # Steps that a snapshot held are served with this one.
        for record in [self._ranges.pop(n) for n in list(self._ranges) if n <= delta.step]:
            for learned in record.ranges:
                self._learned_to[learned.partition] = learned.stop
            if record.line != self.replica.line:
                continue
            self._learned += record.examples
            own = self.freshness.learned(record.views, now_ms)
            if self._traces:
                self._traces.applied(record, began_ns, own)


_control: "msgspec.msgpack.Decoder[Control]" = msgspec.msgpack.Decoder(Control)
_item_state = msgspec.msgpack.Decoder(ItemState)
_step = msgspec.msgpack.Decoder(Step)
