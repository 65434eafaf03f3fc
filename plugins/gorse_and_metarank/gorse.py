"""Translates Gorse's items, users and feedback to our records, and ours to Gorse's. Pure.

| Gorse | here |
|---|---|
| Labels: a list | the field ``compat.labels`` |
| Labels: an object | a field per name |
| Categories | the field ``compat.categories`` |
| Comment, Timestamp, Subscribe | fields of the same names in lower case |
| IsHidden | the item is removed |
| FeedbackType | the engagement's kind, by ``compat.kinds`` |

Feedback names no request: the joiner looks for the impression. Its ``Value`` and ``Comment`` have no
counterpart. All parsing functions raise Rejected.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from plugins.gorse_and_metarank.values import (
    Raw,
    checked,
    engagement_of,
    id_of_path,
    is_texts,
    kind_of,
    object_of,
    path,
    text_of,
    text_or_empty,
    texts,
    time_ms_of,
)
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Rejected
from recsys.events.field_schema import values_of
from recsys.events.hashing import Id, digest_of

Fields = dict[str, Any]
_ZERO_TIME: Final = "0001-01-01T00:00:00Z"  # Go's zero value: no time
_COMMENT, _TIMESTAMP, _SUBSCRIBE = "comment", "timestamp", "subscribe"
_USER_LABELS: Final = "labels"


def parse_item(value: Any, where: str, config: Config, now_ms: int) -> dict[str, Any]:
    """Item for the write API."""
    raw = object_of(value, where)
    item = {"type": "item", "item_id": id_of_path(raw, "ItemId", where)}
    return checked(item | _item(raw, {}, where, config, now_ms), where, now_ms)


def patch_item(
    value: Any, item_id: Id, fields: Mapping[str, Any], config: Config, now_ms: int
) -> dict[str, Any]:
    """Item with the changes of a patch applied to its current fields."""
    item = {"type": "item", "item_id": item_id}
    return checked(item | _item(object_of(value, ""), fields, "", config, now_ms), "", now_ms)


def set_category(
    item_id: Id, category: str, present: bool, config: Config, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Item with a category added or removed."""
    name = config.compat.categories
    categories = [value for value in values_of(fields.get(name)) if value != category]
    categories += [category] * present
    rest = {key: value for key, value in fields.items() if key != name}
    return {"item_id": item_id, "fields": rest | ({name: categories} if categories else {})}


