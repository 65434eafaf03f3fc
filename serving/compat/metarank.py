"""Metarank's events and rankings as our records. Pure.

| theirs | ours |
|---|---|
| item event | the item, its fields laid over those it has |
| user event | the user's profile |
| ranking event: what was displayed | a ``view`` of each item: it was shown |
| interaction event | the engagement of the kind that ``compat.kinds`` says |
| ``id`` of a ranking, with its user | the request id |
| ``user``, else ``session`` | the user; without both, each ranking has one of its own |
| ``fields`` of a ranking | the request's context |

Two users may name their rankings alike, so a request id is the digest of both. ``relevancy``, ``label`` and
the fields of a ranking's items have no counterpart. All functions that read raise Rejected.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from recsys.config.system_config import Config
from recsys.events.event_types import Rejected
from recsys.events.hashing import Id, digest_of
from recsys.events.rejection import Unquoted, check_values
from serving.compat.times import time_ms_of
from serving.compat.values import (
    MOST_EVENTS,
    Raw,
    at_most,
    checked,
    id_of,
    kind_of,
    list_of,
    object_of,
    optional_id,
    path,
)

EVENTS: Final = ("item", "user", "ranking", "interaction")
MAX_ITEMS: Final = 1000  # of a ranking
MAX_FIELDS: Final = 50  # of a ranking
_WATCH: Final = "watch_ms"  # a field of an interaction that we know


@dataclass
class Batch:
    """The events of one body, as WriteApi takes them; ``events`` is how many there were, ``places`` where each
    of ``items`` stands in the body."""

    events: int = 0
    items: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    users: list[dict[str, Any]] = field(default_factory=list)
    engagements: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> int:
        """How many will stand on the log."""
        return len(self.items) + len(self.users) + len(self.engagements)


@dataclass(frozen=True)
class Ranking:
    """What /rank asks for."""

    request_id: str
    user_id: str
    item_ids: tuple[str, ...]
    context: dict[str, Any]


def batch_in(body: Any, config: Config, now_ms: int) -> Batch:
    """One event, or a list of them: of ``MOST_EVENTS`` at most, where each item displayed counts as one."""
    batch = Batch()
    several = isinstance(body, list)
    for index, value in enumerate(list_of(body, "", MOST_EVENTS) if several else [body]):
        where = f"[{index}]" if several else ""
        raw = object_of(value, where)
        kind = raw.get("event")
        if kind not in EVENTS:
            raise Rejected(path(where, "event"), kind, f"one of {', '.join(EVENTS)}")
        id_of(raw, "id", where)
        time_ms = _time_of(raw, where, now_ms)
        batch.events += 1
        if kind == "item":
            item = {"type": "item", "item_id": id_of(raw, "item", where), "time_ms": time_ms,
                    "fields": fields_in(raw, where)}  # fmt: skip
            batch.items.append(checked(item, where, now_ms))
            batch.places.append(where)
        elif kind == "user":
            user = {"type": "user", "user_id": id_of(raw, "user", where), "time_ms": time_ms,
                    "fields": fields_in(raw, where)}  # fmt: skip
            batch.users.append(checked(user, where, now_ms))
        elif kind == "ranking":
            shown = _shown(raw, where, time_ms)
            batch.engagements += [checked(view, where, now_ms) for view in shown]
        else:
            done = _done(raw, where, time_ms, config)
            batch.engagements.append(checked(done, where, now_ms))
        at_most(batch.records, MOST_EVENTS, "body")
    return batch


def ranking_in(body: Any, now_ms: int) -> Ranking:
    """The body of /rank: a ranking, whose ``event`` needn't be said."""
    raw = object_of(body, "")
    if raw.get("timestamp") is not None:
        _time_of(raw, "", now_ms)
    name = id_of(raw, "id", "")
    user_id = _user_of(raw, name, "")
    return Ranking(request_id_of(user_id, name), user_id, _items_of(raw, ""), _context_of(raw))


