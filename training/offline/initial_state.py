"""Builds the initial state of an offline job: vocabularies, rows and dense parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.shard.shard import ShardCounts
from parameter_server.storage.snapshots import Snapshot, latest
from parameter_server.table.dense import DENSE_COLUMNS, Dense
from recsys.config.system_config import ModelConfig, TableConfig, tables_of
from recsys.features.feature_set import FeatureSet
from recsys.model.model import build_model
from training.candidates.registry import Refused, SnapshotRef, reference_to
from training.continual.learner import Learner
from training.continual.row_usage import examples_per_row
from training.offline.distill import Distiller
from training.offline.loop import Blocks
from training.offline.sharding import ALONE, Sharding
from training.offline.tables import COLUMNS, OwnTable, RowTable
from training.offline.trainer import OfflineTrainer, lane_of
from training.offline.vocabulary import KeyCounter, KeyCounts, Vocabulary, select_keys

Arrays = Mapping[str, NDArray[Any]]
MakeTable = Callable[[TableConfig, Vocabulary, int], RowTable]
_Counted = tuple[int, dict[str, KeyCounts]]  # newest time of a block, and its keys by table
_COUNTED_AT_ONCE: Final = 1_024
_USER_TABLES: Final = ("features", "users")  # tables in which a user's key has a row
_COLUMNS: Final = ("keys", "values", "accumulator", "used_ms")


@dataclass(frozen=True)
class Ancestor:
    """Rows of a snapshot's parts, to start from without those of ``forgotten`` users (keys)."""

    parent: SnapshotRef
    parts: Sequence[Arrays]
    forgotten: Sequence[int] = ()

    def table(self, name: str) -> dict[str, NDArray[Any]]:
        """Keys, values, accumulator and used_ms of a table, in no order."""
        arrays = [{c: part[f"table/{name}/{c}"] for c in _COLUMNS} for part in self.parts]
        columns = {c: np.concatenate([part[c] for part in arrays]) for c in _COLUMNS}
        if name not in _USER_TABLES:
            return columns
        stays = ~np.isin(columns["keys"], np.array(self.forgotten, np.int64))
        return {column: array[stays] for column, array in columns.items()}

    def vocabulary(self, name: str) -> Vocabulary:
        """Keys with a row, and the time of their last use."""
        table = self.table(name)
        order = np.argsort(table["keys"])
        return Vocabulary(table["keys"][order], table["used_ms"][order])

    @property
    def dense(self) -> dict[str, NDArray[Any]]:
        part = next(p for p in self.parts if "dense/values" in p)
        return {column: part[f"dense/{column}"] for column in DENSE_COLUMNS}


def load_ancestor(
    folder: Path, line: str, model: ModelConfig, dense: int, forgotten: Sequence[int] = (),
    sharding: Sharding = ALONE,
) -> Ancestor:  # fmt: skip
    """Loads this worker's rows of the newest snapshot of a line to start from. Raises Refused if there is
    none, or it is of another model. ``dense``: expected number of parameters."""
    snapshot, reasons = latest(folder, line)
    if snapshot is None:
        why = "; ".join(reasons) or "none there"
        raise Refused(f"no snapshot to start from in {folder / line}: {why}")

    def wanted(name: str) -> bool:
        return name.startswith(("table/", "dense/")) and "sketch" not in name

    parts = [_own_rows(snapshot.read(p, wanted), sharding) for p in range(snapshot.parts)]
    ancestor = Ancestor(reference_to(snapshot), parts, forgotten)
    parameters = len(ancestor.dense["values"])
    expected = {t.name: t.dim for t in tables_of(model)}
    dims = {name: int(ancestor.table(name)["values"].shape[1]) for name in expected}
    if (parameters, dims) != (dense, expected):
        raise Refused(
            f"{snapshot.folder} has {parameters} dense parameters, tables of {dims}, expected {dense} and "
            f"{expected}; it is of another feature set or model; start from another, or from nothing"
        )
    return ancestor


def _own_rows(arrays: Arrays, sharding: Sharding) -> Arrays:
    """The arrays of a part with the rows of this worker's keys alone."""
    keys = {name.rpartition("/")[0]: a for name, a in arrays.items() if name.endswith("/keys")}
    own = {table: sharding.owner_of(array) == sharding.rank for table, array in keys.items()}
    return {n: a[own[n.rpartition("/")[0]]] if n.startswith("table/") else a for n, a in arrays.items()}


