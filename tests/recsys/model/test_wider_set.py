"""A model of a narrower set reads from the wider one exactly what its own set would have computed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recsys.app.app_file import app_of
from recsys.config.system_config import CovisitConfig
from recsys.events.event_types import FeatureBlock, Item, User
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema
from recsys.features.catalogue import Catalogue
from recsys.features.columns import Measure
from recsys.features.covisits import Covisits
from recsys.features.families.declared import Declared
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.item_counters import ItemCounters
from recsys.features.request_features import RequestFeatures, UnknownFeatureSet
from recsys.features.session import Session
from recsys.model.wider_set import Narrowing, columns_from, covers, united
from tests.support.serving.session_events import NOW_MS, did, shown

OLD = app_of("""
events: {click: positive, like: positive}
fields: {item: {author: category, price: number}}
groups: [author]
features: {half_lives: [6h, 24h], rates: [all, item, user×author], age: true, list: [item]}
""").feature_set()
NEW = app_of("""
events: {click: positive, like: positive}
fields: {item: {author: category, length: number}}
groups: [author]
history: 30
features:
  half_lives: [1h, 6h, 7d]
  rates: [all, user, author, context×item, item]
  near: true
  position: true
  list: [author]
""").feature_set()
EVENTS = """
events: {click: positive, like: {label: positive, value: amount}, cart: none}
fields:
  item: {author: category, kind: category, price: number, length: number}
  user: {age: number, region: category}
  context: {device: category}
groups: [author]
features:
"""
OPERATORS = app_of(
    EVENTS
    + """
  half_lives: [1h, 24h]
  rates: [all, item, author, user, user×author, item×region]
  numbers: [user.age]
  against: {item: author}
  last: {click: [user, item]}
  visit: 30m
  trend: true
  expressions: {gap: {difference: [item/click.1h, author/click.1h]}, far: {log: gap}}
"""
).feature_set()
OTHER_OPERATORS = app_of(
    EVENTS
    + """
  half_lives: [1h, 24h, 7d]
  rates: [all, user, item, author, author×user, device, region]
  against: {author×user: author}
  last: {like: item}
  counts: [cart]
  distinct: {click: {item: user, user: author}}
  expressions: {gap6: {difference: [item/click.168h, author/click.168h]}}
