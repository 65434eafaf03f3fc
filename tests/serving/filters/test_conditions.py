"""Filters: equal to a comparison of each item's fields, applied before candidates are cut, and refused with
the field, the value and the expectation."""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from recsys.events.event_types import Item
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema
from recsys.events.hashing import key_of
from recsys.events.rejection import Rejected
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet, read_set, set_text
from serving.filters.conditions import check_filters, filter_mask
from serving.index.item_index import NoIndex
from serving.pipeline import OF_GIVEN, Pipeline
from serving.query import Query, ShardResults
from serving.replica import value_index
from serving.replica.replica import Replica
from serving.request import Candidates, Request
from serving.sources.named import given_items
from tests.support.serving.candidate_sources import names_by_index
from tests.support.serving.replica_harness import NOW_MS, config, item, made, policy, popular, viewer

SCHEMA = Schema(
    item=(
        ("author", CATEGORICAL), ("colours", CATEGORICAL), ("place", CATEGORICAL), ("price", NUMERIC),
        ("stock", NUMERIC), ("tags", CATEGORICAL),
    ),
    vectors=(("look", 2),),
    labels=("long_view", "like"),
    times=("since", "ends"),
)  # fmt: skip
SHOP = FeatureSet(SCHEMA, declared=Declared(item_age=True, age_field="since"))


def goods(n: int) -> Item:
    """Some with more values than there are key columns, some without a field."""
    fields: dict[str, Any] = {
        "author": n % 5, "tags": [f"t{k}" for k in range(n % 9)], "price": 19.99 + (n % 3) * 1e-6,
        "colours": [f"c{(n + k) % 30}" for k in range(n % 20)], "place": n % 2 == 0, "since": NOW_MS + n,
        "stock": n - 20, "ends": NOW_MS + 1000 * n if n % 2 else f"2026-09-{1 + n % 28:02d}T10:00:00+02:00",
    }  # fmt: skip
    if n % 7 == 0:
        del fields["price"], fields["stock"], fields["tags"]
    return Item(time_ms=NOW_MS, item_id=f"g{n}", fields=fields)


def shop(count: int = 60) -> Replica:
    replica = Replica(SHOP, config())
    replica.apply_items([goods(n) for n in range(count)], count)
    return replica


def ends(value: Any) -> int:
    return value if isinstance(value, int) else int(datetime.fromisoformat(value).timestamp() * 1000)


def meets(fields: Mapping[str, Any], name: str, condition: Any) -> bool:
    value = fields.get(name)
    if isinstance(condition, dict):
        value = ends(value) if name == "ends" else value
        low, high = condition.get("min", -math.inf), condition.get("max", math.inf)
        return value is not None and low <= value <= high
    wanted = condition if isinstance(condition, list) else [condition]
    values = value if isinstance(value, list) else [value]
    if name in ("price", "stock", "since"):
        return value in wanted
    return bool({str(v) for v in values if v is not None} & {str(v) for v in wanted})


CONDITIONS: list[dict[str, Any]] = [
    {"author": 3}, {"author": "3"}, {"author": [1, "4", "nobody"]}, {"place": True},
    {"tags": "t0"}, {"tags": "t3"}, {"tags": ["t4", "t7"]}, {"colours": "c7"},
    {"colours": [f"c{n}" for n in range(30)]}, {"price": 19.99}, {"price": 19.990001},
    {"price": [19.99, 19.990002]}, {"price": {"min": 19.9900005}}, {"price": {"max": 19.99}},
    {"stock": 0}, {"stock": {"min": -3, "max": 3}}, {"stock": {"max": -100}},
    {"ends": {"max": NOW_MS + 9_000}}, {"ends": {"min": NOW_MS + 9_001, "max": NOW_MS + 2**31}},
    {"since": {"min": NOW_MS + 10, "max": NOW_MS + 11}}, {"since": NOW_MS + 5},
    {"author": 3, "tags": ["t1"], "stock": {"min": 0}}, {},
]  # fmt: skip


@pytest.mark.parametrize("filters", CONDITIONS)
def test_a_filter_selects_the_items_whose_fields_meet_it(filters: dict[str, Any]) -> None:
    replica = shop()
    check_filters(SHOP, filters)
    expected = [
        all(meets(fields, *condition) for condition in filters.items()) for fields in replica.catalogue.fields
    ]
    assert filter_mask(replica, filters).tolist() == expected
    some = np.array([50, 3, 8, 8, 59], np.int64)
    assert filter_mask(replica, filters, some).tolist() == [expected[n] for n in some]
    assert filter_mask(replica, filters, some[:0]).tolist() == []


