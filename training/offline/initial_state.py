"""Builds the initial state of an offline job: vocabularies, rows and dense parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.shard.shard import ShardCounts
from parameter_server.storage.snapshots import latest
from parameter_server.table.dense import DENSE_COLUMNS, Dense
from recsys.config.system_config import ModelConfig, TableConfig, tables_of
from recsys.features.feature_set import FeatureSet
from recsys.model.model import build_model
from training.candidates.registry import Refused, SnapshotRef, reference_to
from training.continual.learner import Learner
from training.continual.row_usage import examples_per_row
from training.offline.distill import Distiller
from training.offline.loop import Blocks
from training.offline.tables import OwnTable, RowTable, started_columns
from training.offline.trainer import Exchange, OfflineTrainer, lane_of, no_exchange
from training.offline.vocabulary import KeyCounter, Vocabulary, select_keys

Arrays = Mapping[str, NDArray[Any]]
MakeTable = Callable[[TableConfig, Vocabulary, int], RowTable]
_COUNTED_AT_ONCE: Final = 1_024
_USER_TABLES: Final = ("features", "users")  # tables in which a user's key has a row
_COLUMNS: Final = ("keys", "values", "accumulator", "used_ms")


@dataclass(frozen=True)
class Ancestor:
    """The arrays of a snapshot's parts, to start from without rows of ``forgotten`` users (keys)."""

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
    folder: Path, line: str, model: ModelConfig, dense: int, forgotten: Sequence[int] = ()
) -> Ancestor:
    """Loads the newest snapshot of a line to start from. Raises Refused if there is none, or it is of another
    model. ``dense``: expected number of parameters."""
    snapshot, reasons = latest(folder, line)
    if snapshot is None:
        why = "; ".join(reasons) or "none there"
        raise Refused(f"no snapshot to start from in {folder / line}: {why}")

    def wanted(name: str) -> bool:
        return name.startswith(("table/", "dense/")) and "sketch" not in name

    parts = [snapshot.read(part, wanted) for part in range(snapshot.parts)]
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


def count_vocabularies(
    blocks: Blocks,
    learner: Learner,
    tables: Sequence[TableConfig],
    ancestor: Ancestor | None = None,
    shards: int = 1,
    size: int = _COUNTED_AT_ONCE,
) -> dict[str, Vocabulary]:
    """Vocabularies by table, in one pass over all blocks. ``shards``: number of budgets of a table."""
    counter = KeyCounter(table.name for table in tables)
    for number in range(len(blocks)):
        for part in blocks.read(number).cut(size):
            lookup = lane_of(learner, part).lookup
            for name, counts in examples_per_row(lookup).items():
                counter.add(name, lookup.keys[name], counts, int(part.time_ms.max()))
    totals = counter.totals()
    vocabularies = {}
    for table in tables:
        before = ancestor.vocabulary(table.name) if ancestor else None
        vocabularies[table.name] = select_keys(table, totals[table.name], before, shards)
    return vocabularies


def build_trainer(
    features: FeatureSet,
    model: ModelConfig,
    lanes: int,
    vocabularies: Mapping[str, Vocabulary],
    make: MakeTable,
    ancestor: Ancestor | None = None,
    rank: int = 0,
    workers: int = 1,
    exchange: Exchange = no_exchange,
    share: float | None = None,
) -> OfflineTrainer:
    """A new trainer with initial values, or an ancestor's with its optimizer state. ``share``: the teacher's,
    whose probabilities are in the examples; None: no teacher."""
    network = build_model(features, model)
    rows: dict[str, RowTable] = {}
    for table in tables_of(model):
        keys = vocabularies[table.name]
        rows[table.name] = make(table, keys, model.seed)
        if ancestor:
            before = ancestor.table(table.name)
            rows[table.name].load(started_columns(table, keys, model.seed, before))
    values = network.read_dense()
    dense = Dense(values, model.dense_rate, average=model.dense_average, first=model.dense_first)
    if ancestor:
        dense.load(ancestor.dense)
    learner = Learner(network) if share is None else Distiller(network, share=share)
    return OfflineTrainer(learner, rows, vocabularies, dense, lanes, rank, workers, exchange)


def table_maker(name: str) -> MakeTable:
    """The table class "torchrec" or "own". Raises ValueError for another name."""
    if name == "torchrec":
        from training.offline.torchrec_tables import TorchrecTable

        return TorchrecTable
    if name == "own":
        return OwnTable
    raise ValueError(f"tables are {name!r}, expected 'torchrec' or 'own'")


def export_meta(
    arrays: Arrays, steps: int, refused_rows: int, refused_dense: int, delta_format: str
) -> dict[str, Any]:
    """The metadata that ``Shard.export`` would return with these arrays."""
    used = [array for name, array in arrays.items() if name.endswith("/used_ms") and len(array)]
    rows = sum(len(array) for array in used)
    counters = ShardCounts(inserted=rows, refused_rows=refused_rows, refused_dense=refused_dense)
    clock_ms = max((int(array.max()) for array in used), default=0)
    return {"step": steps, "clock_ms": clock_ms, "delta_format": delta_format, **vars(counters)}
