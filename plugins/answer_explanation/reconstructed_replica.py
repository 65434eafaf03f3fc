"""Reconstructs a replica at a stamp: catalogue, counters and weights, folded from log and snapshots.

One replica goes forward from stamp to stamp; to go back it starts anew. Where log and snapshots don't reach,
``NotReconstructible`` names the topic, the offset from which it could be read, and the offset needed.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from experiments.promotion.epoch_model import config_at, features_at
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.publish.deltas import StepDelta
from parameter_server.storage import snapshots
from parameter_server.storage.snapshot_rows import map_rows
from plugins.answer_explanation.sharded_index import as_named
from recsys.app.set_loops import SetsInUse
from recsys.config.system_config import Config
from recsys.events.control_records import Control
from recsys.events.event_types import Item, Rejected, RequestInputs, Stamp, decode
from recsys.events.records import CONTROL, DELTAS, ITEM_STATE, ITEMS, ItemState, unpack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost, Record, read_range
from recsys.process.log_consumer import readable
from serving.followers.line_reader import LineReader, LoadedSnapshot
from serving.index import index_files
from serving.pipeline import Pipeline
from serving.replica.item_vectors import ModelVersion
from serving.replica.replica import Replica, published_model

_SECOND_MS: Final = 1_000  # of event time, after which the most popular items are determined anew


class NotReconstructible(ValueError):
    """A past state or answer can't be reconstructed; names the reason and what would be needed."""


class ReconstructedReplica:
    """Goes to stamps, fastest in the order of the answers."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet, first: FeatureSet | None = None
    ) -> None:
        """``features``: as logged. ``first``: the set of the state folder's file, if that is another."""
        self._log, self._config, self._features = log, config, features
        self._first = first or features
        self._set = SetsInUse(self._first).name(features)
        self._folder = Path(config.state) / "snapshots"
        self._begin()

    def _begin(self) -> None:
        self.replica = Replica(self._features, self._config)
        self.pipeline = Pipeline(self.replica)
        self._items = self._states = 0
        self._states_from: int | None = None  # as of the stamp's replica; None: nothing is read yet
        self._coverage: CounterCoverage | None = None
        self._line: LineReader | None = None
        self._steps: deque[StepDelta] = deque()

    def at(self, stamp: Stamp, inputs: RequestInputs) -> Pipeline:
        """The pipeline of the replica at a stamp. Raises NotReconstructible."""
        since = inputs.item_state_from
        restart = self._states_from not in (None, since)
        behind = max(stamp.item_state_offset, since) < self._states
        if restart or behind or stamp.catalogue_offset < self._items:
            self._begin()
        self._to_items(stamp.catalogue_offset)
        self._to_states(stamp.item_state_offset, since)
        self.weights_at(stamp)
        self._index_of(stamp)
        serve = replace(
            self._config.serve,
            candidates=inputs.candidates,
            source_floor=inputs.source_floor,
            stages=tuple(inputs.stages),
        )
        self.replica.config = replace(self._config, serve=serve)
        return self.pipeline

    # --- items and their counters ---

    def _to_items(self, stop: int) -> None:
        if batch := list(items(self._log, self._items, stop)):
            self.replica.apply_items([item for item, _ in batch], batch[-1][1] + 1)
        self._items = max(self._items, stop)

    def _to_states(self, stop: int, since: int) -> None:
        """Reads counters. They are absolute, so a reader that starts in the middle is complete once all were
        written again; the most popular items are then right from their next refresh on."""
        begin = self._log.begin(ITEM_STATE, 0)
        if self._states_from is None:
            self._states_from = self.replica.item_state_from = since
            self._states = max(since, begin)
            self._coverage = CounterCoverage() if since < begin else None
        for record in records(self._log, ITEM_STATE, 0, self._states, stop):
            try:
                state = unpack(record.value, ItemState)
            except msgspec.MsgspecError:
                continue
            if state.features != self._set:
                continue
            self.replica.apply_item_state(state, record.offset + 1)
            if self._coverage is not None:
                self._coverage.read(state)
        self._states = max(self._states, stop)
        if stop > since and self._coverage is not None and not self._coverage.settled:
            raise NotReconstructible(
                f"{ITEM_STATE} begins at offset {begin} and was read from {since} to {stop}: the counters "
                "are incomplete, since they were not all written again in between"
            )

    # --- weights ---

    def weights_at(self, stamp: Stamp) -> None:
        """Goes to the weights of the stamp's version. Raises NotReconstructible."""
        replica = self.replica
        if replica.version == (stamp.line, stamp.epoch, stamp.step):
            return
        same_epoch = (replica.line, replica.epoch) == (stamp.line, stamp.epoch)
        ahead = same_epoch and replica.step < stamp.step
        if self._line is not None and ahead and self._forward(self._line, stamp.step):
            return
        loaded = self._newest(stamp)
        rows = {} if loaded.rows is None else loaded.rows.tables
        dense = None if loaded.rows is None else loaded.rows.dense
        lifecycle = self._lifecycle()
        config = config_at(self._config, lifecycle, stamp.line, stamp.epoch)
        reads = features_at(self._first, lifecycle, stamp.line, stamp.epoch)
        if dense is None:
            dense = published_model(reads, config).read_dense()
        version = ModelVersion(stamp.line, stamp.epoch, loaded.step)
        replica.install(replica.prepare(rows, dense, version, config.model, reads))
        self._steps.clear()
        self._line = LineReader(self._log, self._folder)
        self._line.start_after(loaded)
        if self._forward(self._line, stamp.step):
            return
        self._line.offset = self._log.begin(DELTAS, 0)  # an ended line's are before those of others
        if not self._forward(self._line, stamp.step):
            raise NotReconstructible(self._missing(self._line, stamp, loaded))

    def _lifecycle(self) -> Lifecycle:
        """The lines, with the models of their epochs."""
        lifecycle = Lifecycle()
        for record in readable(self._log, CONTROL, Control):
            lifecycle.fold(record)
        return lifecycle

    def _index_of(self, stamp: Stamp) -> None:
        """Replaces the index by the searched one, with the same vectors and the stored centroids."""
        replica, folder = self.replica, Path(self._config.state) / index_files.FOLDER
        try:
            replica.index = as_named(folder, stamp.index, replica.index, replica.catalogue)
        except ValueError as error:
            raise NotReconstructible(str(error)) from error

    def _newest(self, stamp: Stamp) -> LoadedSnapshot:
        """The newest usable snapshot up to the stamp; without one, the line's beginning."""
        line, epoch = stamp.line, stamp.epoch
        for step in reversed(snapshots.complete_steps(self._folder, line, epoch)):
            if step <= stamp.step:
                try:
                    rows = map_rows(self._folder, line, epoch, step)
                except snapshots.NoSnapshot:  # damaged: an older one may do
                    continue
                return LoadedSnapshot(line, epoch, step, rows)
        return LoadedSnapshot(line, epoch, 0, None)

    def _forward(self, line: LineReader, step: int) -> bool:
        """Applies deltas up to a step; False where they don't reach it."""
        while self.replica.step < step:
            if not self._steps:
                before = line.offset
                self._steps.extend(line.read())
                if not self._steps and (line.gap is not None or line.offset == before):
                    return False
            elif self._steps[0].step > step:
                return False
            elif not self.replica.apply_step(self._steps.popleft()):
                line.diverge(self.replica.step)
                return False
        return True

    def _missing(self, line: LineReader, stamp: Stamp, loaded: LoadedSnapshot) -> str:
        begin, end = self._log.begin(DELTAS, 0), self._log.end(DELTAS, 0)
        start = f"the snapshot of step {loaded.step}" if loaded.rows else "no snapshot before it"
        why = line.gap.reason if line.gap else f"the deltas only reach step {self.replica.step}"
        return (
            f"the weights of {stamp.line} {stamp.epoch}/{stamp.step} are gone: there is {start}, {DELTAS} "
            f"holds offsets {begin} to {end}, and {why}"
        )


