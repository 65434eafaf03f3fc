"""What is taken out of a foreign client's JSON: each value strictly, unknown ones not at all.

All raise Rejected with the value's path, as ``[2].ItemId``.
"""

from collections.abc import Mapping
from typing import Any, Final

from recsys.config.system_config import Config
from recsys.events.event_types import MAX_ID_LENGTH, Rejected, parse
from recsys.events.rejection import MISSING, Unquoted
from serving.ingestion.event_validation import check_storable

Raw = Mapping[str, Any]
MOST_EVENTS: Final = 500  # of one body, as of POST /v1/events: what is more would hold up the lists


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
    """Raises Rejected for more than may be sent at once."""
    if count > most:
        raise Rejected(where, Unquoted(f"{count} long"), f"at most {most} at a time: send it in parts")


def id_of(raw: Raw, name: str, where: str) -> str:
    """A text that must be there."""
    found = optional_id(raw, name, where)
    if found is None:
        raise Rejected(path(where, name), raw.get(name, MISSING), "an id, as text")
    return found


def id_of_path(raw: Raw, name: str, where: str) -> str:
    """As ``id_of``, of what is named in a path: one that no path can name could never be taken away."""
    found = id_of(raw, name, where)
    if "/" in found or found in (".", ".."):
        raise Rejected(path(where, name), found, "an id without a slash: it is part of a path")
    return found


def optional_id(raw: Raw, name: str, where: str) -> str | None:
    """A text of 1 to 256 characters; None where there is none, or an empty one."""
    value = raw.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > MAX_ID_LENGTH:
        raise Rejected(path(where, name), value, f"an id, as text of at most {MAX_ID_LENGTH}")
    return value


def checked(record: dict[str, Any], where: str, now_ms: int) -> dict[str, Any]:
    """The item, user or engagement, once nothing in it will be refused where it is written: what comes whole
    must be known to be good before the first of it is."""
    try:
        event = {"time_ms": now_ms} | record
        check_storable(parse(event, now_ms=now_ms, unattributed=True), event)
    except Rejected as error:
        raise Rejected(path(where, error.field), Unquoted(error.value), error.expected) from error
    return record


def text_or_empty(raw: Raw, name: str, where: str) -> str:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise Rejected(path(where, name), value, "text")
    return value or ""


def texts(raw: Raw, name: str, where: str) -> list[str]:
    """A list of texts; none where there is no list."""
    value = raw.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Rejected(path(where, name), value, "a list of texts")
    return value


def kind_of(raw: Raw, name: str, where: str, config: Config) -> str:
    """The engagement kind of a feedback or interaction type."""
    value, kinds = raw.get(name, MISSING), config.compat.kinds
    if not isinstance(value, str) or value not in kinds:
        known = f"one of {', '.join(kinds)}; what else it may be is set in compat.kinds"
        raise Rejected(path(where, name), value, known)
    return kinds[value]
