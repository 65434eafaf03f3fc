"""Gorse's words and ours: what both know goes there and back unchanged."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.gorse_and_metarank import gorse
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Item, Rejected, User, parse

CONFIG, NOW_MS = Config(), 1_790_000_000_000
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20)
ids = texts.filter(lambda name: "/" not in name and name not in (".", ".."))
words = st.lists(texts, max_size=4)
values = texts | st.booleans() | st.integers(-(2**53), 2**53) | words.filter(bool)
names = texts.filter(lambda name: name not in ("topic", "comment", "timestamp"))
objects = st.dictionaries(names, values, min_size=1, max_size=4).filter(
    lambda event: set(event) != {"tags"}  # that alone is a list, said otherwise
)
times = st.datetimes(datetime(1970, 1, 1), datetime(2025, 12, 31)).map(
    lambda moment: moment.isoformat() + "Z"
)
items = st.fixed_dictionaries(
    {
        "ItemId": ids,
        "IsHidden": st.just(False),
        "Categories": words,
        "Timestamp": times,
        "Labels": words | objects,
        "Comment": st.text(st.characters(codec="utf-8"), max_size=20),
    }
)


def record(raw: dict[str, Any], kind: str) -> Any:
    """The event that WriteApi makes of what the translator says."""
    return parse({"type": kind, "time_ms": NOW_MS} | raw, now_ms=NOW_MS, unattributed=True)


@given(items)
def test_an_item_goes_there_and_back(item: dict[str, Any]) -> None:
    event = record(gorse.parse_item(item, "", CONFIG, NOW_MS), "item")
    assert isinstance(event, Item) and not event.removed
    assert gorse.format_item(event.item_id, event.fields, CONFIG) == item


users = st.fixed_dictionaries(
    {
        "UserId": ids,
        "Labels": words
        | st.dictionaries(
            texts.filter(lambda name: name not in ("comment", "subscribe")), values, min_size=1
        ).filter(lambda event: set(event) != {"labels"}),
        "Subscribe": words,
        "Comment": st.text(st.characters(codec="utf-8"), max_size=20),
    }
)


@given(users)
def test_a_user_goes_there_and_back(user: dict[str, Any]) -> None:
    event = record(gorse.parse_user(user, "", CONFIG, NOW_MS), "user")
    assert isinstance(event, User)
    assert gorse.format_user(event.user_id, event.fields) == user


@given(st.dictionaries(names, values, max_size=4), words, st.text(st.characters(codec="utf-8"), max_size=9))
def test_an_item_of_ours_comes_back_with_its_fields(
    fields: dict[str, Any], topic: list[str], comment: str
) -> None:
    """But for the form of a category: one is a list of one."""
    fields = fields | {"topic": topic, "comment": comment}
    fields = {name: value for name, value in fields.items() if value not in ([], "")}
    shown = gorse.format_item("v1", fields, CONFIG)
    again = record(gorse.parse_item(shown, "", CONFIG, NOW_MS) | {"time_ms": NOW_MS}, "item")
    assert {n: v for n, v in again.fields.items() if n != "timestamp"} == fields


@given(items, st.sets(st.sampled_from(["Labels", "Categories", "Comment", "Timestamp"])), items)
def test_a_patch_changes_what_it_says_and_nothing_else(
    item: dict[str, Any], changed: set[str], other: dict[str, Any]
) -> None:
    before = record(gorse.parse_item(item, "", CONFIG, NOW_MS), "item").fields
    patch = {name: other[name] for name in changed}
    after = record(gorse.patch_item(patch, item["ItemId"], before, CONFIG, NOW_MS), "item")
    assert gorse.format_item(item["ItemId"], after.fields, CONFIG) == item | patch


@given(ids, ids, st.sampled_from(sorted(CONFIG.compat.kinds)), times)
def test_feedback_loses_nothing_that_both_know(user: str, item: str, kind: str, time: str) -> None:
    told = {"UserId": user, "ItemId": item, "FeedbackType": kind, "Timestamp": time, "Value": 3}
    event = record(gorse.parse_feedback(told, "", CONFIG, NOW_MS), "engagement")
    again = record(gorse.parse_feedback(told, "", CONFIG, NOW_MS + 5), "engagement")
    assert isinstance(event, Engagement) and event == again, "the same is a repeat, whenever it comes"
    assert (event.user_id, event.item_id, event.kind) == (user, item, CONFIG.compat.kinds[kind])
    other = record(gorse.parse_feedback(told | {"ItemId": item + "x"}, "", CONFIG, NOW_MS), "engagement")
    assert other.event_id != event.event_id


def test_a_profile_has_the_labels_by_name_where_they_have_names() -> None:
    raw = {"UserId": "u", "Labels": {"country": "NZ"}, "Subscribe": ["fish"], "Comment": ""}
    event = record(gorse.parse_user(raw, "", CONFIG, NOW_MS), "user")
    assert isinstance(event, User) and event.fields == {"country": "NZ", "subscribe": ["fish"]}
    listed = record(gorse.parse_user({"UserId": "u", "Labels": ["a"]}, "", CONFIG, NOW_MS), "user")
    assert listed.fields == {"labels": ["a"]}


@pytest.mark.parametrize("labels", [[1], "a", {"comment": "x"}, {"timestamp": 1}, {"topic": "x"}])
def test_labels_that_would_hide_a_field_are_refused(labels: Any) -> None:
    with pytest.raises(Rejected) as error:
        gorse.parse_item({"ItemId": "v", "Labels": labels}, "[3]", CONFIG, NOW_MS)
    assert error.value.field.startswith("[3].Labels")


def test_unknown_fields_are_passed_over() -> None:
    assert gorse.parse_item({"ItemId": "v", "Colour": "red"}, "", CONFIG, NOW_MS)["fields"] == {}


@pytest.mark.parametrize("name", ["a/b", "/", ".", ".."])
def test_an_id_that_no_path_can_name_is_refused(name: str) -> None:
    feedback = {"UserId": "u", "ItemId": name, "FeedbackType": "star"}
    reads: list[Callable[[], dict[str, Any]]] = [
        lambda: gorse.parse_item({"ItemId": name}, "[3]", CONFIG, NOW_MS),
        lambda: gorse.parse_user({"UserId": name}, "[3]", CONFIG, NOW_MS),
        lambda: gorse.parse_feedback(feedback, "[3]", CONFIG, NOW_MS),
    ]
    for read in reads:
        with pytest.raises(Rejected, match="without a slash") as error:
            read()
        assert error.value.field in ("[3].ItemId", "[3].UserId")
