"""Gorse's own Python client (PyGorse) at a live system: each of its calls, and which have no counterpart."""

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from gorse import AsyncGorse, Gorse, GorseException, Score

from tests.support.systems.live_system import LiveSystem

PATIENCE_S = 20.0


class Waiting:
    """PyGorse's asynchronous client, each call awaited at once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._client = AsyncGorse(*args, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        def awaited(*args: Any, **options: Any) -> Any:
            async def one() -> Any:
                return await call(*args, **options)

            return asyncio.run(one())

        return awaited


class Used:
    """Notes which calls of a client were used."""

    def __init__(self, client: Any) -> None:
        self._client, self.names = client, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._client, name)


def check_client(system: LiveSystem, client: type) -> None:
    """All calls that the client has are made, in the names of a client of its own."""
    key = (system.state / "run" / "admin.key").read_text().strip()
    gorse = Used(client(system.url, key, timeout=10))
    name = client.__name__.lower()
    _items(gorse, name)
    _users(gorse, name)
    _feedback(gorse, name)
    _lists(gorse, name)
    _goodbye(gorse, name)
    calls = {call for call in vars(Gorse) if not call.startswith("_")}
    assert gorse.names == calls, calls ^ gorse.names
    with pytest.raises(GorseException) as wrong:
        client(system.url, "no key").get_user("u1")
    assert wrong.value.status_code == 401


def _items(gorse: Any, name: str) -> None:
    item = {
        "ItemId": f"{name}-item", "IsHidden": False, "Categories": ["films"], "Timestamp": _now(),
        "Labels": ["bear"], "Comment": "a film",
    }  # fmt: skip
    assert gorse.insert_item(item) == {"RowAffected": 1}
    assert gorse.get_item(item["ItemId"]) == item
    changed = {"Categories": ["birds"], "Labels": ["owl"], "Comment": "a bird"}
    gorse.update_item(item["ItemId"], categories=["birds"], labels=["owl"], comment="a bird")
    assert gorse.get_item(item["ItemId"]) == item | changed
    pages = list(_pages(gorse.get_items, 100))
    ids = [one["ItemId"] for page in pages for one in page]
    assert len(pages) > 2 and len(set(ids)) == len(ids) and item["ItemId"] in ids
    assert _refusal(gorse.search_items, "owl") == 501


def _users(gorse: Any, name: str) -> None:
    user = {"UserId": f"{name}-user", "Labels": ["m"], "Subscribe": ["news"], "Comment": "c"}
    assert gorse.insert_user(user) == {"RowAffected": 1}
    more = [{"UserId": f"{name}-user{n}", "Labels": {"age": n}} for n in range(3)]
    assert gorse.insert_users(more) == {"RowAffected": 3}
    assert gorse.get_user(user["UserId"]) == user
    users = [one for page in _pages(gorse.get_users, 7) for one in page]
    ours = [one for one in users if one["UserId"].startswith(f"{name}-")]
    assert ours[0] == user and [one["Labels"] for one in ours[1:]] == [{"age": n} for n in range(3)]
    assert len({one["UserId"] for one in users}) == len(users) > 20, "the world's users are there"


def _feedback(gorse: Any, name: str) -> None:
    user_id, done = f"{name}-user", _now()
    assert gorse.insert_feedback("star", user_id, "w1", done) == {"RowAffected": 1}
    assert gorse.insert_feedback("star", user_id, "w1", done) == {"RowAffected": 0}, "a repeat"
    read = {"FeedbackType": "read", "UserId": user_id, "ItemId": "w2", "Timestamp": done}
    assert gorse.insert_feedbacks([read, read | {"ItemId": "w3"}]) == {"RowAffected": 2}
    [star] = gorse.list_feedbacks("star", user_id)
    assert (star["FeedbackType"], star["UserId"], star["ItemId"]) == ("star", user_id, "w1")
    first, cursor = gorse.get_feedbacks(50)
    second, _ = gorse.get_feedbacks(50, cursor)
    assert len(first) == len(second) == 50 and cursor
    assert max(one["Timestamp"] for one in second) <= min(one["Timestamp"] for one in first)
    assert _refusal(gorse.delete_feedback, user_id, "w1") == 501


def _lists(gorse: Any, name: str) -> None:
    user_id, category = f"{name}-user", gorse.get_item("w1")["Categories"]
    found = gorse.get_recommend(user_id, n=5)
    assert len({one.id for one in found}) == 5 and all(isinstance(one, Score) for one in found)
    assert len(gorse.get_recommend(user_id, n=2, offset=3)) == 2
    for one in gorse.get_recommend(user_id, category=category[0], n=3):
        assert category[0] in gorse.get_item(one.id)["Categories"]
    before = len(gorse.list_feedbacks("read", user_id))
    gorse.get_recommend(user_id, n=3, write_back_type="read")
    assert len(gorse.list_feedbacks("read", user_id)) == before + 3
    gorse.get_recommend(user_id, n=2, write_back_type="read", write_back_delay="1s")
    _until(lambda: len(gorse.list_feedbacks("read", user_id)) == before + 5, "written back later")
    star = {"FeedbackType": "star", "UserId": "?", "ItemId": "w1", "Timestamp": _now()}
    assert len(gorse.session_recommend([star], n=4)) == 4
    near = gorse.get_neighbors("w1", n=3)
    assert [one["Id"] for one in near][1:] == [one["Id"] for one in gorse.get_neighbors("w1", n=2, offset=1)]


def _goodbye(gorse: Any, name: str) -> None:
    assert gorse.delete_item(f"{name}-item") == {"RowAffected": 1}
    assert _refusal(gorse.get_item, f"{name}-item") == 404
    for user_id in (f"{name}-user", *(f"{name}-user{n}" for n in range(3))):
        assert gorse.delete_user(user_id) == {"RowAffected": 1}
        assert _refusal(gorse.get_user, user_id) == 404, "at once, not only when it is folded"


def _pages(of: Callable[..., tuple[list[Any], str]], n: int) -> Iterator[list[Any]]:
    cursor = ""
    while True:
        page, cursor = of(n, cursor)
        yield page
        if not cursor:
            return


def _refusal(call: Callable[..., Any], *args: Any) -> int:
    with pytest.raises(GorseException) as refused:
        call(*args)
    status: int = refused.value.status_code
    return status


def _until(done: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until_s, what
        time.sleep(0.2)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