def format_item(item_id: Id, fields: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Living item in Gorse's form. Labels hold the fields that Gorse has no name for."""
    compat = config.compat
    return {
        "ItemId": str(item_id),
        "IsHidden": False,
        "Categories": values_of(fields.get(compat.categories)),
        "Timestamp": fields.get(_TIMESTAMP) or _ZERO_TIME,
        "Labels": _format_labels(fields, compat.labels, (compat.categories, _COMMENT, _TIMESTAMP)),
        "Comment": fields.get(_COMMENT) or "",
    }


def parse_user(value: Any, where: str, _: Config, now_ms: int) -> dict[str, Any]:
    """User profile for the write API."""
    raw = object_of(value, where)
    return _user(id_of_path(raw, "UserId", where), raw, where, now_ms)


def patch_user(value: Any, user_id: Id, now_ms: int) -> dict[str, Any]:
    """User profile of a patch, which must contain all Labels: the log alone holds the profile as it was sent,
    so there is nothing to merge the patch into."""
    raw = object_of(value, "")
    if raw.get("Labels") is None:
        expected = "all Labels: a profile is replaced whole, as by POST /api/user"
        raise Rejected("Labels", raw.get("Labels"), expected)
    return _user(user_id, raw, "", now_ms)


def parse_feedback(value: Any, where: str, config: Config, now_ms: int) -> dict[str, Any]:
    """Engagement for the write API, without a request. The same feedback at the same time is a repeat."""
    raw = object_of(value, where)
    user_id, item_id = id_of_path(raw, "UserId", where), id_of_path(raw, "ItemId", where)
    kind, time_ms, event_id = kind_of(raw, "FeedbackType", where, config), now_ms, None
    if (timestamp := _timestamp(raw)) is not None:
        time_ms = time_ms_of(timestamp, path(where, "Timestamp"), now_ms)
        event_id = digest_of(f"gorse\x1f{raw['FeedbackType']}\x1f{item_id}\x1f{time_ms}")
    return checked(engagement_of("", user_id, item_id, kind, time_ms, event_id), where, now_ms)


def format_feedback(engagement: Engagement, feedback_type: str | None, config: Config) -> dict[str, Any]:
    """Engagement in Gorse's form, with the requested type or else the first type of its kind."""
    kind, kinds = engagement.kind, config.compat.kinds
    named = kind
    if kinds.get(kind) != kind:
        named = next((t for t, k in kinds.items() if k == kind), kind)
    return {
        "FeedbackType": feedback_type or named,
        "UserId": str(engagement.user_id),
        "ItemId": str(engagement.item_id),
        "Timestamp": text_of(engagement.time_ms),
        "Comment": "",
    }


def parse_kind(feedback_type: str, config: Config, where: str = "feedback-type") -> str:
    """Engagement kind of a feedback type in a path or a query."""
    return kind_of({where: feedback_type}, where, "", config)


def format_user(user_id: Id, fields: Mapping[str, Any]) -> dict[str, Any]:
    """User profile in Gorse's form."""
    return {
        "UserId": str(user_id),
        "Labels": _format_labels(fields, _USER_LABELS, (_COMMENT, _SUBSCRIBE)),
        "Subscribe": values_of(fields.get(_SUBSCRIBE)),
        "Comment": fields.get(_COMMENT) or "",
    }


def write_back_events(
    request_id: str, user_id: Id, item_ids: Sequence[Id], kind: str, now_ms: int
) -> list[dict[str, Any]]:
    """Engagements for ``write-back-type``: one per item of the answer, with its request."""
    ids = {item_id: digest_of(f"{request_id}\x1f{item_id}\x1f{kind}") for item_id in item_ids}
    return [
        engagement_of(request_id, user_id, item_id, kind, now_ms, event_id)
        for item_id, event_id in ids.items()
    ]


def format_scores(scored: Sequence[tuple[Id, float]]) -> list[dict[str, Any]]:
    return [{"Id": str(item_id), "Score": score} for item_id, score in scored]


def _item(raw: Raw, before: Mapping[str, Any], where: str, config: Config, now_ms: int) -> dict[str, Any]:
    compat, fields = config.compat, dict(before)
    if raw.get("Labels") is not None:
        reserved = (compat.categories, _COMMENT, _TIMESTAMP)
        fields = {name: fields[name] for name in reserved if name in fields}
        fields |= _parse_labels(raw, compat.labels, reserved, where)
    if raw.get("Categories") is not None:  # clients send null for an omitted value
        fields[compat.categories] = texts(raw, "Categories", where)
    if raw.get("Comment") is not None:
        fields[_COMMENT] = text_or_empty(raw, "Comment", where)
    item: dict[str, Any] = {}
    if (timestamp := _timestamp(raw)) is not None:
        item["time_ms"] = time_ms_of(timestamp, path(where, "Timestamp"), now_ms)
        fields[_TIMESTAMP] = timestamp
    hidden = raw.get("IsHidden")
    if hidden is not None and not isinstance(hidden, bool):
        raise Rejected(path(where, "IsHidden"), hidden, "true or false")
    return item | {"fields": _without_empty(fields), "removed": bool(hidden)}


def _timestamp(raw: Raw) -> Any:
    timestamp = raw.get("Timestamp")
    return None if timestamp in ("", _ZERO_TIME) else timestamp


def _user(user_id: Id, raw: Raw, where: str, now_ms: int) -> dict[str, Any]:
    fields = _parse_labels(raw, _USER_LABELS, (_COMMENT, _SUBSCRIBE), where)
    fields[_COMMENT] = text_or_empty(raw, "Comment", where)
    fields[_SUBSCRIBE] = texts(raw, "Subscribe", where)
    user = {"type": "user", "user_id": user_id, "fields": _without_empty(fields)}
    return checked(user, where, now_ms)


def _without_empty(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if value not in ([], "")}


def _parse_labels(raw: Raw, field: str, reserved: Sequence[str], where: str) -> Fields:
    value = raw.get("Labels")
    if value is None or is_texts(value):
        return {field: value} if value else {}
    if not isinstance(value, dict):
        raise Rejected(path(where, "Labels"), value, "a list of texts, or an object")
    for name in reserved:
        if name in value:
            expected = f"another name: {name!r} is a field of its own"
            raise Rejected(path(where, f"Labels.{name}"), value[name], expected)
    return dict(value)


def _format_labels(fields: Mapping[str, Any], field: str, reserved: Sequence[str]) -> Any:
    """Object of the fields that aren't reserved; a list if the only one is ``field``."""
    labels = {name: value for name, value in fields.items() if name not in reserved}
    if set(labels) == {field} and is_texts(labels[field]):
        return labels[field]
    return labels or []
