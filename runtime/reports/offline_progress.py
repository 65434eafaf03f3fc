"""Progress of an offline job on a terminal, and the summary of the candidate that it made."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import typer
from rich.table import Table

from runtime.reports.tables import plain_table
from training.candidates.registry import Registry, describe_model, describe_teacher, iso
from training.offline.cache import Cache

_LINE_EVERY_S: Final = 1.0
_POLL_EVERY_S: Final = 1.0


class ProgressLine:
    """Progress callback that rewrites one line on a terminal, at most once a second."""

    def __init__(self) -> None:
        self._next, self._started = 0.0, time.monotonic()

    def __call__(self, place: Any, sums: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now < self._next or not sys.stderr.isatty():
            return
        self._next = now + _LINE_EVERY_S
        rate = place.learned / max(1e-9, now - self._started)
        text = f"{place.stage}, epoch {place.epoch}: {place.learned:,} learned"
        typer.echo(f"\r\x1b[K{text}, {rate:,.0f} a second", nl=False, err=True)


class ProgressFileFollower:
    """Context that prints each progress record that worker 0 writes to a file, for `ray job logs`."""

    def __init__(self, file: Path, kind: type[Any]) -> None:
        self._file, self._kind, self._done = file, kind, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "ProgressFileFollower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        before = None
        while not self._done.wait(_POLL_EVERY_S):
            try:
                progress = msgspec.json.decode(self._file.read_bytes(), type=self._kind)
            except (OSError, msgspec.MsgspecError):
                continue
            if progress != before:
                before = progress
                typer.echo(
                    f"{progress.stage}, epoch {progress.epoch}, step {progress.steps}: "
                    f"{progress.learned:,} learned, log loss {progress.log_loss:.4f}",
                    err=True,
                )


def describe_job(job: Any, workers: int) -> str:
    """Describes a job that is about to start, in one line."""
    about, hidden = Cache(Path(job.cache)).about, "x".join(map(str, job.model.hidden))
    return (
        f"candidate {job.name}: {about.examples:,} examples from {iso(about.from_ms)} to "
        f"{iso(about.until_ms)}, at most {job.plan.epochs} epochs, model dim={job.model.dim} "
        f"hidden={hidden} ranker={job.model.ranker or 'built-in'}, features {job.features.kind}, "
        f"{workers or 'no'} Ray workers"
    )


def summary(registry: Path, name: str, seconds: float, existed: bool) -> dict[str, Any]:
    """Summarises a candidate and its metrics."""
    provenance = Registry(registry).provenance(name)
    distilled, metrics = {}, provenance.metrics
    if provenance.teacher is not None:
        teacher = describe_teacher(provenance.teacher)
        distilled = {"model": describe_model(provenance), "teacher": teacher}

    def measured(how: str) -> dict[str, float | None]:
        return {"log loss": metrics.get(f"{how}.log_loss"), "AUC": metrics.get(f"{how}.auc")}

    return {
        "candidate": name, "already registered": existed, **distilled,
        "learned": f"{iso(provenance.from_ms)} to {iso(provenance.until_ms)}",
        "examples": provenance.examples, "epochs": provenance.epochs,
        "last day, held out": measured("last_day"), "last day, as it was learned": measured("prequential"),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def summary_table(values: dict[str, Any]) -> Table:
    """Lays out ``summary`` for a terminal."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            parts = (f"{k} {v:.4f}" for k, v in value.items() if v is not None)
            return ", ".join(parts) or "unknown"
        is_count = isinstance(value, int) and not isinstance(value, bool)
        return f"{value:,}" if is_count else str(value)

    return plain_table(("", ""), [(name, text(v)) for name, v in values.items()])
