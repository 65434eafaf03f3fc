"""Spans as a file of JSON lines, each an OTLP request: for a laptop, where no collector runs.

All processes append to one file, under a lock. At its size it is put beside itself as NAME.1, in the place of
the one before: so no more than twice the size is there.
"""

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from recsys.observability.spans import Span, otlp


class SpanFile:
    """Appends batches of spans. Raises OSError where it can't."""

    def __init__(self, path: str | Path, most_bytes: int, resource: Mapping[str, str]) -> None:
        self._path, self._most, self._resource = Path(path), most_bytes, resource

    def __call__(self, spans: Sequence[Span]) -> None:
        line = msgspec.json.encode(otlp(spans, self._resource)) + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT
        lock = os.open(self._path.with_name(f".{self._path.name}.lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(len(line))
            file = os.open(self._path, flags | os.O_APPEND, 0o600)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        finally:
            os.close(lock)

    def _make_room(self, more: int) -> None:
        try:
            full = self._path.stat().st_size + more > self._most
        except FileNotFoundError:
            return
        if full:
            os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
