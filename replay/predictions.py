"""Predictions as columns of a Parquet file, and the report made from them.

Columns: request_id, user_id, item_id, time_ms, line, version and, per label, ``score_<label>`` (a
probability) and ``label_<label>`` (0 or 1).
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from recsys.events.hashing import Id
from recsys.model import prediction_metrics as metrics

COLUMNS: Final = ("request_id", "user_id", "item_id", "time_ms", "line", "version")


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


def build_report(
    predictions: Predictions,
    *,
    utc_offset_h: float = 0.0,
    slices: Mapping[str, NDArray[np.bool_]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Metrics of each label: overall, by day, and for each slice (a name and a mask of rows).

    ``about`` (command, data set) is copied into the report. Undefined metrics are None.
    """
    time_ms = np.asarray(predictions.time_ms, np.int64)
    user = _codes(predictions.user_id)
    report: dict[str, Any] = dict(about or {}) | {
        "rows": len(time_ms),
        "users": int(user.max(initial=-1)) + 1,
        "from_ms": int(time_ms.min()) if len(time_ms) else None,
        "until_ms": int(time_ms.max()) + 1 if len(time_ms) else None,
        "utc_offset_h": utc_offset_h,
        "lines": sorted({str(line) for line in predictions.line}),
        "labels": {},
    }
    for label, column in predictions.scores.items():
        score = np.asarray(column, np.float64)
        truth = np.asarray(predictions.labels[label], np.float64)
        report["labels"][label] = _measure(score, truth, user) | {
            "by_day": metrics.by_day(
                _measure, time_ms, score, truth, user, utc_offset_h=utc_offset_h
            ),
            "slices": {
                name: _measure(score[mask], truth[mask], user[mask])
                for name, mask in (slices or {}).items()
            },
        }
    return report


def compare(
    predictions: Predictions,
    baseline: Predictions,
    label: str,
    *,
    samples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
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
        samples=samples,
        seed=seed,
    )
    return {"label": label, "rows": len(pairs)} | {
        name: _number(value) for name, value in asdict(interval).items()
    }


def write_report(file: Path, report: Mapping[str, Any]) -> None:
    """Writes the report as JSON, atomically."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(part, file)


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Writes the Parquet file, atomically. Ids are integers when all of them are."""
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        column = getattr(predictions, name)
        columns[name] = _ids(column) if name in ("user_id", "item_id") else pa.array(column)
    for label in predictions.scores:
        score = np.asarray(predictions.scores[label], np.float32)
        columns[f"score_{label}"] = pa.array(score)
        columns[f"label_{label}"] = pa.array(np.asarray(predictions.labels[label], np.int8))
    part = file.with_name(file.name + ".part")
    pq.write_table(pa.table(columns), part, compression="zstd")
    os.replace(part, file)


def read_predictions(file: Path) -> Predictions:
    """Reads a file of ``write_predictions``, or of another recommender's evaluation."""
    table = pq.read_table(file)
    for name in COLUMNS:
        if name not in table.column_names:
            columns = ", ".join(table.column_names)
            raise ValueError(f"{file}: no column {name!r}, expected it beside {columns}")
    labels = [name[6:] for name in table.column_names if name.startswith("score_")]
    return Predictions(
        **{name: table[name].to_pylist() for name in COLUMNS},
        scores={label: table[f"score_{label}"].to_numpy() for label in labels},
        labels={label: table[f"label_{label}"].to_numpy() for label in labels},
    )


def _measure(
    score: NDArray[np.float64], truth: NDArray[np.float64], user: NDArray[np.int64]
) -> dict[str, Any]:
    return {
        "rows": len(score),
        "positives": int(truth.sum()),
        "auc": _number(metrics.auc(score, truth)),
        "grouped_auc": _number(metrics.grouped_auc(score, truth, user)),
        "log_loss": _number(metrics.log_loss(score, truth)),
        "normalized_entropy": _number(metrics.normalized_entropy(score, truth)),
        "calibration": _number(metrics.calibration(score, truth)),
    }


def _keys(predictions: Predictions) -> list[tuple[str, str]]:
    pairs = zip(predictions.request_id, predictions.item_id, strict=True)
    return [(str(request), str(item)) for request, item in pairs]


def _codes(ids: Sequence[Id]) -> NDArray[np.int64]:
    """Ids as numbers from 0. The integer 7 and the text "7" are the same id."""
    return np.unique(np.asarray([str(id_) for id_ in ids]), return_inverse=True)[1]


def _ids(column: Sequence[Id]) -> Any:
    if all(isinstance(id_, int | np.integer) for id_ in column):
        return pa.array([int(id_) for id_ in column], pa.int64())
    return pa.array([str(id_) for id_ in column], pa.string())


def _type_of(column: str) -> Any:
    return np.int64 if column == "time_ms" else object


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
