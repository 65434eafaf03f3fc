"""Metarank's words and ours: what both know goes there and back unchanged."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from plugins.gorse_and_metarank import metarank
from plugins.gorse_and_metarank.metarank_routes import merge_fields
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, parse

CONFIG, NOW_MS = Config(), 1_790_000_000_000
ids = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20)
numbers = st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9)
values = ids | st.booleans() | numbers | st.lists(ids) | st.lists(numbers)
fields = st.dictionaries(ids, values, max_size=5)


@given(ids, fields)
def test_the_fields_of_an_item_go_there_and_back(item: str, expected: dict[str, Any]) -> None:
    event = {
        "event": "item",
        "id": "e",
        "item": item,
        "timestamp": 5,
        "fields": metarank.format_fields(expected),
    }
    [made] = metarank.parse_batch(event, CONFIG, NOW_MS).items
    assert (made["item_id"], made["fields"], made["time_ms"]) == (item, expected, 5)


@given(ids, ids, st.lists(ids, min_size=1, max_size=9, unique=True), fields)
def test_a_ranking_and_what_was_displayed_of_it_have_one_request(
    user: str, name: str, item_ids: list[str], context: dict[str, Any]
) -> None:
    told = {"event": "ranking", "id": name, "user": user, "timestamp": str(NOW_MS),
            "items": [{"id": i} for i in item_ids], "fields": metarank.format_fields(context)}  # fmt: skip
    ranking = metarank.parse_ranking(told, NOW_MS)
    assert (ranking.user_id, list(ranking.item_ids), ranking.context) == (user, item_ids, context)
    raws = metarank.parse_batch(told, CONFIG, NOW_MS).engagements
    shown = [parse(raw, now_ms=NOW_MS) for raw in raws]
    assert [e.item_id for e in shown if isinstance(e, Engagement)] == item_ids
    assert {(e.request_id, e.kind) for e in shown if isinstance(e, Engagement)} == {
        (ranking.request_id, "view")
    }
    assert len({e.event_id for e in shown if isinstance(e, Engagement)}) == len(item_ids)
    done = told | {"event": "interaction", "type": "like", "item": item_ids[0], "ranking": name}
    [like] = metarank.parse_batch([done | {"fields": []}], CONFIG, NOW_MS).engagements
    assert (like["request_id"], like["user_id"], like["kind"]) == (ranking.request_id, user, "like")


@given(ids, ids, ids)
def test_rankings_of_two_users_are_two_requests(name: str, one: str, other: str) -> None:
    same = metarank.request_id_of(one, name) == metarank.request_id_of(other, name)
    assert same == (one == other)


def test_a_later_event_of_a_batch_is_merge_fields_an_earlier_one() -> None:
    items = [{"item_id": "v", "fields": {"a": 1, "b": 1}}, {"item_id": "v", "fields": {"a": 2}},
             {"item_id": "w", "fields": {}}]  # fmt: skip
    had = {"v": {"c": 0, "a": 0}}
    made = merge_fields(items, had.get)  # type: ignore[arg-type]
    assert [one["fields"] for one in made] == [{"c": 0, "a": 1, "b": 1}, {"c": 0, "a": 2, "b": 1}, {}]
    assert had == {"v": {"c": 0, "a": 0}}