def test_a_changed_item_is_found_by_the_values_that_it_has_now() -> None:
    replica = shop()
    assert filter_mask(replica, {"tags": "t7"})[8]  # beyond the key columns
    replica.apply_item(Item(time_ms=1, item_id="g8", fields={"tags": ["t9"], "price": 3}), 61)
    replica.apply_item(Item(time_ms=1, item_id="g1", fields={"tags": list("abcdefg")}), 62)
    assert not filter_mask(replica, {"tags": "t7"})[8] and filter_mask(replica, {"tags": "t9"})[8]
    assert filter_mask(replica, {"price": 3})[8] and filter_mask(replica, {"tags": "g"})[1]
    replica.apply_item(Item(time_ms=1, item_id="new"), 63)
    assert not filter_mask(replica, {"price": 0})[60]
    replica.apply_item(Item(time_ms=1, item_id="g1", removed=True), 64)
    replica.apply_item(Item(time_ms=1, item_id="g1", fields={"tags": ["t0"]}), 65)
    assert not filter_mask(replica, {"tags": "g"})[1]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"size": 3}, "a declared field of items: author, colours, place, price, stock, tags, since, ends"),
        ({"look": [1, 2]}, "a declared field"),
        ({"author": {"min": 1}}, "a text"), ({"author": 1.5}, "a text"), ({"author": None}, "a text"),
        ({"tags": []}, "a list of 1 to 100"), ({"tags": ["a", None]}, "a text"),
        ({"tags": list(map(str, range(101)))}, "a list of 1 to 100"),
        ({"price": "3"}, "a number"), ({"price": []}, "a number"),
        ({"price": {}}, "a range"), ({"price": {"from": 3}}, "min, max"),
        ({"price": {"min": "3"}}, "a number"), ({"price": {"min": 3, "max": 2}}, "min at most max"),
        ({"price": math.nan}, "a finite number"), ({"price": 2**70}, "64 bits"),
        ({"ends": "2026-09-01"}, "a number"),
    ],
)  # fmt: skip
def test_what_a_field_cant_be_compared_with_is_refused(filters: dict[str, Any], expected: str) -> None:
    with pytest.raises(Rejected) as refused:
        check_filters(SHOP, filters)
    assert refused.value.field == f"filters.{next(iter(filters))}"
    assert expected in refused.value.expected


