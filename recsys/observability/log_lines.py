"""Log formatters of a process: one JSON object per line, or text for people; both redact secrets.

They plug into Python's own logging, which Ray and uvicorn use too. ``LOG_CONTEXT`` (request_id, line, epoch,
step) is added to each record.
"""

import json
import logging
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

import numpy as np

# Up to the last @: unescaped passwords may contain @ and /.
_URL: Final = re.compile(r"""(\w*)://((?:(?!://)[^\s"'])*)@""")
_HOST: Final = re.compile(r"(?:\[[^\]]*\]|[^/@:?#]*)(?::\d{1,5})?[/?#]")
_HEADERS: Final = re.compile(
    r"""(otlp\w*headers\s*=\s*)(?:[^\s"']*(?:basic|bearer)\s+)*[^\s"']+""", re.IGNORECASE
)
# Also within a dict, a header, a query, or JSON in JSON: the value after such a name is redacted up to its
# closing quote, which has as many backslashes as the opening one. An unterminated value ends with the line.
_NAMED: Final = re.compile(
    r"""((?:(?:admin|control|api|access|private)[_-]?key|token|passwo?r?d|secret|authorization|otlp\w*headers)"""
    r"""(?:\\*["']\s*[:=,]|\s*[:=])\s*(?:b(?=["']))?)"""
    r"""(?:(\\*["']).*?(?:(?<!\\)\2|$)"""
    r"""|(?:(?:basic|bearer|digest|negotiate)\s+)?(?:[^\s"',;&)}\]\\]|\\(?!\\{0,8}["']))+)""",
    re.IGNORECASE | re.MULTILINE,
)
_BEARER: Final = re.compile(r"(bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
_API_KEY: Final = re.compile(r"(rk_[a-z0-9]{8}_)[\w-]+")
_ADDRESS: Final = re.compile(r"(/control/?#)[\w.~%+/=-]+")  # control room URL with its key
_SECRET: Final = re.compile(r"key$|token|passwo?r?d|secret|authorization|otlp\w*headers", re.I)
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LOG_BYTES: Final = 5_000_000
# Fields of the current task or thread; whoever sets it resets it.
LOG_CONTEXT: ContextVar[Mapping[str, Any]] = ContextVar("known", default={})  # noqa: B039  (never changed)


def redact(text: str) -> str:
    """Redacts passwords in URLs and the values after names of secrets."""
    text = _URL.sub(_without_user, text)
    text = _NAMED.sub(_without_value, _HEADERS.sub(r"\1***", text))
    text = _API_KEY.sub(r"\1***", _BEARER.sub(r"\1***", text))
    return _ADDRESS.sub(r"\1***", text)


def _without_user(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    if scheme.lower() in ("http", "https") and _HOST.match(rest):  # the @ belongs to the path
        return match[0]
    return f"{scheme}://***@"


def _without_value(match: re.Match[str]) -> str:
    quote = match[2] or ""
    return f"{match[1]}{quote}***{quote}"


class LogLines(logging.Formatter):
    """One line per record: time, level, part, logger, message, context and the call's ``extra``.

    ``format``: json, or text for people (``TIME LEVEL PART LOGGER: MESSAGE name=value …``). ``who``: fields
    of every record of this process (replica, shard or worker).
    """

    def __init__(self, format: str, part: str, who: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._json, self._part, self._who = format == "json", part, dict(who or {})

    def format(self, record: logging.LogRecord) -> str:
        fields = self._who | dict(LOG_CONTEXT.get())
        fields |= {
            name: value
            for name, value in vars(record).items()
            if name not in _PLAIN and name[0] != "_"  # Ray adds a private attribute to every record
        }
        fields = {name: _printable(name, value) for name, value in fields.items()}
        message = redact(record.getMessage())
        exception = redact(self.formatException(record.exc_info)) if record.exc_info else ""
        if not self._json:
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            head = f"{at}.{int(record.msecs):03}Z {record.levelname:<7} {self._part} {record.name}: "
            more = "".join(f" {name}={value}" for name, value in fields.items())
            return head + message + more + (f"\n{exception}" if exception else "")
        line: dict[str, Any] = {
            "time_ms": int(record.created * 1000), "level": record.levelname.lower(), "part": self._part,
            "logger": record.name, "message": message,
        }  # fmt: skip
        line |= {name: value for name, value in fields.items() if name not in line}
        if exception:
            line["exception"] = exception
        return json.dumps(line, ensure_ascii=False, allow_nan=False)


def _printable(name: str, value: Any) -> Any:
    if _SECRET.search(name):
        return "***"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # not representable in JSON
    return value if isinstance(value, int | float | bool | None) else redact(str(value))


def log_to_file(
    part: str, path: Path, format: str = "json", who: Mapping[str, Any] | None = None
) -> logging.Handler:
    """Sends the process's logs to one rotating file; two old files are kept."""
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=2, encoding="utf-8")
    handler.setFormatter(LogLines(format, part, who))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    _quiet_libraries()
    return handler


def _quiet_libraries() -> None:
    """Leaves out lines of each request, and of each attempt of Kafka's client to reach a broker: its failures
    are raised, and logged as LogUnavailable, at intervals."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


def log_to_files(files: Mapping[str, Path], format: str) -> None:
    """Sends the logs of the parts of this process to a file for each, by the name of the thread; logs of
    other threads go to the first."""
    handlers, (_, *others) = [], files
    for part, file in files.items():
        handlers.append(log_to_file(part, file, format))
        handlers[-1].addFilter(partial(_is_of_part, part, others))
    logging.getLogger().handlers[:] = handlers


def _is_of_part(part: str, others: Collection[str], record: logging.LogRecord) -> bool:
    return record.threadName == part if part in others else record.threadName not in others


def log_in_worker(
    part: str, state: str | Path, name: str, format: str = "json", who: Mapping[str, Any] | None = None
) -> None:
    """Sends the logs of a process that Ray starts, and Serve's, to ``state/run/NAME.log``. Warnings also go
    to stderr, which Ray's dashboard shows; if the folder isn't writable, everything goes there."""
    errors = logging.StreamHandler(sys.__stderr__)
    errors.setFormatter(LogLines(format, part, who))
    root = logging.getLogger()
    try:
        folder = Path(state) / "run"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = log_to_file(part, folder / f"{name}.log", format, who)
        serve = logging.getLogger("ray.serve")
        if not serve.propagate:  # in a replica Serve doesn't propagate its records
            serve.addHandler(handler)
        errors.setLevel(logging.WARNING)
    except OSError:
        root.handlers[:], handler = [], errors
        root.setLevel(logging.INFO)
        _quiet_libraries()
    root.addHandler(errors)


def keep_newest(state: str | Path, pattern: str, count: int = 8) -> None:
    """Removes all but the newest ``count`` logs of processes whose names don't recur."""
    files = list((Path(state) / "run").glob(pattern))
    with suppress(OSError):
        for old in sorted(files, key=lambda file: file.stat().st_mtime)[:-count]:
            old.unlink()


class LogThrottle:
    """Rate-limits repeated log messages; counts the ones left out."""

    def __init__(self, every_s: float = 30.0) -> None:
        self._every_s = every_s
        self._logged_s: dict[str, float] = {}
        self._count: Counter[str] = Counter()

    def due(self, event: str, now_s: float) -> int:
        """Number of occurrences since the last message, this one included; 0 if no message is due."""
        self._count[event] += 1
        logged_s = self._logged_s.get(event)
        if logged_s is not None and 0 <= now_s - logged_s < self._every_s:
            return 0
        self._logged_s[event] = now_s
        return self._count.pop(event)

    def exception(self, logger: logging.Logger, message: str, now_s: float, **extra: Any) -> None:
        """Logs the current exception, with the number of those left out and this one."""
        if times := self.due(f"{message} {extra}", now_s):
            logger.exception(message, extra=extra | {"times": times})
