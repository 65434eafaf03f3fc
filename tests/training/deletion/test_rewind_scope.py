"""The scope of a rewind: events since a time that texts of an operator name."""

import msgspec

from recsys.events.event_types import SEEN, Stamp
from training.deletion.rewind_scope import (
    ListItem,
    LoggedEngagement,
    LoggedList,
    LoggedTick,
    Named,
    RewindScope,
)

SINCE_MS = 1_000
MAIN, OTHER = Stamp(line="main", epoch=2, step=7), Stamp(line="cand", step=3)


def shown(request: str, user: str, time_ms: int = 2_000, **more: object) -> LoggedList:
    items = [ListItem("a"), ListItem("b")]
    return LoggedList(time_ms, request, user, items, **more)  # type: ignore[arg-type]


def did(request: str, user: str, item: str, time_ms: int = 2_000, **more: object) -> LoggedEngagement:
    return LoggedEngagement(time_ms, request, user, item, **more)  # type: ignore[arg-type]


def requests_of(scope: RewindScope) -> dict[str, dict[str, list[str]]]:
    return {str(w.user_id): w.requests for w in scope.withdrawals(9_000)}


def test_a_user_a_source_and_requests_name_their_events() -> None:
    names = [
        Named("u1", frozenset(["u1"])),
        Named("key", sources={5: "account", 6: "network"}),
        Named("r7,r8,r9", requests=frozenset(["r7", "r8", "r9"])),
    ]
    scope = RewindScope(names, SINCE_MS)
    scope.take([did("r1", "u1", "a"), shown("r2", "u2", source=5)])
    scope.take([did("r3", "u3", "a", source=6), did("r3", "u3", "b", source=6)])
    scope.take([did("r4", "u3", "a", source=7), did("", "u3", "c", source=5)])
    scope.take([shown("r7", "u4"), did("r8", "u5", "a", source=5), did("r2", "u2", "a", source=5)])
    assert requests_of(scope) == {
        "u1": {},
        "u2": {"r2": []},
        "u3": {"r3": ["a", "b"], "": ["c"]},
        "u4": {"r7": []},
        "u5": {"r8": []},
    }
    assert [dict(name.seen) for name in names] == [{"user": 1}, {"account": 4, "network": 2}, {"requests": 2}]
    assert names[2].requests_seen == {"r7", "r8"}
    assert all(w.from_ms == SINCE_MS for w in scope.withdrawals(9_000))


def test_what_came_before_that_time_is_not_named_and_what_was_dated_back_is() -> None:
    scope = RewindScope([Named("u1", frozenset(["u1"]), {5: "account"})], SINCE_MS)
    scope.take([did("r1", "u1", "a", 999), did("r2", "u2", "a", 999, source=5)])
    assert requests_of(scope) == {} and not scope.names[0].seen
    scope.take([LoggedTick(1_000), did("r3", "u3", "a", 1, source=5)])
    assert requests_of(scope) == {"u3": {"r3": ["a"]}}


def test_an_engagement_that_counts_for_nobody_is_not_named() -> None:
    scope = RewindScope([Named("key", sources={5: "account"})], SINCE_MS)
    scope.take([did("r1", "u1", "a", source=5, proof=0)])
    assert not scope.users and not scope.names[0].seen


def test_an_engagement_that_confirmed_its_list_names_the_whole_list() -> None:
    for shows_lists in (True, False):
        scope = RewindScope([Named("key", sources={5: "account"})], SINCE_MS, shows_lists)
        scope.take([did("r1", "u1", "a", kind=SEEN, source=5), did("r1", "u1", "b", source=5)])
        scope.take([did("r2", "u2", "a", source=6), did("r2", "u2", "b", kind=SEEN, source=5)])
        scope.take([did("r3", "u3", "a", 999), did("r3", "u3", "b", source=5)])
        first = {"u1": {"r1": []}} if shows_lists else {"u1": {"r1": ["b"]}}
        assert requests_of(scope) == first | {"u3": {"r3": ["b"]}}


def test_a_further_label_of_a_served_click_names_its_candidates() -> None:
    scope = RewindScope([Named("key", sources={5: "account"})], SINCE_MS)
    scope.take([did("r1", "u1", "a", choice="clicked:c1"), did("r1", "u1", "b", choice="clicked:c2")])
    scope.take([did("r1", "u1", "a", source=5)])
    assert requests_of(scope) == {"u1": {"r1": ["a"], "clicked:c1": []}}


def test_everything_names_each_user() -> None:
    scope = RewindScope([Named("everything", everything=True)], SINCE_MS)
    scope.take([shown("r1", "u1"), did("r2", "u2", "a"), did("r0", "u0", "a", 0)])
    scope.take([did("r3", "u3", "a", 0)])
    assert requests_of(scope) == {"u0": {}, "u1": {}, "u2": {}}


def test_answers_are_those_of_the_live_line_since_that_time() -> None:
    scope = RewindScope([], SINCE_MS)
    scope.take([
        shown("r0", "u1", 999, stamp=MAIN), shown("r1", "u1", stamp=MAIN), shown("r2", "u1"),
        shown("r3", "u1", stamp=OTHER), shown("clicked:r4", "u1", stamp=MAIN),
    ])  # fmt: skip
    (answer,) = scope.answers
    assert msgspec.to_builtins(answer) == {
        "request_id": "r1", "user_id": "u1", "time_ms": 2_000, "line": "main", "epoch": 2,
        "step": 7, "items": ["a", "b"],
    }  # fmt: skip