"""
).feature_set()


def measures(features: FeatureSet) -> list[Measure]:
    return [column.measure for column in features.dense]


def with_lists(features: FeatureSet) -> FeatureSet:
    """With all columns of a list."""
    return replace(features, declared=replace(features.declared, whole_list=True))


FEED = FeatureSet(FEED_SCHEMA)
FASTER = replace(FEED, declared=Declared(half_lives_h=(1.0, 6.0, 336.0)))
SLOWER = replace(FEED, declared=Declared(half_lives_h=(6.0, 720.0)))


def built(features: FeatureSet) -> RequestFeatures:
    """Features of some items after the same events."""
    catalogue, session = Catalogue(features), Session("u", features)
    counters, builder = ItemCounters(features), FeatureBuilder(features)
    user = User(time_ms=NOW_MS, user_id="u", fields={"age": 30, "region": "north"})
    session.fold_user(user)
    counters.user(user)
    for n in range(30):
        fields = {"author": f"a{n % 5}", "price": n, "length": 2 * n, "tags": [f"t{n % 7}"],
                  "duration_ms": 3_000 + 900 * n}  # fmt: skip
        catalogue.apply(Item(time_ms=n * 1_000, item_id=f"v{n}", fields=fields))
    for n in range(15):
        chosen = np.array([n % 30, (3 * n + 1) % 30, (7 * n + 2) % 30])
        keys = catalogue.keys[chosen]
        impression = shown(f"r{n}", *chosen, at_ms=NOW_MS + 600_000 * n)
        session.fold_impression(impression, keys)
        counters.impression(impression, keys)
        for kind in ("cart", "click", "like", "view")[n % 4 :]:
            at_ms = NOW_MS + 600_000 * n + 5_000
            event = did(f"r{n}", int(chosen[n % 3]), kind, at_ms, watch_ms=9_000, value=2.5)
            session.fold_engagement(event, keys[n % 3])
            counters.engagement(event, keys[n % 3])
    return builder.build(
        session, "feed", {"device": "d"}, np.arange(12), catalogue, counters.counters, NOW_MS + 20_000_000,
        is_list=True, covisits=Covisits(CovisitConfig()),
    )  # fmt: skip


def bytes_of(features: RequestFeatures) -> list[bytes]:
    names = ("user_U", "items_NI", "history_TH", "outcomes_TO", "dense_NF")
    return [getattr(features, name).tobytes() for name in names]


@pytest.mark.parametrize(
    ("old", "new"),
    [(OLD, NEW), (NEW, OLD), (FEED, FASTER), (FEED, SLOWER), (SLOWER, FASTER),
     (with_lists(OLD), with_lists(NEW)), (OLD, with_lists(OLD)), (with_lists(NEW), OLD)],
)  # fmt: skip
def test_both_sets_read_from_their_union_what_they_compute_alone(old: FeatureSet, new: FeatureSet) -> None:
    wide = united(old, new)
    features = built(wide)
    for narrow in (old, new):
        alone, read = built(narrow), Narrowing(wide, narrow).features(features)
        assert np.count_nonzero(alone.dense_NF) > 100
        assert read.feature_set == narrow.digest
        assert bytes_of(read) == bytes_of(alone)


def test_the_name_of_a_field_may_end_like_that_of_a_half_life() -> None:
    text = (
        "fields: {item: {views.24h: number}, user: {load.1h: number}}\n"
        "features: {half_lives: [6h, %s], rates: [all, item], numbers: [user.load.1h]}"
    )
    old, new = (app_of(text % half_life).feature_set() for half_life in ("24h", "1h"))
    wide = united(old, new)
    for narrow in (old, new):
        Narrowing(wide, narrow)
    for name in ("item.views.24h", "user.load.1h"):
        column = old.dense_names.index(name)
        assert columns_from(old, new)[new.dense_names.index(name)] == column
    rate = old.dense_names.index("item/click.24h")
    assert columns_from(old, new)[new.dense_names.index("item/click.1h")] == rate


def test_trends_and_derived_columns_follow_a_replaced_half_life() -> None:
    text = (
        "features: {half_lives: [6h, %s], rates: [item, user], trend: true, "
        "expressions: {lead: {difference: [item/click.%s, item/click.6h]}}}"
    )
    old, new = (app_of(text % (slow, slow)).feature_set() for slow in ("24h", "48h"))
    continued = columns_from(old, new)
    assert continued == [*range(len(old.dense_names))]
    assert old.dense_names[continued[new.dense_names.index("user/trend.6h")]] == "user/trend.6h"
    other = app_of(text.replace("[item,", "[item, all,") % ("48h", "48h")).feature_set()
    assert columns_from(old, other)[other.dense_names.index("all/trend.6h")] == -1


@pytest.mark.parametrize("lists", [False, True])
def test_operators_too(lists: bool) -> None:
    """Up to the last bits: events that only one set counts update rows more often."""
    old, new = (with_lists(f) if lists else f for f in (OPERATORS, OTHER_OPERATORS))
    wide = united(old, new)
    features = built(wide)
    for narrow in (old, new):
        alone, read = built(narrow), Narrowing(wide, narrow).features(features)
        assert np.count_nonzero(alone.dense_NF) > 300
        np.testing.assert_allclose(read.dense_NF, alone.dense_NF, atol=1e-5)
    assert united(wide, new) is wide


def test_an_expression_may_get_another_name_also_in_lists() -> None:
    old = with_lists(OPERATORS)
    derived = (replace(old.derived[0], name="lead"), replace(old.derived[1], columns=("lead",)))
    new = replace(old, declared=replace(old.declared, derived=derived))
    assert "list.above(lead)" in new.dense_names and measures(new) == measures(old)
    assert len(old.dense_names) == len(set(measures(old)))
    assert united(old, new) is old


def test_an_expression_that_computes_something_else_needs_another_name() -> None:
    text = "  rates: [all, item]\n  expressions: {gap: {difference: [item/click.24h, item.price]}}\n"
    new = app_of(EVENTS + "  half_lives: [1h, 24h]\n" + text).feature_set()
    with pytest.raises(ValueError, match="features.gap computes something else than before"):
        united(OPERATORS, new)


@pytest.mark.parametrize("change", [{"half_lives_h": (1.0, 6.0, 24.0)}, {"visit_s": 60.0}])
def test_trends_and_visits_change_in_two_steps(change: dict[str, Any]) -> None:
    new = replace(OPERATORS, declared=replace(OPERATORS.declared, derived=(), **change))
    with pytest.raises(ValueError, match="visit or trend compute something else than before: remove"):
        united(OPERATORS, new)


def test_rates_of_a_field_without_a_group_are_refused() -> None:
    new = app_of(EVENTS + "  half_lives: [1h, 24h]\n  rates: [all, kind]\n").feature_set()
    with pytest.raises(ValueError, match=r"rates that are no groups is \('kind',\)"):
        united(OPERATORS, new)


def test_a_logged_block_is_read_like_the_request_that_it_records() -> None:
    wide = united(OLD, NEW)
    narrowing, features = Narrowing(wide, OLD), built(wide)
    assert narrowing.block(features.block(), 12) == narrowing.features(features).block()
    one = features.rows([3])
    assert narrowing.block(one.block()) == narrowing.features(one).block()


def test_a_set_that_has_all_columns_stays() -> None:
    wide = united(OLD, NEW)
    assert united(wide, OLD) is wide and united(wide, NEW) is wide
    assert covers(wide, OLD) and not covers(OLD, wide)
    assert len(set(measures(wide))) == len(wide.dense_names)


def test_what_was_not_logged_is_not_read() -> None:
    with pytest.raises(UnknownFeatureSet, match=r"lacks .*author/shown.1h.* logged before"):
        Narrowing(OLD, NEW)
    with pytest.raises(UnknownFeatureSet, match="history of 25"):
        Narrowing(OLD, replace(OLD, history=25))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": replace(OLD.schema, groups=())}, "groups is"),
        ({"schema": replace(OLD.schema, labels=("like", "click"))}, "labels is"),
        ({"kind": "ids"}, "kind is"),
        ({"declared": replace(OLD.declared, history_of=("click",))}, "history.of is"),
        ({"declared": replace(OLD.declared, age_field="born")}, "age, visit or trend compute something else"),
        ({"declared": Declared(half_lives_h=(1.0, 2.0, 3.0, 4.0, 5.0))}, "at most 6"),
    ],
)
def test_sets_that_read_events_in_another_way_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        united(OLD, replace(OLD, **change))  # type: ignore[arg-type]


def test_a_new_category_is_refused_since_all_categories_share_a_slot() -> None:
    schema = Schema(
        item=(("author", CATEGORICAL), ("colour", CATEGORICAL), ("price", NUMERIC)),
        groups=("author",),
        labels=OLD.schema.labels,
        kinds=OLD.schema.kinds,
    )
    with pytest.raises(ValueError, match="fields with categories"):
        united(OLD, replace(OLD, schema=schema))


def test_blocks_of_several_items_keep_their_order() -> None:
    block = FeatureBlock(
        feature_set="", user_keys=b"", item_keys=b"", history=b"", outcomes=b"",
        dense=np.arange(2 * len(OLD.dense_names), dtype=np.float32).tobytes(),
    )  # fmt: skip
    assert Narrowing(OLD, OLD).block(block, 2).dense == block.dense
