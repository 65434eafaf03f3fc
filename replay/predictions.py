"""Predictions as columns of a Parquet file, and the report made from them.

Columns: request_id, user_id, item_id, time_ms, line, version and, per label, ``score_<label>`` (a
probability) and ``label_<label>`` (0 or 1).
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from recsys.events.hashing import Id
from recsys.model import prediction_metrics as metrics

COLUMNS: Final = ("request_id", "user_id", "item_id", "time_ms", "line", "version")
_IDS: Final = ("user_id", "item_id")
_TYPES: Final = dict.fromkeys(COLUMNS, pa.string()) | {"time_ms": pa.int64()}


@dataclass(frozen=True)
class Predictions:
    """Scored impressions as columns, each of length N; ``scores`` and ``labels`` by label."""

    request_id: Sequence[str]
    user_id: Sequence[Id]
    item_id: Sequence[Id]
    time_ms: ArrayLike
    line: Sequence[str]
    version: Sequence[str]  # "epoch.step"
    scores: Mapping[str, ArrayLike]
    labels: Mapping[str, ArrayLike]

    def __post_init__(self) -> None:
        if self.scores.keys() != self.labels.keys():
            raise ValueError(
                f"scores are of {sorted(self.scores)}, expected those of the labels {sorted(self.labels)}"
            )
        rows = len(self.request_id)
        columns = {name: getattr(self, name) for name in COLUMNS}
        columns |= {f"score_{label}": column for label, column in self.scores.items()}
        columns |= {f"label_{label}": column for label, column in self.labels.items()}
        for name, column in columns.items():
            if len(column) != rows:
                raise ValueError(f"{name} has {len(column)} rows, expected {rows} as request_id")

    def rows(self, chosen: NDArray[Any]) -> "Predictions":
        """Selected rows, by a mask or positions."""
        take = {name: np.asarray(getattr(self, name), _type_of(name))[chosen] for name in COLUMNS}
        return Predictions(
            **take,
            scores={label: np.asarray(column)[chosen] for label, column in self.scores.items()},
            labels={label: np.asarray(column)[chosen] for label, column in self.labels.items()},
        )


def joined(blocks: Sequence[Predictions], labels: Sequence[str]) -> Predictions:
    """All rows of the blocks, in order. ``labels``: names of the columns, even if there is no block."""

    def join(name: str, label: str, dtype: type) -> NDArray[Any]:
        columns = [getattr(block, name)[label] for block in blocks]
        return np.concatenate([np.zeros(0, dtype), *columns])

    return Predictions(
        **{name: list(chain.from_iterable(getattr(b, name) for b in blocks)) for name in COLUMNS},
        scores={label: join("scores", label, np.float32) for label in labels},
        labels={label: join("labels", label, np.int64) for label in labels},
    )


def build_report(
    predictions: Predictions,
    *,
    utc_offset_h: float = 0.0,
    slices: Mapping[str, NDArray[np.bool_]] | None = None,
    about: Mapping[str, Any] | None = None,
    k: int = 10,
) -> dict[str, Any]:
    """Metrics of each label: overall, by day, and for each slice (a name and a mask of rows). ``lists`` are
    those inside requests, at ``k``.

    ``about`` (command, data set) is copied into the report. Undefined metrics are None.
    """
    time_ms = np.asarray(predictions.time_ms, np.int64)
    user, request = _codes(predictions.user_id), _codes(predictions.request_id)
    measure = partial(_measure, k)
    report: dict[str, Any] = dict(about or {}) | {
        "rows": len(time_ms), "users": int(user.max(initial=-1)) + 1,
        "from_ms": int(time_ms.min()) if len(time_ms) else None,
        "until_ms": int(time_ms.max()) + 1 if len(time_ms) else None, "utc_offset_h": utc_offset_h,
        "lines": sorted({str(line) for line in predictions.line}), "labels": {},
    }  # fmt: skip
    for label, column in predictions.scores.items():
        score = np.asarray(column, np.float64)
        truth = np.asarray(predictions.labels[label], np.float64)
        rows: list[NDArray[Any]] = [score, truth, user, request]
        report["labels"][label] = measure(*rows) | {
            "by_day": metrics.by_day(measure, time_ms, *rows, utc_offset_h=utc_offset_h),
            "slices": {
                name: measure(*(column[mask] for column in rows)) for name, mask in (slices or {}).items()
            },
        }
    return report


def compare(predictions: Predictions, baseline: Predictions, label: str) -> dict[str, Any]:
    """AUC(predictions) − AUC(baseline) of one label on the rows that both scored, with a user-bootstrap
    interval."""
    places = {key: i for i, key in enumerate(_keys(baseline))}
    pairs = [(i, places[key]) for i, key in enumerate(_keys(predictions)) if key in places]
    rows, baseline_rows = np.array(pairs, np.int64).reshape(-1, 2).T
    interval = metrics.paired_auc_interval(
        np.asarray(predictions.scores[label])[rows],
        np.asarray(baseline.scores[label])[baseline_rows],
        np.asarray(predictions.labels[label])[rows],
        _codes(predictions.user_id)[rows],
    )
    return {"label": label, "rows": len(pairs)} | {
        name: _number(value) for name, value in asdict(interval).items()
    }


def write_report(file: Path, report: Mapping[str, Any]) -> None:
    """Writes the report as JSON, atomically."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(part, file)


