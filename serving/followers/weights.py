"""Follows ``deltas``: the weights of one line, from its newest snapshot on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from experiments.promotion.epoch_model import config_at, features_at
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.publish.deltas import StepDelta
from recsys.events.records import DELTAS
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from serving.followers.follower import Follower
from serving.followers.line_reader import LineReader, LoadedSnapshot
from serving.replica.item_vectors import ItemVectors, ModelVersion, PreparedVersion
from serving.replica.row_store import RowStore

REBASED_ROWS: Final = 1 << 16  # rows in memory above which a newer snapshot is looked for


@dataclass
class WeightsChange:
    """Steps, and the rows to which they are applied. ``prepared``: from a snapshot and the items applied
    before. ``rows``: the applied ones, over a newer snapshot."""

    prepared: PreparedVersion | None = None
    rows: dict[str, RowStore] | None = None
    steps: list[StepDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.prepared or self.rows or self.steps)


class AppliedStep(NamedTuple):
    """A step that was applied, and when, by the clock of traces."""

    step: int
    began_ns: int
    ended_ns: int


class WeightsFollower(Follower[WeightsChange]):
    """Applies the steps of a line. ``applied``: those of the newest change."""

    topic: ClassVar = DELTAS
    at_once: ClassVar = 16

    def __init__(
        self, log: Log, replica: ItemVectors, lifecycle: Lifecycle,
        wanted: Callable[[], tuple[str, int | None]], first: FeatureSet,
        now_ms: Callable[[], int], now_ns: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        """``lifecycle``: models of lines and epochs. ``wanted``: the line and epoch to follow (None: the
        newest). ``first``: feature set of the state folder's file. ``now_ns``: the clock of traces."""
        super().__init__()
        self.line = LineReader(log, Path(replica.config.state) / "snapshots", list(replica.rows))
        self._replica, self._lifecycle, self._wanted, self._first = replica, lifecycle, wanted, first
        self._now_ms, self._now_ns = now_ms, now_ns
        self._loaded: tuple[str, int | None] | None = None  # None: nothing is loaded yet
        self.offset, self._change = self.line.offset, WeightsChange()
        self.applied: list[AppliedStep] = []

    def read(self, limit: int) -> WeightsChange:
        change, wanted = self._change, self._wanted()
        if self._loaded != wanted:
            loaded: LoadedSnapshot | None = self.line.start(*wanted)
            self._loaded = wanted
        else:
            loaded = self.line.mend(self._now_ms())
        if loaded is not None:
            change.prepared, change.steps, change.rows = self._prepared(loaded), [], None
        elif not (change.prepared or change.steps):
            change.rows = self._rebased() or change.rows
        if not change.rows:  # otherwise steps are applied to them, in a later batch
            change.steps.extend(self.line.read(limit))
        self.offset = self.line.offset
        self._replica.make_room_for_steps(change.steps)
        return change

    def restart(self) -> None:
        """Loads the newest snapshot again: the catalogue has other items than those it was prepared for."""
        self._loaded, self._change = None, WeightsChange()

    def _rebased(self) -> dict[str, RowStore] | None:
        """The rows over a newer snapshot, once many of them are in memory."""
        replica = self._replica
        due = sum(store.changed for store in replica.rows.values()) > REBASED_ROWS
        base = self.line.newer_base(self._now_ms(), replica.step, due)
        return replica.rebased(base.tables) if base is not None else None

    def _prepared(self, loaded: LoadedSnapshot) -> PreparedVersion:
        replica, rows = self._replica, loaded.rows
        tables = {} if rows is None else rows.tables
        dense = None if rows is None else rows.dense
        version = ModelVersion(loaded.line, loaded.epoch, loaded.step)
        logging.getLogger(__name__).info("weights loaded", extra=version._asdict())
        config = config_at(replica.config, self._lifecycle, loaded.line, loaded.epoch)
        reads = features_at(self._first, self._lifecycle, loaded.line, loaded.epoch)
        return replica.prepare(tables, dense, version, config.model, reads)

    def swap(self, change: WeightsChange) -> None:
        if change.prepared is not None:
            self._replica.install(change.prepared)
        elif change.rows is not None:
            self._replica.rows = change.rows

    def apply(self, change: WeightsChange) -> None:
        self.applied = [self._apply_step(delta) for delta in change.steps]
        self._change = WeightsChange()

    def _apply_step(self, delta: StepDelta) -> AppliedStep:
        began_ns = self._now_ns()
        if not self._replica.apply_step(delta):
            self.line.diverge(delta.step)
        return AppliedStep(delta.step, began_ns, self._now_ns())
