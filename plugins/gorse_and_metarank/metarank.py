"""Translates Metarank's events and rankings to our records. Pure.

| Metarank | here |
|---|---|
| item event | the item, its fields merged into the current ones |
| user event | the user's profile |
| ranking event: items displayed | a ``view`` of each item: it was shown |
| interaction event | the engagement of the kind that ``compat.kinds`` assigns |
| ``id`` of a ranking, with its user | the request id |
| ``user``, else ``session`` | the user; without both, each ranking has its own |
| ``fields`` of a ranking | the request's context |

Two users may use the same ranking id, so a request id is the digest of both. ``relevancy``, ``label`` and the
fields of a ranking's items have no counterpart. All parsing functions raise Rejected.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from plugins.gorse_and_metarank.values import (
    MAX_EVENTS,
    Raw,
    at_most,
    checked,
    engagement_of,
    id_of,
    is_texts,
    kind_of,
    list_of,
    object_of,
    optional_id,
    path,
    time_ms_of,
)
from recsys.config.system_config import Config
from recsys.events.event_types import Rejected
from recsys.events.hashing import Id, digest_of
from recsys.events.rejection import Unquoted, check_values

EVENTS: Final = ("item", "user", "ranking", "interaction")
MAX_ITEMS: Final = 1000  # of a ranking
MAX_FIELDS: Final = 50  # of a ranking
_WATCH: Final = "watch_ms"  # field of an interaction with a meaning here


@dataclass
class Batch:
    """Events of one body. ``events``: their number; ``places``: path of each of ``items`` in the body."""

    events: int = 0
    items: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    users: list[dict[str, Any]] = field(default_factory=list)
    engagements: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Number of log records."""
        return len(self.items) + len(self.users) + len(self.engagements)


@dataclass(frozen=True)
class Ranking:
    """Request of /rank."""

    request_id: str
    user_id: str
    item_ids: tuple[str, ...]
    context: dict[str, Any]


def parse_batch(body: Any, config: Config, now_ms: int) -> Batch:
    """Parses one event or a list: at most ``MAX_EVENTS``, where each displayed item counts as one."""
    batch = Batch()
    several = isinstance(body, list)
    for index, value in enumerate(list_of(body, "", MAX_EVENTS) if several else [body]):
        where = f"[{index}]" if several else ""
        raw = object_of(value, where)
        kind = raw.get("event")
        if kind not in EVENTS:
            raise Rejected(path(where, "event"), kind, f"one of {', '.join(EVENTS)}")
        id_of(raw, "id", where)
        time_ms = _time_ms(raw, where, now_ms)
        batch.events += 1
        if kind in ("item", "user"):
            record = {"type": kind, f"{kind}_id": id_of(raw, kind, where), "time_ms": time_ms,
                      "fields": parse_fields(raw, where)}  # fmt: skip
            if kind == "item":
                batch.places.append(where)
            records = batch.items if kind == "item" else batch.users
            records.append(checked(record, where, now_ms))
        elif kind == "ranking":
            views = _views(raw, where, time_ms)
            batch.engagements += [checked(view, where, now_ms) for view in views]
        else:
            interaction = _interaction(raw, where, time_ms, config)
            batch.engagements.append(checked(interaction, where, now_ms))
        at_most(batch.records, MAX_EVENTS, "body")
    return batch


def parse_ranking(body: Any, now_ms: int) -> Ranking:
    """Parses the body of /rank: a ranking, whose ``event`` is optional."""
    raw = object_of(body, "")
    if raw.get("timestamp") is not None:
        _time_ms(raw, "", now_ms)
    name = id_of(raw, "id", "")
    user_id = _user_of(raw, name, "")
    context = parse_fields(raw, "")
    if len(context) > MAX_FIELDS:
        number = Unquoted(f"{len(context)} fields")
        raise Rejected("fields", number, f"at most {MAX_FIELDS} fields")
    check_values({"fields": context})  # the impression will contain it
    return Ranking(request_id_of(user_id, name), user_id, _items_of(raw, ""), context)


def request_id_of(user_id: Id, ranking: str) -> str:
    """Request id of a user's ranking."""
    return digest_of(f"metarank\x1f{user_id}\x1f{ranking}")


def parse_fields(raw: Raw, where: str) -> dict[str, Any]:
    """``[{"name": ..., "value": ...}]`` as a mapping."""
    fields: dict[str, Any] = {}
    place = path(where, "fields")
    for index, entry in enumerate(list_of(raw.get("fields") or [], place)):
        at = f"{place}[{index}]"
        pair = object_of(entry, at)
        if not _is_value(pair.get("value")):
            expected = "true, false, text, a number, or a list of texts or of numbers"
            raise Rejected(path(at, "value"), pair.get("value"), expected)
        fields[id_of(pair, "name", at)] = pair["value"]
    return fields


def format_fields(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _views(raw: Raw, where: str, time_ms: int) -> list[dict[str, Any]]:
    name = id_of(raw, "id", where)
    user_id = _user_of(raw, name, where)
    request_id = request_id_of(user_id, name)
    return [
        engagement_of(
            request_id, user_id, item_id, "view", time_ms, digest_of(f"{request_id}\x1f{item_id}\x1fshown")
        )
        for item_id in _items_of(raw, where)
    ]


def _interaction(raw: Raw, where: str, time_ms: int, config: Config) -> dict[str, Any]:
    ranking = optional_id(raw, "ranking", where)
    user_id = _user_of(raw, ranking, where)
    request_id = request_id_of(user_id, ranking) if ranking else ""
    engagement = engagement_of(
        request_id, user_id, id_of(raw, "item", where), kind_of(raw, "type", where, config), time_ms,
        id_of(raw, "id", where),
    )  # fmt: skip
    watch_ms = parse_fields(raw, where).get(_WATCH)
    return engagement if watch_ms is None else engagement | {_WATCH: watch_ms}


def _user_of(raw: Raw, ranking: str | None, where: str) -> str:
    user_id = optional_id(raw, "user", where) or optional_id(raw, "session", where)
    if user_id is None and ranking is None:
        raise Rejected(path(where, "user"), raw.get("user"), "a user, a session or a ranking")
    return user_id or f"ranking {digest_of(str(ranking))}"


def _items_of(raw: Raw, where: str) -> tuple[str, ...]:
    """Ids of a ranking's items in order, without repeats."""
    place = path(where, "items")
    items = list_of(raw.get("items"), place)
    if not 0 < len(items) <= MAX_ITEMS:
        raise Rejected(place, f"{len(items)} items", f"1 to {MAX_ITEMS} items")
    paths = [f"{place}[{index}]" for index in range(len(items))]
    ids = (id_of(object_of(item, at), "id", at) for item, at in zip(items, paths, strict=True))
    return tuple(dict.fromkeys(ids))


def _time_ms(raw: Raw, where: str, now_ms: int) -> int:
    return time_ms_of(raw.get("timestamp"), path(where, "timestamp"), now_ms)


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        return numbers or is_texts(value)
    return isinstance(value, bool | str | int | float)
