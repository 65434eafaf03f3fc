"""Gorse's items, users and feedback as our records, and our items as Gorse's. Pure.

| theirs | ours |
|---|---|
| Labels: a list | the field ``compat.labels`` |
| Labels: an object | a field for each of its names |
| Categories | the field ``compat.categories`` |
| Comment, Timestamp, Subscribe | fields of the same names in small letters |
| IsHidden | the item is removed |
| FeedbackType | the engagement's kind, by ``compat.kinds`` |

Feedback names no request: the joiner looks for the impression. Its ``Value`` and ``Comment`` have no
counterpart. All functions that read raise Rejected.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Rejected
from recsys.events.field_schema import values_of
from recsys.events.hashing import Id, digest_of
from serving.compat.times import text_of, time_ms_of
from serving.compat.values import (
    Raw,
    checked,
    id_of_path,
    kind_of,
    object_of,
    path,
    text_or_empty,
    texts,
)

Fields = dict[str, Any]
_NEVER: Final = (
    "0001-01-01T00:00:00Z"  # what Go writes for a time that isn't there, and means by it
)
_COMMENT, _TIMESTAMP, _SUBSCRIBE = "comment", "timestamp", "subscribe"
_USER_LABELS: Final = "labels"


def item_in(value: Any, where: str, config: Config, now_ms: int) -> dict[str, Any]:
    """An item to be published, as WriteApi takes it."""
    raw = object_of(value, where)
    item = {"type": "item", "item_id": id_of_path(raw, "ItemId", where)}
    return checked(item | _item(raw, {}, where, config, now_ms), where, now_ms)


def item_patched(
    value: Any, item_id: Id, fields: Mapping[str, Any], config: Config, now_ms: int
) -> dict[str, Any]:
    """An item with what a patch says, and else with the fields that it has."""
    item = {"type": "item", "item_id": item_id}
    return checked(item | _item(object_of(value, ""), fields, "", config, now_ms), "", now_ms)


def item_in_category(
    item_id: Id, category: str, there: bool, config: Config, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """An item that has a category more, or no more."""
    name = config.compat.categories
    others = [one for one in values_of(fields.get(name)) if one != category]
    rest = {key: value for key, value in fields.items() if key != name}
    held = {name: its} if (its := others + [category] * there) else {}
    return {"item_id": item_id, "fields": rest | held}


def item_out(item_id: Id, fields: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """A living item, as Gorse answers it. Fields that Gorse has no name for are Labels."""
    its = config.compat
    own = (its.categories, _COMMENT, _TIMESTAMP)
    labels: Any = {name: value for name, value in fields.items() if name not in own}
    if not labels:
        labels = []
    elif set(labels) == {its.labels} and _is_texts(labels[its.labels]):
        labels = labels[its.labels]
    return {
        "ItemId": str(item_id),
        "IsHidden": False,
        "Categories": values_of(fields.get(its.categories)),
        "Timestamp": fields.get(_TIMESTAMP) or _NEVER,
        "Labels": labels,
        "Comment": fields.get(_COMMENT) or "",
    }


def user_in(value: Any, where: str, now_ms: int) -> dict[str, Any]:
    """A user's profile, as WriteApi takes it."""
    raw = object_of(value, where)
    return _user(id_of_path(raw, "UserId", where), raw, where, now_ms)


def user_patched(value: Any, user_id: Id, now_ms: int) -> dict[str, Any]:
    """As it was sent, a profile is there only as long as the log has it: so a patch must bring all Labels."""
    raw = object_of(value, "")
    if raw.get("Labels") is None:
        whole = "all Labels: a profile is replaced whole, as by POST /api/user"
        raise Rejected("Labels", raw.get("Labels"), whole)
    return _user(user_id, raw, "", now_ms)


def feedback_in(value: Any, where: str, config: Config, now_ms: int) -> dict[str, Any]:
    """An engagement, as EventValidator takes it: without a request. The same at the same time is a repeat."""
    raw = object_of(value, where)
    user_id, item_id = id_of_path(raw, "UserId", where), id_of_path(raw, "ItemId", where)
    kind = kind_of(raw, "FeedbackType", where, config)
    found: dict[str, Any] = {
        "type": "engagement", "request_id": "", "user_id": user_id, "item_id": item_id,
        "kind": kind, "time_ms": now_ms,
    }  # fmt: skip
    if (told := _timestamp(raw)) is not None:
        told_ms = time_ms_of(told, path(where, "Timestamp"), now_ms)
        its = "\x1f".join(("gorse", raw["FeedbackType"], item_id, str(told_ms)))
        found |= {"time_ms": told_ms, "event_id": digest_of(its)}
    return checked(found, where, now_ms)


