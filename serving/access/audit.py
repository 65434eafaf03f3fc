"""Audit trail: who changed what, and which callers were refused, without bodies and secrets.

JSON lines in ``state/run``, rotated; a thread writes them. Refusals have a file of their own and a rate, so
that a flood of them doesn't push out the changes.
"""

import json
import logging
import queue
from collections.abc import Iterator
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from serving.access.quotas import BURST_S
from serving.admission.admission import TokenBuckets

_BYTES, _FILES = 5_000_000, 4  # of a file; rotated ones
_QUEUED: Final = 10_000
_REFUSED: Final = "-refused"  # end of the name of refusals' file
_REFUSALS_S: Final = 10.0  # logged refusals a second; a call has a line of its own otherwise


class AuditTrail:
    """Writes the trail of one replica. ``write`` doesn't wait for the disk."""

    def __init__(self, folder: Path, replica: str) -> None:
        self._lines: queue.Queue[Any] = queue.Queue(_QUEUED)
        self._handler = QueueHandler(self._lines)
        self._rate = TokenBuckets(_REFUSALS_S, burst_s=BURST_S)
        self._refused = 0  # since the last logged refusal
        self._writers = [_writer(folder / f"audit-{replica}{end}.log") for end in ("", _REFUSED)]
        self._listener: QueueListener | None = None

    def call(self, time_ms: int, **fields: Any) -> None:
        """Notes a call that changes or shows what only a key may."""
        self._put("call", {"time_ms": time_ms} | fields)

    def refusal(self, time_ms: int, **fields: Any) -> None:
        """Notes a refused call. Over the rate they are only counted."""
        if self._rate.take("", time_ms / 1000):
            self._refused += 1
            return
        more = {"not_logged": self._refused} if self._refused else {}
        self._put("refused", {"time_ms": time_ms} | fields | more)
        self._refused = 0

    def close(self) -> None:
        """Writes what is queued."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        for writer in self._writers:
            writer.close()

    def _put(self, kind: str, fields: dict[str, Any]) -> None:
        if self._listener is None:
            self._listener = QueueListener(self._lines, *self._writers)
            self._listener.start()
        record = logging.LogRecord(kind, logging.INFO, "", 0, json.dumps(fields), None, None)
        try:
            self._handler.enqueue(record)
        except queue.Full:  # the disk hangs
            self._refused += 1


def read_trail(folder: Path, since_ms: int = 0) -> Iterator[dict[str, Any]]:
    """Lines of all replicas, oldest first."""
    lines = []
    for file in folder.glob("audit-*.log*"):
        for text in file.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # cut off by a crash
            if line.get("time_ms", 0) >= since_ms:
                lines.append(line)
    yield from sorted(lines, key=lambda line: int(line["time_ms"]))


def _writer(file: Path) -> RotatingFileHandler:
    handler = _TrailFile(file, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8", delay=True)
    kind = "refused" if file.stem.endswith(_REFUSED) else "call"
    handler.addFilter(lambda record: record.name == kind)
    return handler


class _TrailFile(RotatingFileHandler):
    """File that is made, with its folder, for its owner alone, at the first line."""

    def _open(self) -> Any:
        path = Path(self.baseFilename)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        """Drops the line: a full disk must not end the thread."""
