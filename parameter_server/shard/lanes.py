"""Gradients by lane and their sum over a step, which a shard applies and its write-ahead file stores.

Lanes are always added in order, so a step's result is independent of the number of workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from parameter_server.table import kernels
from parameter_server.table.dense import Vector
from parameter_server.table.routing import Keys, Rows, as_keys, as_rows
from recsys.arrays.key_index import cells_for, empty_index

Counts = NDArray[np.int32]
# Factor on a step's learning rate. New steps have at most 1; those of earlier versions may have more.
MAX_RATE: Final = 10.0


class RowGradients(NamedTuple):
    """Distinct keys (N,), summed gradients (N, D), number of examples of each key (N,)."""

    keys: Keys
    gradients: Rows
    counts: Counts

    def take(self, positions: Keys) -> "RowGradients":
        """Rows at ``positions``, in that order."""
        columns = (self.keys[positions], self.gradients[positions], self.counts[positions])
        return RowGradients(*columns)


@dataclass(frozen=True)
class LaneGradients:
    """Gradients of one lane in one step. Only shard 0 reads ``dense`` and ``metrics``. ``forget``: keys by
    table whose rows are removed with this step. ``rate``: factor on the learning rates, equal in all lanes of
    a step."""

    lane: int
    tables: Mapping[str, RowGradients] = field(default_factory=dict)
    dense: Vector | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # prequential sums
    forget: Mapping[str, Keys] = field(default_factory=dict)
    rate: float = 1.0


class _SumRows(msgspec.Struct, frozen=True):
    table: str
    keys: bytes
    gradients: bytes
    counts: bytes


class _SumRecord(msgspec.Struct, frozen=True):
    step: int
    time_ms: int
    tables: list[_SumRows]
    dense: bytes | None
    metrics: dict[str, float]
    forget: dict[str, bytes]
    rate: float = 1.0


@dataclass(frozen=True)
class StepSum:
    """Sum of one step's lanes, a pure function of the lanes in lane order."""

    step: int
    time_ms: int
    tables: Mapping[str, RowGradients]
    dense: Vector | None
    metrics: Mapping[str, float]
    forget: Mapping[str, Keys] = field(default_factory=dict)
    rate: float = 1.0  # on the learning rate: Adagrad and Adam undo a scaled gradient

    def encode(self) -> bytes:
        """Bytes for the write-ahead file."""
        tables = [
            _SumRows(name, _view(rows.keys), _view(rows.gradients), _view(rows.counts))
            for name, rows in self.tables.items()
        ]
        dense = None if self.dense is None else _view(self.dense)
        forget = {name: keys.tobytes() for name, keys in self.forget.items()}
        record = _SumRecord(self.step, self.time_ms, tables, dense, dict(self.metrics), forget, self.rate)
        return msgspec.msgpack.encode(record)

    @staticmethod
    def decode(payload: bytes) -> "StepSum":
        """Inverse of ``encode``, bit for bit."""
        record = msgspec.msgpack.decode(payload, type=_SumRecord)
        tables = {}
        for rows in record.tables:
            keys = np.frombuffer(rows.keys, np.int64)
            gradients = np.frombuffer(rows.gradients, np.float32)
            width = len(gradients) // len(keys) if len(keys) else 0
            counts = np.frombuffer(rows.counts, np.int32)
            tables[rows.table] = RowGradients(keys, gradients.reshape(len(keys), width), counts)
        dense = None if record.dense is None else np.frombuffer(record.dense, np.float32)
        forget = {name: np.frombuffer(keys, np.int64) for name, keys in record.forget.items()}
        step, metrics = (record.step, record.time_ms), record.metrics
        return StepSum(*step, tables, dense, metrics, forget, record.rate)


def _view(array: NDArray[Any]) -> Any:
    """An array's memory as a memoryview, which is encoded like bytes, but copied only into the record."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def add_lanes(step: int, time_ms: int, lanes: Sequence[LaneGradients], dims: Mapping[str, int]) -> StepSum:
    """Sums lanes in lane order, table by table in the order of ``dims``. Raises ValueError for a table not in
    ``dims``, rows of another dimension, or several rates."""
    lanes = sorted(lanes, key=lambda lane: lane.lane)
    rate = _rate_of(step, lanes)
    named = {name for lane in lanes for name in (*lane.tables, *lane.forget)}
    unknown = named - dims.keys()
    if unknown:
        raise ValueError(f"no tables {sorted(unknown)}; there are {sorted(dims)}")
    tables, forget = {}, {}
    for name, dim in dims.items():
        gone = [as_keys(lane.forget[name]) for lane in lanes if name in lane.forget]
        if gone:
            forget[name] = np.unique(np.concatenate(gone))
        parts = [lane.tables[name] for lane in lanes if name in lane.tables]
        parts = [part for part in parts if len(part.keys)]
        if parts:
            tables[name] = _add_rows(name, dim, parts)
    dense = None
    metrics: dict[str, float] = {}
    for lane in lanes:
        if lane.dense is not None:
            vector = np.asarray(lane.dense, np.float32)
            dense = vector.copy() if dense is None else dense + vector
        for metric, value in lane.metrics.items():
            metrics[metric] = metrics.get(metric, 0.0) + value
    return StepSum(step, time_ms, tables, dense, metrics, forget, rate)


def _rate_of(step: int, lanes: Sequence[LaneGradients]) -> float:
    rates = sorted({lane.rate for lane in lanes}) or [1.0]
    if len(rates) > 1 or not 0 < rates[0] <= MAX_RATE:
        raise ValueError(
            f"step {step} came with the learning rates {rates} times the usual, expected one above 0, at "
            f"most {MAX_RATE:g}, equal in all its lanes"
        )
    return rates[0]


def _add_rows(name: str, dim: int, parts: Sequence[RowGradients]) -> RowGradients:
    most = sum(len(part.keys) for part in parts)
    index, keys = empty_index(cells_for(most)), np.empty(most, np.int64)
    counts, sums = np.zeros(most, np.int32), np.zeros((most, dim), np.float32)
    rows = 0
    for part in parts:
        gradients, lane_keys = as_rows(part.gradients), as_keys(part.keys)
        lane_counts = np.ascontiguousarray(part.counts, np.int32)
        if gradients.shape != (len(part.keys), dim) or len(lane_counts) != len(part.keys):
            raise ValueError(
                f"table {name}: {len(part.keys)} keys come with gradients {gradients.shape} and "
                f"{len(lane_counts)} counts, expected {(len(part.keys), dim)} and {len(part.keys)}"
            )
        arrays = lane_keys, gradients, lane_counts
        rows = int(kernels.add_lane(index, keys, counts, sums, rows, *arrays))
    return RowGradients(keys[:rows], sums[:rows], counts[:rows])