def request_id_of(user_id: Id, ranking: str) -> str:
    """The request of a user's ranking."""
    return digest_of(f"metarank\x1f{user_id}\x1f{ranking}")


def fields_in(raw: Raw, where: str) -> dict[str, Any]:
    """``[{"name": ..., "value": ...}]`` as a mapping."""
    found: dict[str, Any] = {}
    place = path(where, "fields")
    for index, one in enumerate(list_of(raw.get("fields") or [], place)):
        here = f"{place}[{index}]"
        its = object_of(one, here)
        if not _is_value(its.get("value")):
            kinds = "true, false, text, a number, or a list of texts or of numbers"
            raise Rejected(path(here, "value"), its.get("value"), kinds)
        found[id_of(its, "name", here)] = its["value"]
    return found


def fields_out(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _shown(raw: Raw, where: str, time_ms: int) -> list[dict[str, Any]]:
    name = id_of(raw, "id", where)
    user_id = _user_of(raw, name, where)
    request_id = request_id_of(user_id, name)
    return [
        _engagement(request_id, user_id, item_id, "view", time_ms, _shown_id(request_id, item_id))
        for item_id in _items_of(raw, where)
    ]


def _shown_id(request_id: str, item_id: str) -> str:
    return digest_of(f"{request_id}\x1f{item_id}\x1fshown")


def _done(raw: Raw, where: str, time_ms: int, config: Config) -> dict[str, Any]:
    ranking = optional_id(raw, "ranking", where)
    user_id = _user_of(raw, ranking, where)
    request_id = request_id_of(user_id, ranking) if ranking else ""
    found = _engagement(
        request_id, user_id, id_of(raw, "item", where), kind_of(raw, "type", where, config), time_ms,
        id_of(raw, "id", where),
    )  # fmt: skip
    watch_ms = fields_in(raw, where).get(_WATCH)
    return found if watch_ms is None else found | {_WATCH: watch_ms}


def _engagement(
    request_id: str, user_id: str, item_id: str, kind: str, time_ms: int, event_id: str
) -> dict[str, Any]:
    return {
        "type": "engagement", "request_id": request_id, "user_id": user_id, "item_id": item_id,
        "kind": kind, "time_ms": time_ms, "event_id": event_id,
    }  # fmt: skip


def _user_of(raw: Raw, ranking: str | None, where: str) -> str:
    user_id = optional_id(raw, "user", where) or optional_id(raw, "session", where)
    if user_id is None and ranking is None:
        raise Rejected(path(where, "user"), raw.get("user"), "a user, a session or a ranking")
    return user_id or f"ranking {digest_of(str(ranking))}"


def _items_of(raw: Raw, where: str) -> tuple[str, ...]:
    """The ids of a ranking's items, each once, in order."""
    place = path(where, "items")
    items = list_of(raw.get("items"), place)
    if not 0 < len(items) <= MAX_ITEMS:
        raise Rejected(place, f"{len(items)} items", f"1 to {MAX_ITEMS} items")
    ids = (
        id_of(object_of(one, f"{place}[{n}]"), "id", f"{place}[{n}]") for n, one in enumerate(items)
    )
    return tuple(dict.fromkeys(ids))


def _context_of(raw: Raw) -> dict[str, Any]:
    """It will stand in the impression, so it must be what the log can hold."""
    found = fields_in(raw, "")
    if len(found) > MAX_FIELDS:
        raise Rejected("fields", Unquoted(f"{len(found)} fields"), f"at most {MAX_FIELDS} fields")
    check_values({"fields": found})
    return found


def _time_of(raw: Raw, where: str, now_ms: int) -> int:
    return time_ms_of(raw.get("timestamp"), path(where, "timestamp"), now_ms)


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
        return numbers or all(isinstance(one, str) for one in value)
    return isinstance(value, bool | str | int | float)
