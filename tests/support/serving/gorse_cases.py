"""The examples of Gorse's API, and what a server answers to them."""

from collections.abc import Mapping
from typing import Any

from tests.support.serving.service_harness import KEY

API = {"X-API-Key": KEY}

ITEM: dict[str, Any] = {
    "ItemId": "new", "IsHidden": False, "Categories": ["t1", "films"], "Timestamp": "2020-02-02T20:20:02.02Z",
    "Labels": ["bear", "rabbit"], "Comment": "a film",
}  # fmt: skip

USER: dict[str, Any] = {
    "UserId": "cat", "Labels": ["crocodilia", "cetacean"], "Subscribe": ["fish"], "Comment": "insect",
}  # fmt: skip

FEEDBACK: dict[str, Any] = {
    "FeedbackType": "star", "UserId": "bob", "ItemId": "v3", "Timestamp": "2022-02-24", "Comment": "",
}  # fmt: skip

SCORES = [{"Id": str, "Score": float}]

ROWS = {"RowAffected": int}

DONE = {"FeedbackType": str, "UserId": str, "ItemId": str, "Timestamp": str, "Comment": str}

# Each documented request with the shape that its answer is documented to have.
EXAMPLES: list[tuple[str, str, Any, Any]] = [
    ("POST", "/api/item", ITEM, ROWS),
    ("POST", "/api/items", [ITEM, ITEM | {"ItemId": "newer"}], ROWS),
    ("PATCH", "/api/item/v1", {"Comment": "insect", "Labels": ["fish"], "IsHidden": False}, ROWS),
    ("PUT", "/api/item/v1/category/films", None, ROWS),
    ("DELETE", "/api/item/v1/category/films", None, ROWS),
    ("GET", "/api/item/v1", None, {k: type(v) for k, v in ITEM.items()}),
    ("GET", "/api/items?n=3", None, {"Cursor": str, "Items": [{k: object for k in ITEM}]}),
    ("DELETE", "/api/item/v2", None, ROWS),
    ("POST", "/api/user", USER, ROWS),
    ("POST", "/api/users", [USER, USER | {"UserId": "dog", "Labels": {"country": "NZ"}}], ROWS),
    ("PATCH", "/api/user/cat", {"Labels": ["horse"], "Comment": "cow"}, ROWS),
    ("DELETE", "/api/user/cat", None, ROWS),
    ("POST", "/api/feedback", [FEEDBACK, FEEDBACK | {"ItemId": "v4", "Value": 1}], ROWS),
    ("PUT", "/api/feedback", [FEEDBACK | {"FeedbackType": "read"}], ROWS),
    ("GET", "/api/user/dog", None, {k: object for k in USER}),
    ("GET", "/api/users?n=2", None, {"Cursor": str, "Users": [{k: object for k in USER}]}),
    ("GET", "/api/user/bob/feedback", None, [DONE]),
    ("GET", "/api/user/bob/feedback/read", None, [DONE]),
    ("GET", "/api/item/v3/feedback", None, [DONE]),
    ("GET", "/api/item/v3/feedback/star", None, [DONE]),
    ("GET", "/api/feedback?n=2", None, {"Cursor": str, "Feedback": [DONE]}),
    ("GET", "/api/feedback/star?n=2", None, {"Cursor": str, "Feedback": [DONE]}),
    ("GET", "/api/feedback/bob/v3", None, [DONE]),
    ("GET", "/api/feedback/star/bob/v3", None, DONE),
    ("GET", "/api/recommend/bob", None, [str]),
    ("GET", "/api/recommend/bob?n=5&offset=2", None, [str]),
    ("GET", "/api/recommend/bob/", None, [str]),
    ("GET", "/api/recommend/bob/t1?n=3", None, [str]),
    ("GET", "/api/recommend/bob?write-back-type=read&write-back-delay=10m&n=4", None, [str]),
    ("POST", "/api/session/recommend?n=3", [FEEDBACK], SCORES),
    ("POST", "/api/session/recommend/t1?n=3", [FEEDBACK], SCORES),
    ("GET", "/api/latest?n=4&offset=1&user-id=bob", None, SCORES),
    ("GET", "/api/latest/t1", None, SCORES),
    ("GET", "/api/popular?n=4&user-id=bob", None, SCORES),
    ("GET", "/api/popular/t1", None, SCORES),
    ("GET", "/api/item/v5/neighbors?n=3&offset=1", None, SCORES),
    ("GET", "/api/item/v5/neighbors/t1?n=3", None, SCORES),
    ("GET", "/api/health/live", None,
     {"CacheStoreConnected": bool, "CacheStoreError": str, "DataStoreConnected": bool,
      "DataStoreError": str, "Ready": bool}),
    ("GET", "/api/health/ready", None,
     {"CacheStoreConnected": bool, "CacheStoreError": str, "DataStoreConnected": bool,
      "DataStoreError": str, "Ready": bool}),
]  # fmt: skip


def fits(value: Any, shape: Any) -> bool:
    """Whether a value has a shape: the same keys, and in a list each value that of its one element."""
    if isinstance(shape, Mapping):
        same = isinstance(value, dict) and value.keys() == shape.keys()
        return same and all(fits(value[name], its) for name, its in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
    return isinstance(value, shape)