def feedback_out(
    engagement: Engagement, feedback_type: str | None, config: Config
) -> dict[str, Any]:
    """An engagement, as Gorse answers it: of the type that was asked for, else of one that is its kind."""
    kind, kinds = engagement.kind, config.compat.kinds
    named = (
        kind if kinds.get(kind) == kind else next((t for t, k in kinds.items() if k == kind), kind)
    )
    return {
        "FeedbackType": feedback_type or named,
        "UserId": str(engagement.user_id),
        "ItemId": str(engagement.item_id),
        "Timestamp": text_of(engagement.time_ms),
        "Comment": "",
    }


def kind_named(feedback_type: str, config: Config, where: str = "feedback-type") -> str:
    """The engagement kind of a type that stands in a path or a query."""
    return kind_of({where: feedback_type}, where, "", config)


def user_out(user_id: Id, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A profile, as Gorse answers it."""
    labels: Any = {k: v for k, v in fields.items() if k not in (_COMMENT, _SUBSCRIBE)}
    if not labels:
        labels = []
    elif set(labels) == {_USER_LABELS} and _is_texts(labels[_USER_LABELS]):
        labels = labels[_USER_LABELS]
    return {
        "UserId": str(user_id),
        "Labels": labels,
        "Subscribe": values_of(fields.get(_SUBSCRIBE)),
        "Comment": fields.get(_COMMENT) or "",
    }


def written_back(
    request_id: str, user_id: Id, item_ids: Sequence[Id], kind: str, now_ms: int
) -> list[dict[str, Any]]:
    """What ``write-back-type`` asks for: the engagement with each item of the answer, whose request is
    known."""
    return [
        {
            "type": "engagement", "request_id": request_id, "user_id": user_id, "item_id": item_id,
            "kind": kind, "time_ms": now_ms,
            "event_id": digest_of(f"{request_id}\x1f{item_id}\x1f{kind}"),
        }
        for item_id in item_ids
    ]  # fmt: skip


def scores_out(scored: Sequence[tuple[Id, float]]) -> list[dict[str, Any]]:
    return [{"Id": str(item_id), "Score": score} for item_id, score in scored]


def _item(
    raw: Raw, before: Mapping[str, Any], where: str, config: Config, now_ms: int
) -> dict[str, Any]:
    its, fields = config.compat, dict(before)
    if raw.get("Labels") is not None:
        kept = (its.categories, _COMMENT, _TIMESTAMP)
        fields = {name: fields[name] for name in kept if name in fields}
        fields |= _labels(raw, its.labels, kept, where)
    if raw.get("Categories") is not None:  # clients send null for what they don't say
        fields[its.categories] = texts(raw, "Categories", where)
    if raw.get("Comment") is not None:
        fields[_COMMENT] = text_or_empty(raw, "Comment", where)
    found: dict[str, Any] = {}
    if (told := _timestamp(raw)) is not None:
        found["time_ms"] = time_ms_of(told, path(where, "Timestamp"), now_ms)
        fields[_TIMESTAMP] = told
    hidden = raw.get("IsHidden")
    if hidden is not None and not isinstance(hidden, bool):
        raise Rejected(path(where, "IsHidden"), hidden, "true or false")
    fields = {name: value for name, value in fields.items() if value not in ([], "")}
    return found | {"fields": fields, "removed": bool(hidden)}


def _timestamp(raw: Raw) -> Any:
    told = raw.get("Timestamp")
    return None if told in ("", _NEVER) else told


def _user(user_id: Id, raw: Raw, where: str, now_ms: int) -> dict[str, Any]:
    user = {"type": "user", "user_id": user_id, "fields": _profile(raw, where)}
    return checked(user, where, now_ms)


def _profile(raw: Raw, where: str) -> Fields:
    fields = _labels(raw, _USER_LABELS, (_COMMENT, _SUBSCRIBE), where)
    fields[_COMMENT] = text_or_empty(raw, "Comment", where)
    fields[_SUBSCRIBE] = texts(raw, "Subscribe", where)
    return {name: value for name, value in fields.items() if value not in ([], "")}


def _labels(raw: Raw, field: str, taken: Sequence[str], where: str) -> Fields:
    value = raw.get("Labels")
    if value is None or _is_texts(value):
        return {field: value} if value else {}
    if not isinstance(value, dict):
        raise Rejected(path(where, "Labels"), value, "a list of texts, or an object")
    for name in taken:
        if name in value:
            its = f"another name: {name!r} is a field of its own"
            raise Rejected(path(where, f"Labels.{name}"), value[name], its)
    return dict(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
