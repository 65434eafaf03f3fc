"""Reads values out of the JSON of Gorse and Metarank clients: strict on each value, lenient on unknown names.

All functions raise Rejected with the path of the value, as ``[2].ItemId``.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from recsys.config.system_config import Config
from recsys.events.event_types import (
    CONTROL_CHARACTER,
    MAX_FUTURE_MS,
    MAX_ID_LENGTH,
    MAX_TIME_MS,
    Rejected,
    parse,
)
from recsys.events.hashing import Id
from recsys.events.rejection import MISSING, Unquoted
from serving.http.strict_json import DECODE_ERRORS, VALUE, decode
from serving.ingestion.event_validation import check_storable

Raw = Mapping[str, Any]
MAX_EVENTS: Final = 500  # of one body, as of POST /v1/events: more would delay the lists
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_TOO_MANY: Final = "at most {} at a time: send it in parts"
_TIME_EXPECTED: Final = (
    "a time in ISO 8601, as 2026-02-02T20:20:02Z, or milliseconds since 1970 (text or number)"
)
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:h|m|s|ms))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_MAX_S: Final = 86_400.0
_JSON_EXPECTED: Final = "JSON: a value, a list, or a value in each line"


def parse_json_sequence(body: bytes, most: int) -> list[Any]:
    """Parses JSON values that follow one another, as Metarank does: one a line, or without a separator, for
    ``curl -d @file`` strips the line ends. Raises Rejected for no value and for more than ``most``."""
    values, at = list[Any](), _skip_space(body, 0)
    while at < len(body):
        if len(values) == most:
            raise Rejected("body", Unquoted(f"more than {most} long"), _TOO_MANY.format(most))
        where = f"[{len(values)}]"
        if (value := VALUE.match(body, at)) is None:  # msgspec doesn't find the end of a value
            raise Rejected(where, Unquoted("without an end, or nested too deeply"), _JSON_EXPECTED)
        try:
            values.append(decode(value.group()))
        except DECODE_ERRORS as error:
            raise Rejected(where, Unquoted(f"not JSON: {error}"), _JSON_EXPECTED) from error
        at = _skip_space(body, value.end())
    if not values:
        raise Rejected("body", Unquoted("empty"), _JSON_EXPECTED)
    return values


def _skip_space(body: bytes, at: int) -> int:
    space = _SPACE.match(body, at)
    return at if space is None else space.end()


def path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def object_of(value: Any, where: str) -> Raw:
    if not isinstance(value, dict):
        raise Rejected(where or "body", value, "a JSON object")
    return value


def list_of(value: Any, where: str, most: int | None = None) -> list[Any]:
    if not isinstance(value, list):
        raise Rejected(where or "body", value, "a list")
    if most is not None:
        at_most(len(value), most, where or "body")
    return value


def at_most(count: int, most: int, where: str) -> None:
    """Raises Rejected if a body holds more than ``most``."""
    if count > most:
        raise Rejected(where, Unquoted(f"{count} long"), _TOO_MANY.format(most))


def id_of(raw: Raw, name: str, where: str) -> str:
    """Required id, as text."""
    value = optional_id(raw, name, where)
    if value is None:
        raise Rejected(path(where, name), raw.get(name, MISSING), "an id, as text")
    return value


def id_of_path(raw: Raw, name: str, where: str) -> str:
    """Required id that a URL path can name: without a path it could never be removed."""
    value = id_of(raw, name, where)
    if "/" in value or value in (".", ".."):
        raise Rejected(path(where, name), value, "an id without a slash: it is part of a path")
    return value


def optional_id(raw: Raw, name: str, where: str) -> str | None:
    """Text of 1 to 256 characters; None if missing or empty."""
    value = raw.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > MAX_ID_LENGTH:
        raise Rejected(path(where, name), value, f"an id, as text of at most {MAX_ID_LENGTH}")
    if CONTROL_CHARACTER.search(value):
        raise Rejected(path(where, name), value, "an id without control characters")
    return value


def checked(record: dict[str, Any], where: str, now_ms: int) -> dict[str, Any]:
    """Returns an item, user or engagement that the write API will accept: a body is accepted whole or not at
    all, so each record is checked before the first is written."""
    try:
        event = {"time_ms": now_ms} | record
        check_storable(parse(event, now_ms=now_ms, unattributed=True), event)
    except Rejected as error:
        value = Unquoted(error.value)
        raise Rejected(path(where, error.field), value, error.expected) from error
    return record


def engagement_of(
    request_id: str, user_id: Id, item_id: Id, kind: str, time_ms: int, event_id: str | None = None
) -> dict[str, Any]:
    """Engagement for the write API; without an event id, the API derives one."""
    event = {
        "type": "engagement", "request_id": request_id, "user_id": user_id, "item_id": item_id,
        "kind": kind, "time_ms": time_ms,
    }  # fmt: skip
    return event if event_id is None else event | {"event_id": event_id}


def text_or_empty(raw: Raw, name: str, where: str) -> str:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise Rejected(path(where, name), value, "text")
    return value or ""


def texts(raw: Raw, name: str, where: str) -> list[str]:
    """List of texts; empty if missing."""
    value = raw.get(name)
    if value is None:
        return []
    if not is_texts(value):
        raise Rejected(path(where, name), value, "a list of texts")
    return list(value)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def kind_of(raw: Raw, name: str, where: str, config: Config) -> str:
    """Engagement kind of a feedback or interaction type."""
    value, kinds = raw.get(name, MISSING), config.compat.kinds
    if not isinstance(value, str) or value not in kinds:
        expected = f"one of {', '.join(kinds)}; set further types in compat.kinds"
        raise Rejected(path(where, name), value, expected)
    return kinds[value]


def time_ms_of(value: Any, field: str, now_ms: int) -> int:
    """Milliseconds since 1970; a text without a zone is UTC. Raises Rejected unless the time lies between
    1970 and five seconds after ``now_ms``."""
    time_ms = _time_ms(value)
    if time_ms is None or not 0 <= time_ms <= MAX_TIME_MS:
        raise Rejected(field, value, _TIME_EXPECTED)
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