def test_a_narrow_filter_fills_the_list_from_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few items match, all older than the newest that sources look at, and none among the popular."""
    monkeypatch.setattr("serving.sources.newest._NEWEST", 50)
    monkeypatch.setattr("serving.replica.popularity._TOP", 60)
    count, matching = 600, set(range(0, 500, 20))
    replica = Replica(made(1).features, config(candidates=60))
    items = [item(n, author="rare" if n in matching else f"a{n % 9}") for n in range(count)]
    replica.apply_items(items, count)
    replica.step = 1
    popular(replica, {n: 3 for n in range(count) if n not in matching} | {100: 1, 300: 2})
    assert not matching & set(replica.popularity.top.tolist())
    session = viewer(replica, liked=(200, 3))
    sources = {"trial": 5, "vector": 5, "similar": 6, "topic": 5, "popular": 5, "fresh": 5}
    request = Request("u", n=20, filters={"author": "rare"})
    query = Query(request, session, policy(sources=sources, per_author=0), NOW_MS, "r1")
    answer = Pipeline(replica).recommend(query)
    assert len(answer.items) == 20 and answer.removed["filtered"] == count - len(matching)
    assert {int(str(shown.item_id)[1:]) for shown in answer.items} <= matching - {200}
    assert answer.candidates is not None
    of = names_by_index(answer.candidates)
    assert {source for names in of.values() for source in names} >= {*sources} - {"any"}
    assert [index for index, names in of.items() if "popular" in names] == [300, 100]
    assert answer.impression.inputs is not None
    assert answer.impression.inputs.filters == {"author": "rare"}
    unfiltered = Pipeline(replica).recommend(replace(query, request=Request("u", n=20)))
    assert "filtered" not in unfiltered.removed


def test_a_filter_holds_for_pinned_and_given_items_and_seen_ones_come_back() -> None:
    replica = made(items=40)
    session = viewer(replica, seen=(0, 9))
    fixed = policy(fixed={0: "v1", 1: "v18"}, per_author=0)
    query = Query(Request("u", n=3, filters={"author": "a0"}), session, fixed, NOW_MS, "r1")
    shown = [item.item_id for item in Pipeline(replica).recommend(query).items]
    assert shown[1] == "v18" and set(shown) <= {"v27", "v36", "v18"}
    _, removed = Pipeline(replica).allowed_items(query)
    assert removed["seen"] == 2 and removed["filtered"] == 35
    wider, removed = Pipeline(replica).allowed_items(replace(query, request=replace(query.request, n=5)))
    assert wider.count == 5 and removed["seen"] == 0
    given = replace(query.request, candidate_ids=("v1", "v9", "v36"), n=5)
    answer = Pipeline(replica).recommend(replace(query, request=given))
    assert {item.item_id for item in answer.items} == {"v9", "v36"}
    assert answer.left_out == {"v1": "filtered"}


def test_of_given_and_pinned_items_a_filter_reads_only_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, rows = made(items=40), list[int]()
    find = value_index._find

    def spy(keys_NI: np.ndarray, *arguments: Any) -> None:
        rows.append(len(keys_NI))
        find(keys_NI, *arguments)

    monkeypatch.setattr(value_index, "_find", spy)
    ids = ("v36", "nobody", "v1", "v9", "v18", "v27")
    request = Request("u", 5, exclude_ids=("v18",), candidate_ids=ids, filters={"author": "a0"})
    fixed = policy(fixed={0: "v27", 1: "v1", 2: "v18"})
    query = Query(request, viewer(replica), fixed, NOW_MS, "r1")
    viewer_only = Candidates(Pipeline(replica).features.of(query))
    given = given_items(OF_GIVEN, replica, query, viewer_only)
    assert given.indices_N.tolist() == [36, 9, 27] and rows == [5]
    assert list(given.left_out.items()) == [("nobody", "unknown"), ("v1", "filtered"), ("v18", "excluded")]
    answer = Pipeline(replica).recommend(query)
    assert answer.candidates is not None and dict(answer.candidates.pinned) == {0: 27}
    assert rows == [5, 5, 1]


def test_shards_get_the_smaller_side_of_a_filter() -> None:
    replica = made(items=90)
    session = viewer(replica, liked=(3,))
    replica.index = NoIndex(replica.index.dim, 2)
    for filters, only, count in (({"author": "a4"}, True, 10), ({"duration_ms": {"max": 9_000}}, False, 23)):
        query = Query(Request("u", filters=filters), session, policy(), NOW_MS, "r")
        plan = Pipeline(replica).plan(query)
        assert plan is not None and (plan.keys_are_allowed, len(plan.keys)) == (only, count)
        mask = filter_mask(replica, filters)
        keys = {key_of("item", f"v{n}") for n in range(90) if mask[n] == only or (not only and n == 3)}
        assert set(plan.keys.tolist()) == keys


def test_shards_get_no_keys_of_many_items_that_rules_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.pipeline._MOST_KEYS", 5)
    replica = made(items=90)
    session, by = viewer(replica, liked=(3,)), {"field": "author", "value": "a4", "do": "require"}
    replica.index = NoIndex(replica.index.dim, 2)
    pipeline = Pipeline(replica)
    query = Query(Request("u"), session, policy(rules=(by,), per_author=0), NOW_MS, "r")
    plan = pipeline.plan(query)
    assert plan is not None and plan.keys.tolist() == [key_of("item", "v3")]
    assert [search.k for search in plan.queries] == [356, 134]  # 40 and 15 times 89 / 10: ten are open
    hits = {"vector": np.array([key_of("item", f"v{n}") for n in (5, 13, 6, 22)])}
    answer = pipeline.recommend(
        replace(query, shard_results=ShardResults(pipeline.version, "", hits, missing=False))
    )
    assert answer.candidates is not None
    named = [index for index, names in names_by_index(answer.candidates).items() if "vector" in names]
    assert named == [13, 22]


def test_the_mask_of_an_empty_catalogue_is_empty() -> None:
    replica = Replica(SHOP, config())
    assert filter_mask(replica, {"author": "a", "price": {"min": 1}}).tolist() == []
    assert np.array_equal(filter_mask(replica, {}), np.empty(0, np.bool_))


def test_times_are_in_no_digest_and_an_item_without_one_is_in_no_range() -> None:
    plain = replace(SHOP, schema=replace(SCHEMA, times=()))
    assert plain.digest == SHOP.digest and "times" not in plain.as_dict()["schema"]
    assert read_set(set_text(SHOP)).schema.times == ("since", "ends")
    replica = Replica(SHOP, config())
    for n, fields in enumerate(({}, {"ends": "soon"}, {"ends": -1}, {"ends": NOW_MS})):
        replica.apply_item(Item(time_ms=1, item_id=f"g{n}", fields=fields), n + 1)
    assert filter_mask(replica, {"ends": {"min": 0}}).tolist() == [False, False, False, True]
    check_filters(plain, {"since": 1})
    with pytest.raises(Rejected):
        check_filters(plain, {"ends": 1})
