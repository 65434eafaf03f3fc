"""Report of a replay: metrics of its judged rows and their slices, and a table of them.

It doesn't know how the scores were made.
"""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from recsys.events.event_types import Event
from recsys.events.field_schema import CATEGORICAL
from replay.datasets.dataset import Dataset
from replay.predictions import Predictions, build_report, compare
from replay.replay_run import ReplayOptions, ReplayResult

_DAY_MS = 86_400_000
_REPORT_S = 10.0


def report_of(
    data: Path, dataset: Dataset, options: ReplayOptions, replayed: ReplayResult, baseline: Predictions | None
) -> dict[str, Any]:
    """The report of a replay. ``baseline``: predictions to compare with, on the judged rows."""
    about = _about(data, dataset, options, replayed)
    if baseline is not None:
        rows = judged_rows(dataset, replayed.predictions, options.judge_from_ms)
        judged = replayed.predictions.rows(rows)
        about["against"] = compare(judged, baseline, dataset.labels[0])
    return build_report(
        replayed.predictions, utc_offset_h=dataset.utc_offset_h,
        slices=slices_of(dataset, replayed, options.judge_from_ms), about=about, k=options.k,
    )  # fmt: skip


def judged_rows(dataset: Dataset, predictions: Predictions, from_ms: int | None = None) -> NDArray[np.bool_]:
    """Mask of the judged rows: those from ``from_ms`` on, by default of the later half of the days (of six or
    seven, the last three)."""
    if from_ms is not None:
        return np.asarray(predictions.time_ms) >= from_ms
    days = (np.asarray(predictions.time_ms) + int(dataset.utc_offset_h * 3_600_000)) // _DAY_MS
    if not len(days):
        return np.zeros(0, np.bool_)
    judged: NDArray[np.bool_] = days >= first_judged_day(days)
    return judged


def first_judged_day(days: NDArray[np.int64]) -> int:
    """First day of the later half of the distinct days, of at least one."""
    distinct = np.unique(days)
    return int(distinct[-max(1, len(distinct) // 2)])


def slices_of(
    dataset: Dataset, replayed: ReplayResult, from_ms: int | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Masks by name: ``test`` and, within it, the commonest values of the first context field."""
    test = judged_rows(dataset, replayed.predictions, from_ms)
    masks = {"test": test}
    names = dataset.schema.names("context", CATEGORICAL)
    values, counts = np.unique(replayed.contexts, return_counts=True)
    if names and len(values) > 1:
        for value in values[np.argsort(-counts)][:3]:
            masks[f"test {names[0]}={value}"] = test & (replayed.contexts == value)
    return masks


def _about(data: Path, dataset: Dataset, options: ReplayOptions, replayed: ReplayResult) -> dict[str, Any]:
    about: dict[str, Any] = {} if replayed.retrieval is None else {"retrieval": replayed.retrieval}
    if replayed.function_errors:
        about["function_errors"] = replayed.function_errors
    if replayed.constant_columns:
        about["constant_columns"] = replayed.constant_columns
    return about | {
        "data": dataset.name,
        "folder": data.name,
        "options": {name: value for name, value in vars(options).items() if value not in (None, "")},
        "steps": replayed.steps,
        "seconds": round(replayed.seconds, 1),
        "joiner": replayed.counts,
        "digest": replayed.digest,
        "dead_letters": dict(dataset.dead_letters),
        "repeats": dataset.repeats,
    }


def with_bar(events: Iterator[Event]) -> Iterator[Event]:
    """The events, with progress on stderr: a bar that shows event time; without a terminal, a line every ten
    seconds."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    started = reported = time.monotonic()
    is_hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as bar:
        task = bar.add_task("reading")
        for count, event in enumerate(events):
            yield event
            if count % 1000:
                continue
            moment = datetime.fromtimestamp(event.time_ms / 1000, UTC)
            text = f"{count:,} events, {moment:%d %b %H:%M}"
            bar.update(task, description=text)
            if is_hidden and (now := time.monotonic()) >= reported + _REPORT_S:
                reported = now
                print(f"recsys: {text}, {now - started:.0f} s", file=sys.stderr, flush=True)
