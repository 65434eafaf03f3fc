"""What an offline job begins with: vocabularies of its range, rows, dense parameters, maybe an ancestor's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.shard.shard import Counters
from parameter_server.storage.snapshots import Snapshot, latest
from parameter_server.table.dense import DENSE_COLUMNS, Dense
from recsys.config.system_config import ModelConfig, TableConfig, tables_of
from recsys.features.feature_set import FeatureSet
from recsys.model.model import build_model
from training.candidates.registry import Parent, Refused, parent_of
from training.continual.learner import Learner
from training.continual.rows_behind import examples_behind
from training.offline.distill import Distiller
from training.offline.loop import Blocks
from training.offline.tables import OwnTable, RowTable, started_columns
from training.offline.trainer import Exchange, OfflineTrainer, alone, lane_of
from training.offline.vocabulary import Counter, Vocabulary, select_keys

Arrays = Mapping[str, NDArray[Any]]
MakeTable = Callable[[TableConfig, Vocabulary, int], RowTable]
_COUNTED_AT_ONCE: Final = 1_024
_OF_USERS: Final = ("features", "users")  # tables in which a user's key has a row
_COLUMNS: Final = ("keys", "values", "accumulator", "used_ms")


@dataclass(frozen=True)
class Ancestor:
    """A snapshot to start from: who it is, and the arrays of its parts. Rows of ``forgotten`` users (keys)
    aren't taken over, also where they came back since."""

    parent: Parent
    parts: Sequence[Arrays]
    forgotten: Sequence[int] = ()

    def table(self, name: str) -> dict[str, NDArray[Any]]:
        """Keys, values, accumulator and used_ms of a table, in no order."""
        its = {c: np.concatenate([p[f"table/{name}/{c}"] for p in self.parts]) for c in _COLUMNS}
        if name not in _OF_USERS:
            return its
        stays = ~np.isin(its["keys"], np.array(self.forgotten, np.int64))
        return {column: array[stays] for column, array in its.items()}

    def vocabulary(self, name: str) -> Vocabulary:
        """Who has a row, and when it was used last."""
        its = self.table(name)
        order = np.argsort(its["keys"])
        return Vocabulary(its["keys"][order], its["used_ms"][order])

    @property
    def dense(self) -> dict[str, NDArray[Any]]:
        part = next(p for p in self.parts if "dense/values" in p)
        return {column: part[f"dense/{column}"] for column in DENSE_COLUMNS}


def ancestor_at(
    folder: Path, line: str, model: ModelConfig, dense: int, forgotten: Sequence[int] = ()
) -> Ancestor:
    """The newest snapshot of a line, to start from. Raises Refused where there is none, or it is of another
    model: ``dense`` is the number of parameters expected."""
    found, reasons = latest(folder, line)
    if found is None:
        raise Refused(
            f"no snapshot to start from in {folder / line}: {'; '.join(reasons) or 'none there'}"
        )
    its = Ancestor(parent_of(found), _read(found), forgotten)
    have = len(its.dense["values"])
    dims = {t.name: t.dim for t in tables_of(model)}
    theirs = {name: int(its.table(name)["values"].shape[1]) for name in dims}
    if have != dense or theirs != dims:
        raise Refused(
            f"{found.folder} has {have} dense parameters, tables of {theirs}, expected {dense} and {dims}; "
            "it is of another feature set or model; start from another, or from nothing"
        )
    return its


def _read(snapshot: Snapshot) -> list[dict[str, NDArray[Any]]]:
    def wanted(name: str) -> bool:
        return name.startswith(("table/", "dense/")) and "sketch" not in name

    return [snapshot.read(part, wanted) for part in range(snapshot.parts)]


def count_vocabularies(
    blocks: Blocks,
    learner: Learner,
    tables: Sequence[TableConfig],
    ancestor: Ancestor | None = None,
    shards: int = 1,
    size: int = _COUNTED_AT_ONCE,
) -> dict[str, Vocabulary]:
    """Who gets rows, by table: one pass over all blocks. ``shards``: how many budgets a table has."""
    counter = Counter([table.name for table in tables])
    for number in range(len(blocks)):
        block = blocks.read(number)
        for start in range(0, len(block), size):
            some = block.take(slice(start, start + size))
            lookup = lane_of(learner, some).lookup
            for name, counts in examples_behind(lookup).items():
                counter.see(name, lookup.keys[name], counts, int(some.time_ms.max()))
    seen = counter.sightings()
    return {
        table.name: select_keys(
            table,
            seen[table.name],
            ancestor.vocabulary(table.name) if ancestor else None,
            shards,
        )
        for table in tables
    }


def build_trainer(
    features: FeatureSet,
    model: ModelConfig,
    lanes: int,
    vocabularies: Mapping[str, Vocabulary],
    make: MakeTable,
    ancestor: Ancestor | None = None,
    rank: int = 0,
    workers: int = 1,
    exchange: Exchange = alone,
    share: float | None = None,
) -> OfflineTrainer:
    """A trainer at its beginning: initial values, or an ancestor's with its optimizer state. ``share``: of
    the teacher, whose probabilities stand beside the examples; None: there is none."""
    network = build_model(features, model)
    rows: dict[str, RowTable] = {}
    for table in tables_of(model):
        its = vocabularies[table.name]
        rows[table.name] = make(table, its, model.seed)
        if ancestor:
            rows[table.name].load(started_columns(table, its, model.seed, ancestor.table(table.name)))
    dense = Dense(
        network.read_dense(),
        model.dense_rate,
        average=model.dense_average,
        first=model.dense_first,
    )
    if ancestor:
        dense.load(ancestor.dense)
    learner = Learner(network) if share is None else Distiller(network, share=share)
    return OfflineTrainer(learner, rows, vocabularies, dense, lanes, rank, workers, exchange)


def table_maker(name: str) -> MakeTable:
    """By name, "torchrec" or "own". Raises ValueError for another."""
    if name == "torchrec":
        from training.offline.torchrec_tables import TorchrecTable

        return TorchrecTable
    if name == "own":
        return OwnTable
    raise ValueError(f"tables are {name!r}, expected 'torchrec' or 'own'")


def export_meta(
    arrays: Arrays, steps: int, refused_rows: int, refused_dense: int, delta_format: str
) -> dict[str, Any]:
    """What ``Shard.export`` would say beside these arrays."""
    used = [array for name, array in arrays.items() if name.endswith("/used_ms") and len(array)]
    rows = sum(len(array) for array in used)
    counted = Counters(inserted=rows, refused_rows=refused_rows, refused_dense=refused_dense)
    clock_ms = max((int(array.max()) for array in used), default=0)
    return {"step": steps, "clock_ms": clock_ms, "delta_format": delta_format, **vars(counted)}


def packed(vocabularies: Mapping[str, Vocabulary]) -> dict[str, NDArray[Any]]:
    """Vocabularies as arrays, for a file."""
    return {
        f"{name}/{column}": getattr(its, column)
        for name, its in vocabularies.items()
        for column in ("keys", "used_ms")
    }


def unpacked(arrays: Arrays) -> dict[str, Vocabulary]:
    """Vocabularies of ``packed``."""
    names = sorted({name.partition("/")[0] for name in arrays})
    return {name: Vocabulary(arrays[f"{name}/keys"], arrays[f"{name}/used_ms"]) for name in names}
