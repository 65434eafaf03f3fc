"""Parses timestamps and durations as Gorse and Metarank clients write them."""

import math
import re
from datetime import UTC, datetime
from typing import Any, Final

from recsys.events.event_types import MAX_FUTURE_MS, MAX_TIME_MS, Rejected

_EXPECTED: Final = (
    "a time in ISO 8601, as 2026-02-02T20:20:02Z, or milliseconds since 1970 (text or number)"
)
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:h|m|s|ms))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_MAX_S: Final = 86_400.0


def time_ms_of(value: Any, field: str, now_ms: int) -> int:
    """Milliseconds since 1970; a text without a zone is UTC. Raises Rejected unless the time lies between
    1970 and five seconds after ``now_ms``."""
    time_ms = _time_ms(value)
    if time_ms is None or not 0 <= time_ms <= MAX_TIME_MS:
        raise Rejected(field, value, _EXPECTED)
    if time_ms > now_ms + MAX_FUTURE_MS:
        raise Rejected(field, value, f"at most {MAX_FUTURE_MS // 1000} s after now: set the clock")
    return time_ms


def _time_ms(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    if value.isascii() and value.isdigit() and len(value) > 8:  # shorter ones are dates: 20260202
        return int(value) if len(value) < 20 else None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def text_of(time_ms: int) -> str:
    """Time in ISO 8601, UTC, to the millisecond."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(text: str, field: str) -> float:
    """Parses a duration of at most a day in Go's notation: ``10m``, ``1h0m30s``, ``0``. Raises Rejected."""
    if text == "0":
        return 0.0
    seconds = math.inf
    if _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    if seconds > _MAX_S:
        raise Rejected(field, text, "a duration of at most a day, as 10m or 1h0m30s")
    return seconds