class CounterCoverage:
    """Whether counters that were read from the middle of ``item_state`` on equal those of a reader from an
    earlier offset: all parts were written again in a row, and a second of event time began after that."""

    def __init__(self) -> None:
        self.settled = False
        self._parts = self._next = 0
        self._newest_ms = -1

    def read(self, state: ItemState) -> None:
        complete = 0 < self._parts == self._next
        newest_ms = int(np.frombuffer(state.last_ms, np.int64).max(initial=-1))
        later = newest_ms // _SECOND_MS > self._newest_ms // _SECOND_MS
        self.settled = self.settled or (complete and later)
        self._newest_ms = max(self._newest_ms, newest_ms)
        if complete:
            return
        if state.parts and state.part == 0:
            self._parts, self._next = state.parts, 1
        elif (state.part, state.parts) == (self._next, self._parts):
            self._next += 1
        else:
            self._parts = self._next = 0


def items(log: Log, start: int, stop: int) -> Iterator[tuple[Item, int]]:
    """Items of [start, stop) with their offsets, without unreadable records. Raises as ``records``."""
    for record in records(log, ITEMS, 0, start, stop):
        with suppress(Rejected):
            if isinstance(event := decode(record.value), Item):
                yield event, record.offset


def records(log: Log, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
    """Records of [start, stop), in order. Raises NotReconstructible where the log doesn't reach there."""
    end = log.end(topic, partition)
    if end < stop:
        raise NotReconstructible(
            f"{topic}/{partition} ends at offset {end}, but was read up to {stop}: the log lost records, or "
            "is another one"
        )
    try:
        yield from read_range(log, topic, partition, start, stop)
    except LogLost as error:
        raise NotReconstructible(str(error)) from error