class PredictionsFile:
    """Parquet file that is written block by block as ``FILE.part``, and renamed by ``finish``.

    Ids are integers when all of them are: with the first id that is a text, earlier blocks are rewritten.
    """

    def __init__(self, file: Path, labels: Sequence[str]) -> None:
        self._file, self._part = file, file.with_name(file.name + ".part")
        empty = _table(joined([], labels))
        self._writer = pq.ParquetWriter(self._part, empty.schema, compression="zstd")
        self._writer.write_table(empty)

    def write(self, block: Predictions) -> None:
        table, before = _table(block), self._writer.schema
        pairs = zip(before, table.schema, strict=True)
        schema = pa.schema([a if a.type == b.type else a.with_type(pa.string()) for a, b in pairs])
        if schema != before:
            self._begin_again(schema)
        self._writer.write_table(table.cast(schema))

    def finish(self) -> Predictions:
        """Renames the file, and reads it again."""
        self.close()
        os.replace(self._part, self._file)
        return read_predictions(self._file)

    def close(self) -> None:
        """Makes what was written readable."""
        self._writer.close()

    def _begin_again(self, schema: pa.Schema) -> None:
        old = self._part.with_name(self._part.name + ".old")
        self.close()
        os.replace(self._part, old)
        self._writer = pq.ParquetWriter(self._part, schema, compression="zstd")
        for batch in pq.ParquetFile(old).iter_batches():
            self._writer.write_table(pa.Table.from_batches([batch]).cast(schema))
        old.unlink()


def _table(predictions: Predictions) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        column = getattr(predictions, name)
        columns[name] = _ids(column) if name in _IDS else pa.array(column, _TYPES[name])
    for label in predictions.scores:
        columns[f"score_{label}"] = pa.array(np.asarray(predictions.scores[label], np.float32))
        columns[f"label_{label}"] = pa.array(np.asarray(predictions.labels[label], np.int8))
    return pa.table(columns)


def read_predictions(file: Path) -> Predictions:
    """Reads a file of ``PredictionsFile``, or of another recommender's evaluation."""
    table = pq.read_table(file)
    for name in COLUMNS:
        if name not in table.column_names:
            columns = ", ".join(table.column_names)
            raise ValueError(f"{file}: no column {name!r}, expected it beside {columns}")
    labels = [name[6:] for name in table.column_names if name.startswith("score_")]
    return Predictions(
        **{name: _shared(table[name]) for name in COLUMNS},
        scores={label: table[f"score_{label}"].to_numpy() for label in labels},
        labels={label: table[f"label_{label}"].to_numpy() for label in labels},
    )


def _measure(
    k: int,
    score: NDArray[np.float64],
    truth: NDArray[np.float64],
    user: NDArray[np.int64],
    request: NDArray[np.int64],
) -> dict[str, Any]:
    lists = metrics.list_metrics(score, truth, request, k)
    return {
        "rows": len(score),
        "positives": int(truth.sum()),
        "auc": _number(metrics.auc(score, truth)),
        "grouped_auc": _number(metrics.grouped_auc(score, truth, user)),
        "log_loss": _number(metrics.log_loss(score, truth)),
        "normalized_entropy": _number(metrics.normalized_entropy(score, truth)),
        "calibration": _number(metrics.calibration(score, truth)),
        "lists": {name: _number(value) for name, value in lists.items()},
    }


def _keys(predictions: Predictions) -> list[tuple[str, str]]:
    pairs = zip(predictions.request_id, predictions.item_id, strict=True)
    return [(str(request), str(item)) for request, item in pairs]


def _codes(ids: Sequence[Id]) -> NDArray[np.int64]:
    """Ids as numbers from 0. The integer 7 and the text "7" are the same id."""
    return np.unique(np.asarray([str(id_) for id_ in ids]), return_inverse=True)[1]


def _shared(column: pa.ChunkedArray) -> Any:
    """Values as objects, one for equal values."""
    coded = column.combine_chunks().dictionary_encode()
    return np.array(coded.dictionary.to_pylist(), object)[coded.indices.to_numpy()]


def _ids(column: Sequence[Id]) -> Any:
    if all(isinstance(id_, int | np.integer) for id_ in column):
        return pa.array([int(id_) for id_ in column], pa.int64())
    return pa.array([str(id_) for id_ in column], pa.string())


def _type_of(column: str) -> Any:
    return np.int64 if column == "time_ms" else object


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
