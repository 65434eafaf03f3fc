"""How a process writes its logs: one JSON object a line, or text for people; secrets are left out of both.

Python's own logging carries them, as it does those of Ray and uvicorn, so a formatter is all that is needed.
What is known of the work at hand (``KNOWN``: request_id, line, epoch, step) goes into each record.
"""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

import numpy as np

# To the last @: passwords have @ and / in them where nobody escaped them.
_URL: Final = re.compile(r"""(\w*)://((?:(?!://)[^\s"'])*)@""")
_HOST: Final = re.compile(r"(?:\[[^\]]*\]|[^/@:?#]*)(?::\d{1,5})?[/?#]")
_HEADERS: Final = re.compile(
    r"""(otlp\w*headers\s*=\s*)(?:[^\s"']*(?:basic|bearer)\s+)*[^\s"']+""", re.IGNORECASE
)
# Also within a dict, a header, a query, or JSON in JSON: what follows such a name isn't told, up to the quote
# that closes it, which has as many backslashes as the one that opened it. One without an end goes to that of
# the line.
_NAMED: Final = re.compile(
    r"""((?:(?:admin|control|api|access|private)[_-]?key|token|passwo?r?d|secret|authorization|otlp\w*headers)"""
    r"""(?:\\*["']\s*[:=,]|\s*[:=])\s*(?:b(?=["']))?)"""
    r"""(?:(\\*["']).*?(?:(?<!\\)\2|$)"""
    r"""|(?:(?:basic|bearer|digest|negotiate)\s+)?(?:[^\s"',;&)}\]\\]|\\(?!\\{0,8}["']))+)""",
    re.IGNORECASE | re.MULTILINE,
)
_BEARER: Final = re.compile(r"(bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
_ADDRESS: Final = re.compile(r"(/control/?#)[\w.~%+/=-]+")  # of the control room, with its key
_SECRET: Final = re.compile(r"key$|token|passwo?r?d|secret|authorization|otlp\w*headers", re.I)
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LOG_BYTES: Final = 5_000_000
# Of this task or thread: who sets it resets it.
KNOWN: ContextVar[Mapping[str, Any]] = ContextVar("known", default={})  # noqa: B039  (never changed)


def hide(text: str) -> str:
    """The text without passwords in URLs, and without what stands after a secret's name."""
    text = _URL.sub(_without_user, text)
    text = _NAMED.sub(_without_value, _HEADERS.sub(r"\1***", text))
    return _ADDRESS.sub(r"\1***", _BEARER.sub(r"\1***", text))


def _without_user(found: re.Match[str]) -> str:
    scheme, said = found.groups()
    if scheme.lower() in ("http", "https") and _HOST.match(said):  # the @ is one of the path
        return found[0]
    return f"{scheme}://***@"


def _without_value(found: re.Match[str]) -> str:
    quote = found[2] or ""
    return f"{found[1]}{quote}***{quote}"


class _Lines(logging.Formatter):
    """``who``: what every record of this process says: which replica, shard or worker it is."""

    def __init__(self, part: str, who: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._part, self._who = part, dict(who or {})

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = self._who | dict(KNOWN.get())
        fields |= {
            name: value
            for name, value in vars(record).items()
            if name not in _PLAIN and name[0] != "_"  # Ray puts one of its own into every record
        }
        return {name: _shown(name, value) for name, value in fields.items()}

    def _exception(self, record: logging.LogRecord) -> str:
        return hide(self.formatException(record.exc_info)) if record.exc_info else ""


class JsonLines(_Lines):
    """time, level, part, who, logger, message, what is known, and the ``extra`` of the call."""

    def format(self, record: logging.LogRecord) -> str:
        head: dict[str, Any] = {
            "time_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "part": self._part,
            "logger": record.name,
            "message": hide(record.getMessage()),
        }
        line = head | self._fields(record) | head  # no field takes the place of these
        if exception := self._exception(record):
            line["exception"] = exception
        return json.dumps(line, ensure_ascii=False, allow_nan=False)


class TextLines(_Lines):
    """The same for people: ``TIME LEVEL PART LOGGER: MESSAGE name=value …``."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = f"{at}.{int(record.msecs):03}Z {record.levelname:<7} {self._part} {record.name}: "
        more = "".join(f" {name}={value}" for name, value in self._fields(record).items())
        exception = self._exception(record)
        return head + hide(record.getMessage()) + more + (f"\n{exception}" if exception else "")


def _shown(name: str, value: Any) -> Any:
    if _SECRET.search(name):
        return "***"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return value if isinstance(value, int | float | bool | None) else hide(str(value))


def formatter(format: str, part: str, who: Mapping[str, Any] | None = None) -> logging.Formatter:
    """``format``: json or text (``logging.format``)."""
    return JsonLines(part, who) if format == "json" else TextLines(part, who)


def log_to_file(
    part: str, path: Path, format: str = "json", who: Mapping[str, Any] | None = None
) -> logging.Handler:
    """Sends the process's logs to one rotating file (two old ones are kept)."""
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=2, encoding="utf-8")
    handler.setFormatter(formatter(format, part, who))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return handler


def log_in_worker(
    part: str,
    state: str | Path,
    name: str,
    format: str = "json",
    who: Mapping[str, Any] | None = None,
) -> None:
    """The same for a process that Ray starts: ``state/run/NAME.log``, with what Serve says there. Warnings go
    to the error output too, which Ray's dashboard shows beside the actor; where the folder can't be written,
    all does."""
    errors = logging.StreamHandler(sys.__stderr__)
    errors.setFormatter(formatter(format, part, who))
    root = logging.getLogger()
    try:
        folder = Path(state) / "run"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = log_to_file(part, folder / f"{name}.log", format, who)
        serve = logging.getLogger("ray.serve")
        if not serve.propagate:  # Serve keeps its own to itself, in a replica
            serve.addHandler(handler)
        errors.setLevel(logging.WARNING)
    except OSError:
        root.handlers[:], handler = [], errors
        root.setLevel(logging.INFO)
    root.addHandler(errors)
    for quiet in ("httpx", "kafka"):
        logging.getLogger(quiet).setLevel(logging.WARNING)


def keep_newest(state: str | Path, pattern: str, count: int = 8) -> None:
    """Removes older logs of processes whose names don't come again."""
    files = list((Path(state) / "run").glob(pattern))
    with suppress(OSError):
        for old in sorted(files, key=lambda file: file.stat().st_mtime)[:-count]:
            old.unlink()
