"""A past that is folded as columns leaves the same bits as its events one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plugins.kuairand.past import NAME, Past
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event, Impression, Item, ServedItem, User
from recsys.events.field_schema import Schema
from recsys.features.counters import CounterTable
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet
from recsys.features.session import COUNTER_ROWS
from replay.player import Player

SCHEMA = Schema(
    item=(("author", "categorical"), ("tags", "categorical"), ("duration_ms", "numeric")),
    user=(("age", "categorical"),),
    shown_by="impression",
)
FEATURES = FeatureSet(SCHEMA)
KINDS = ((), ("view",), ("long_view", "like", "view"), ("hide",), ("long_view", "profile"))


class NoLoop:
    """A loop that learns nothing."""

    def advance(self, now_ms: int) -> list[object]:
        return []

    def append(self, event: Event) -> None: ...


def past(lists: int = 300, users: int = 4, items: int = 40) -> Past:
    draw = np.random.default_rng(1)
    user_N = draw.integers(0, users, lists)
    places = np.array([np.sum(user_N[:n] == user) for n, user in enumerate(user_N)])
    times = np.sort(draw.integers(1, 10**9, lists))
    codes = draw.integers(0, len(KINDS), lists)
    return Past(user_N, draw.integers(0, items, lists), times, places, codes, KINDS)


def player_of(features: FeatureSet = FEATURES) -> Player:
    player = Player(features, Config(), NoLoop())  # type: ignore[arg-type]
    for n in range(30):  # fewer than the past has
        fields = {"author": f"a{n % 7}", "tags": [f"t{n % 3}", "t"], "duration_ms": 1000 * (n + 1)}
        player.play(Item(time_ms=0, item_id=n, fields=fields))
    for n in range(3):
        fields = {"age": str(n)} | ({"profiling": False} if n == 2 else {})
        player.play(User(time_ms=0, user_id=n, fields=fields))
    return player


def state_of(player: Player, users: int = 4) -> list[object]:
    sessions = [player.session(user).pack() for user in range(users)]
    counters = player.item_counters
    keys = counters.take_changed()
    values = [array.tobytes() for array in counters.counters.export(keys)]
    visits = player.replica.covisits.export(), list(counters.visits.users.items())
    return [player.replica.catalogue.ids, sessions, keys, values, visits]


def one_by_one(events: Past, features: FeatureSet = FEATURES) -> Player:
    player = player_of(features)
    for event in events:
        player.fold(event)
    return player


def test_sessions_counters_and_visits_are_those_of_the_events() -> None:
    events, columns = past(), player_of()
    assert events.fold_into(columns)
    assert not columns.sessions.keys() - {"2"}  # the others are folded when they are read
    assert state_of(columns) == state_of(one_by_one(events))


def test_later_events_find_the_same_state() -> None:
    events, columns = past(), player_of()
    assert events.fold_into(columns)
    rows = one_by_one(events)
    for player in (columns, rows):
        about: dict[str, Any] = {"time_ms": 2 * 10**9, "request_id": "r", "user_id": 1}
        player.play(Impression(items=[ServedItem(item_id=3)], **about))
        player.play(Engagement(item_id=3, kind="long_view", **about))
        player.play(User(time_ms=2 * 10**9, user_id=0, removed=True))
        player.play(User(time_ms=2 * 10**9, user_id=3, fields={"age": "9"}))
    assert columns.session(0).events == 0
    assert state_of(columns) == state_of(rows)


def test_a_session_that_drops_counters_is_folded_event_by_event() -> None:
    events, columns = past(lists=2000, users=1, items=2000), player_of()
    assert events.fold_into(columns)
    assert columns.session(0).evicted and type(columns.session(0).counters) is CounterTable
    assert len(columns.session(0).counters) <= 2 * COUNTER_ROWS
    assert state_of(columns, 1) == state_of(one_by_one(events), 1)


@pytest.mark.parametrize(
    "features",
    [
        FeatureSet(SCHEMA, declared=Declared(history_of=("like",))),
        FeatureSet(replace(SCHEMA, shown_by="view")),
    ],
)
def test_features_that_need_each_event_get_it(features: FeatureSet) -> None:
    events, columns = past(), player_of(features)
    assert not events.fold_into(columns)
    assert not columns.sessions.keys() - {"2"} and not columns.item_counters.take_changed()


def test_hidden_items_are_those_of_the_viewer() -> None:
    player = player_of()
    assert past().fold_into(player)
    sizes = [len(player.session(user).hidden) for user in range(4)]
    hides = [past().users[past().codes == 3].tolist().count(user) for user in range(4)]
    assert sizes == hides and len(set(sizes)) > 1


def test_events_name_their_list() -> None:
    shown, *engaged = list(past().events([5]))
    assert isinstance(shown, Impression) and shown.surface == NAME
    assert shown.request_id == past().request_id(5) == f"{shown.user_id}-history-{past().places[5]}"
    assert all(isinstance(e, Engagement) and e.request_id == shown.request_id for e in engaged)


@pytest.mark.parametrize("lists", [3, 1400])
def test_counters_are_those_of_all_events(lists: int) -> None:
    """Also when the oldest are dropped, which depends on the order of the rows."""
    events, columns, rows = past(), player_of(), one_by_one(past())
    assert events.fold_into(columns)
    draw = np.random.default_rng(2)
    shown = [*range(40), *draw.integers(0, 2000, lists).tolist()]
    for n, item in enumerate(shown):
        about: dict[str, Any] = {"time_ms": 2 * 10**9 + n, "request_id": f"r{n}", "user_id": 1}
        features = list[Any]()
        for player in (columns, rows):
            player.on_scored = lambda scored, to=features: to.append(scored.impression.features)
            player.play(Impression(items=[ServedItem(item_id=item)], **about))
            player.flush()
            player.play(Engagement(item_id=item, kind="view", **about))
        assert features[0] == features[1]
        assert len(columns.session(1).counters) == len(rows.session(1).counters)
    assert columns.session(1).pack() == rows.session(1).pack()
    assert (rows.session(1).evicted > 0) == (lists == 1400)