def count_vocabularies(
    blocks: Blocks, learner: Learner, tables: Sequence[TableConfig],
    ancestor: Ancestor | None = None, shards: int = 1, size: int = _COUNTED_AT_ONCE,
    sharding: Sharding = ALONE,
) -> dict[str, Vocabulary]:  # fmt: skip
    """Vocabularies by table of this worker's keys, in one pass over all blocks, of which each worker reads
    its share. ``shards``: number of budgets of a table; each part has an equal share of them."""
    names = [table.name for table in tables]
    counter, end_ms = KeyCounter(names), 0
    for first in range(0, len(blocks), sharding.workers):
        counted, time_ms = KeyCounter(names), 0
        if first + sharding.rank < len(blocks):
            block = blocks.read(first + sharding.rank)
            time_ms = int(block.time_ms.max())
            for examples in block.cut(size):
                lookup = lane_of(learner, examples).lookup
                for name, counts in examples_per_row(lookup).items():
                    counted.add(name, lookup.keys[name], counts, int(examples.time_ms.max()))
        messages: list[_Counted] = [(time_ms, {}) for _ in range(sharding.workers)]
        for name, total in counted.totals().items():
            split = sharding.split(total.keys)
            for worker, (_, part) in enumerate(messages):
                part[name] = total.take(split.of(worker))
        for time_ms, received in sharding.exchange(messages, _Counted):
            end_ms = max(end_ms, time_ms)
            for name, total in received.items():
                counter.add(name, total.keys, total.counts, total.last_ms)
    if ancestor:
        for table in tables:
            before = ancestor.vocabulary(table.name)
            admitted = np.full(len(before), table.admit_after)
            counter.add(table.name, before.keys, admitted, before.used_ms)
    totals = counter.totals()
    return {t.name: select_keys(t, totals[t.name], end_ms, shards, sharding.parts) for t in tables}


def build_trainer(
    features: FeatureSet, model: ModelConfig, sharding: Sharding,
    vocabularies: Mapping[str, Vocabulary], make: MakeTable, ancestor: Ancestor | None = None,
    share: float | None = None,
) -> OfflineTrainer:  # fmt: skip
    """A new trainer with initial values, or an ancestor's with its optimizer state. ``share``: the teacher's,
    whose probabilities are in the examples; None: no teacher."""
    network = build_model(features, model)
    rows: dict[str, RowTable] = {}
    for table in tables_of(model):
        keys = vocabularies[table.name]
        rows[table.name] = make(table, keys, model.seed)
        if ancestor:
            before = ancestor.table(table.name)
            has_row = keys.find(before["keys"]) >= 0
            rows[table.name].load(before["keys"][has_row], {c: before[c][has_row] for c in COLUMNS})
    values = network.read_dense()
    dense = Dense(values, model.dense_rate, average=model.dense_average, first=model.dense_first)
    if ancestor:
        dense.load(ancestor.dense)
    learner = Learner(network) if share is None else Distiller(network, share=share)
    return OfflineTrainer(learner, rows, vocabularies, dense, sharding)


def table_maker(name: str) -> MakeTable:
    """The table class "torchrec" or "own". Raises ValueError for another name."""
    if name == "torchrec":
        from training.offline.torchrec_tables import TorchrecTable

        return TorchrecTable
    if name == "own":
        return OwnTable
    raise ValueError(f"tables are {name!r}, expected 'torchrec' or 'own'")


def export_meta(
    snapshot: Snapshot, refused_rows: int, refused_dense: int, delta_format: str
) -> dict[str, Any]:
    """The metadata that ``Shard.export`` would return with the arrays of all parts."""
    rows = clock_ms = 0
    for part in range(snapshot.parts):
        for used_ms in snapshot.read(part, lambda name: name.endswith("/used_ms")).values():
            rows, clock_ms = rows + len(used_ms), max(clock_ms, int(used_ms.max(initial=0)))
    counters = ShardCounts(inserted=rows, refused_rows=refused_rows, refused_dense=refused_dense)
    facts = {"step": snapshot.step, "clock_ms": clock_ms, "delta_format": delta_format}
    return facts | vars(counters)
