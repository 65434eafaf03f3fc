"""How an offline job goes, a line on a terminal, and the closing table of what it made."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

_LINE_EVERY_S: Final = 1.0
_LOOK_EVERY_S: Final = 1.0


class Told:
    """A line on a terminal about how it goes, at most one a second."""

    def __init__(self) -> None:
        self._next, self._started = 0.0, time.monotonic()

    def __call__(self, place: Any, sums: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now < self._next or not sys.stderr.isatty():
            return
        self._next = now + _LINE_EVERY_S
        rate = place.learned / max(1e-9, now - self._started)
        text = (
            f"{place.stage}, epoch {place.epoch}: {place.learned:,} learned, {rate:,.0f} a second"
        )
        typer.echo(f"\r\x1b[K{text}", nl=False, err=True)


class Followed:
    """While it lasts, a line for each word that worker 0 leaves in a file: what `ray job logs` shows."""

    def __init__(self, file: Path, kind: type[Any]) -> None:
        self._file, self._kind, self._done = file, kind, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Followed":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        before = None
        while not self._done.wait(_LOOK_EVERY_S):
            try:
                its = msgspec.json.decode(self._file.read_bytes(), type=self._kind)
            except (OSError, msgspec.MsgspecError):
                continue
            if its != before:
                before = its
                typer.echo(
                    f"{its.stage}, epoch {its.epoch}, step {its.steps}: {its.learned:,} learned, log loss "
                    f"{its.log_loss:.4f}", err=True,
                )  # fmt: skip


def begun(job: Any, workers: int) -> str:
    """What a job is about to do, in a line."""
    from training.candidates.registry import iso
    from training.offline.cache import Cache

    about, hidden = Cache(Path(job.cache)).about, "x".join(map(str, job.model.hidden))
    return (
        f"candidate {job.name}: {about.examples:,} examples from {iso(about.from_ms)} to "
        f"{iso(about.until_ms)}, at most {job.plan.epochs} epochs, model dim={job.model.dim} "
        f"hidden={hidden}, features {job.features.kind}, {workers or 'no'} workers of Ray"
    )


def summary(registry: Path, name: str, seconds: float, stood: bool) -> dict[str, Any]:
    """The closing table."""
    from training.candidates.registry import Registry, iso, describe_model, describe_teacher

    its = Registry(registry).provenance(name)
    teacher = (
        {}
        if its.teacher is None
        else {"model": describe_model(its), "teacher": describe_teacher(its.teacher)}
    )
    return {
        "candidate": name,
        "stood already": stood,
        **teacher,
        "learned": f"{iso(its.from_ms)} to {iso(its.until_ms)}",
        "examples": its.examples,
        "epochs": its.epochs,
        "last day, held out": {
            "log loss": its.metrics.get("last_day.log_loss"),
            "AUC": its.metrics.get("last_day.auc"),
        },
        "last day, as it was learned": {
            "log loss": its.metrics.get("prequential.log_loss"),
            "AUC": its.metrics.get("prequential.auc"),
        },
        "seconds": round(seconds, 1),
    }


def print_done(done: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in done.items():
        if isinstance(value, dict):
            value = (
                ", ".join(f"{k} {v:.4f}" for k, v in value.items() if v is not None) or "unknown"
            )
        table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool)
                      else str(value))  # fmt: skip
    Console().print(table)
