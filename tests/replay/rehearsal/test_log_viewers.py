"""Viewers of a log ask for a list before each judged row, and send the row where it belongs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from recsys.events.event_types import SEEN, Engagement, Event, Impression, Item, ServedItem, User
from recsys.events.hashing import Id
from replay.rehearsal.log_viewers import LogViewers, SystemList

T = 1_700_000_000_000


class FakeSystem:
    """Serves the same list to everybody, and notes what it is asked."""

    def __init__(self, *items: str) -> None:
        self.items, self.lists, self.calls = items, 0, list[tuple[Any, ...]]()

    def wait(self, time_ms: int) -> None:
        self.calls.append(("wait", time_ms - T))

    def publish(self, items: Sequence[Item]) -> None:
        self.calls.append(("publish", [item.item_id for item in items]))

    def profile(self, users: Sequence[User]) -> None:
        self.calls.append(("profile", [user.user_id for user in users]))

    def recommend(self, user_id: Id, surface: str, context: Mapping[str, Any]) -> SystemList:
        return self._served("recommend", user_id, self.items)

    def rank(
        self, user_id: Id, item_ids: Sequence[Id], surface: str, context: Mapping[str, Any]
    ) -> SystemList:
        return self._served("rank", user_id, tuple(map(str, item_ids)))

    def send(self, events: Sequence[Engagement]) -> None:
        self.calls += [("send", e.kind, e.item_id, e.request_id) for e in events]

    def _served(self, call: str, user_id: Id, items: tuple[str, ...]) -> SystemList:
        self.lists += 1
        self.calls.append((call, user_id))
        return SystemList(f"s{self.lists}", items)


class FakeJudge:
    def __init__(self) -> None:
        self.rows = list[tuple[Any, ...]]()

    def ask(self, user_id: Id, time_ms: int, our_items: Sequence[Id] | None) -> None:
        self.rows.append(("ask", user_id, time_ms - T, our_items))

    def take(self, user_id: Id, item_id: Id, time_ms: int) -> None:
        self.rows.append(("take", user_id, item_id, time_ms - T))


def did(item: str, kind: str = "click", at_ms: int = 0, request: str = "") -> Engagement:
    return Engagement(time_ms=T + at_ms, request_id=request, user_id="u", item_id=item, kind=kind)


def shown(request: str, *items: str, on_screen: bool = True) -> Impression:
    served = [ServedItem(item_id=item) for item in items]
    return Impression(time_ms=T, request_id=request, user_id="u", items=served, shown=on_screen)


def played(system: FakeSystem, *events: Event, read: float = 0.0) -> FakeJudge:
    judge = FakeJudge()
    viewers = LogViewers(system, judge, "click", read)
    for event in events:
        viewers.play(event)
    return judge


def test_a_user_asks_once_for_the_rows_of_a_moment() -> None:
    system = FakeSystem("v1", "v2")
    rows = did("v2"), did("v9"), did("v1"), replace(did("v1"), user_id="w"), did("v1", at_ms=5)
    judge = played(system, *rows)
    assert [call[-1] for call in system.calls if call[0] == "send"] == ["s1", "", "s1", "s2", "s3"]
    assert [row[3] for row in judge.rows if row[0] == "ask"] == [("v1", "v2")] * 5


def test_a_row_is_sent_in_the_list_that_has_its_item_else_alone() -> None:
    system = FakeSystem("v1", "v2")
    judge = played(system, did("v2"), did("v9", at_ms=5))
    assert system.calls == [
        ("wait", 0), ("recommend", "u"), ("send", "click", "v2", "s1"),
        ("wait", 5), ("recommend", "u"), ("send", "click", "v9", ""),
    ]  # fmt: skip
    asked = ("v1", "v2")
    assert judge.rows == [
        ("ask", "u", 0, asked), ("take", "u", "v2", 0), ("ask", "u", 5, asked), ("take", "u", "v9", 5)
    ]  # fmt: skip


def test_a_row_of_another_kind_goes_with_that_before_it() -> None:
    system = FakeSystem("v1")
    judge = played(system, did("v1"), did("v1", "buy", 9), did("v5", "buy", 9))
    sent = [call[1:] for call in system.calls if call[0] == "send"]
    assert sent == [("click", "v1", "s1"), ("buy", "v1", "s1"), ("buy", "v5", "")]
    assert system.lists == 1 and len(judge.rows) == 2


@pytest.mark.parametrize("on_screen", [True, False])
def test_a_list_of_the_log_is_ranked_and_its_rows_are_sent_in_it(on_screen: bool) -> None:
    system = FakeSystem("v1")
    judge = played(system, shown("log", "v1", "v2", on_screen=on_screen), did("v1", request="log"))
    seen = [("send", SEEN, "v1", "s2")] * on_screen
    assert system.calls == [
        ("wait", 0), ("recommend", "u"), ("rank", "u"), *seen, ("wait", 0),
        ("send", "click", "v1", "s2"),
    ]  # fmt: skip
    assert judge.rows[0] == ("ask", "u", 0, ("v1",))


def test_new_items_and_profiles_are_there_before_the_next_row() -> None:
    system = FakeSystem()
    user = User(time_ms=T, user_id="u")
    played(system, Item(time_ms=T, item_id="v1"), Item(time_ms=T, item_id="v2"), user, did("v1"))
    assert system.calls[:3] == [("publish", ["v1", "v2"]), ("profile", ["u"]), ("wait", 0)]


def test_a_share_of_lists_is_only_read() -> None:
    system = FakeSystem("v1")
    viewers = LogViewers(system, FakeJudge(), "click", 0.5)
    for n in range(200):
        viewers.play(did("v1", at_ms=n))
    assert viewers.counts["rows"] == viewers.counts["rows in a list"] == 200
    assert 70 < viewers.counts["lists that were only read"] < 130
    assert system.lists == 200 + viewers.counts["lists that were only read"]
