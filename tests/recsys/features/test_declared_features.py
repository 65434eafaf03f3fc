"""Declared features: counters of every entity agree with a naive recount, and so do history, age and list."""

import math
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.system_config import CovisitConfig
from recsys.events.event_types import Engagement, Impression, Item, ServedItem, User
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema
from recsys.events.hashing import key_of
from recsys.features.catalogue import Catalogue
from recsys.features.columns import Entity, entity_of
from recsys.features.covisits import PREVIOUS, Covisits
from recsys.features.families.age import AGE
from recsys.features.families.declared import Declared
from recsys.features.families.derived import Derived
from recsys.features.families.list_comparison import LENGTH
from recsys.features.families.moment import MOMENT
from recsys.features.families.near import NEAR
from recsys.features.families.position import POSITION
from recsys.features.families.visit import NEAR_IN_VISIT
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet, Floats
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000
FOR_EVER_H = 1e9  # a half-life in which nothing fades
SCHEMA = Schema(
    item=(("author", CATEGORICAL), ("duration_ms", NUMERIC), ("tags", CATEGORICAL)),
    user=(("region", CATEGORICAL), ("age", CATEGORICAL)),
    context=(("device", CATEGORICAL),),
    groups=("author", "tags"),
    labels=("click", "buy"),
    shown_by="impression",
    kinds=("click", "buy", "view"),
)
PARTS = ("user", "context", "profile", "item", "duration", "author", "tags")
ITEMS = [
    {"author": "a0", "tags": ["t0", "t1"], "duration_ms": 4_000},
    {"author": "a0", "tags": ["t1"], "duration_ms": 16_000},
    {"author": "a1", "tags": ["t2", "t0"], "duration_ms": 4_000},
    {"author": "a1"},
    {},
]
USERS = [{"region": "north"}, {"region": "north", "age": "30s"}, {"age": "30s"}, {}]
DEVICES = ["phone", "desktop", None]


def accepted(name: str) -> bool:
    try:
        entity_of(name, SCHEMA)
    except ValueError:
        return False
    return True


ENTITIES = ["all", *(name for name in (*PARTS, *map("×".join, product(PARTS, PARTS))) if accepted(name))]


def feature_set(shown_by: str = "impression", **declared: object) -> FeatureSet:
    schema = replace(SCHEMA, shown_by=shown_by)
    return FeatureSet(schema, "all", history=5, declared=Declared(**declared))  # type: ignore[arg-type]


@dataclass
class Feed:
    """Sessions, a catalogue and counters, fed as a system feeds them."""

    features: FeatureSet
    seen: list[tuple[int, str | None, int]] = field(default_factory=list)  # user, device, item
    now_ms: int = START_MS
    covisits: Covisits | None = None

    def __post_init__(self) -> None:
        self.builder = FeatureBuilder(self.features)
        self.catalogue = Catalogue(self.features)
        for n, fields in enumerate(ITEMS):
            published = Item(time_ms=START_MS - n * HOUR_MS, item_id=f"v{n}", fields=fields)
            self.catalogue.apply(published)
        self.counters = ItemCounters(self.features)
        self.sessions = [Session(f"u{n}", self.features) for n in range(len(USERS))]
        for n, fields in enumerate(USERS):
            self.sessions[n].fold_user(User(time_ms=START_MS, user_id=f"u{n}", fields=fields))

    def dense(self, user: int, device: str | None, items: list[int], is_list: bool = False) -> Floats:
        return self._build(user, device, items, is_list).dense_NF

    def visit(self, user: int, device: str | None, items: list[int], engaged: list[tuple[int, str]]) -> None:
        """Shows a list, then the viewer does something with items at some of its places."""
        self.now_ms += 60_000
        request, context = f"r{self.now_ms}", {"device": device} if device else {}
        impression = Impression(
            time_ms=self.now_ms,
            request_id=request,
            user_id=f"u{user}",
            items=[ServedItem(item_id=f"v{n}") for n in items],
            context=context,
            features=self._build(user, device, items).block(),
            shown=True,
        )
        keys = self.catalogue.keys[items]
        self.counters.impression(impression, keys)
        self.sessions[user].fold_impression(impression, keys)
        if self.features.schema.shown_by == "impression":
            self.seen += [(user, device, n) for n in items]
        for place, kind in engaged:
            item = items[place % len(items)]
            event = Engagement(
                time_ms=self.now_ms, request_id=request, user_id=f"u{user}", item_id=f"v{item}", kind=kind
            )
            self.counters.engagement(event, self.catalogue.keys[item])
            self.sessions[user].fold_engagement(event, self.catalogue.keys[item])
            if self.features.schema.shows(kind):
                self.seen.append((user, device, item))

    def recount(self, entity: Entity, user: int, device: str | None, item: int) -> int:
        """Number of showings of an entity, from the list of all of them."""
        return sum(
            (not entity.own or who == user)
            and (entity.left != "context" or where == device)
            and (entity.left != "profile" or (bool(USERS[user]) and first(who) == first(user)))
            and shared(entity.right, item, what)
            for who, where, what in self.seen
        )

    def _build(self, user: int, device: str | None, items: list[int], is_list: bool = False):  # type: ignore[no-untyped-def]
        return self.builder.build(
            self.sessions[user], "feed", {"device": device} if device else {},
            np.array(items, np.int64), self.catalogue, self.counters.counters, self.now_ms,
            is_list=is_list, covisits=self.covisits,
        )  # fmt: skip


def first(user: int) -> tuple[str, str] | None:
    """The first field of a profile that has a value."""
    return next(((n, USERS[user][n]) for n in ("region", "age") if n in USERS[user]), None)


def shared(slot: str, item: int, other: int) -> int:
    """The number of values that two items share in a slot."""
    if not slot or slot == "item":
        return int(not slot or item == other)
    name = "duration_ms" if slot == "duration" else slot.removeprefix("item.")
    one, two = (ITEMS[n].get(name, []) for n in (item, other))
    values, others = ((v if isinstance(v, list) else [v]) for v in (one, two))
    return len(set(values) & set(others))


visits = st.lists(
    st.tuples(
        st.integers(0, len(USERS) - 1),
        st.sampled_from(DEVICES),
        st.lists(st.integers(0, len(ITEMS) - 1), min_size=1, max_size=4, unique=True),
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["click", "buy", "view"])), max_size=3),
    ),
    max_size=12,
)


def test_entities_are_one_part_or_a_pair() -> None:
    assert {"user", "profile×item", "context×tags", "user×author", "user×context"} < set(ENTITIES)
    # The viewer has one profile; two items, two contexts, or three parts make no entity.
    for name in ("user×profile", "item×author", "context×profile", "user×context×item", "all×item"):
        with pytest.raises(ValueError, match=rf"entity '{name}' isn't one, or a pair"):
            entity_of(name, SCHEMA)
    assert entity_of("user*author", SCHEMA) == Entity("user×author", True, "", "item.author")
    assert entity_of("item × context", SCHEMA) == Entity("item×context", False, "context", "item")
    with pytest.raises(ValueError, match="or a group field \\(none declared\\)"):
        entity_of("writer", replace(SCHEMA, groups=()))
    # Any other declared category is an entity too.
    assert entity_of("author", replace(SCHEMA, groups=())).right == "item.author"
    assert entity_of("device×author", SCHEMA).left == "context.device"


@pytest.mark.slow
@pytest.mark.parametrize("shown_by", ["impression", "view", "click"])
@settings(max_examples=25, deadline=None)
@given(visits)
def test_counters_of_every_entity_agree_with_a_naive_recount(
    shown_by: str, visits: list[tuple[int, str | None, list[int], list[tuple[int, str]]]]
) -> None:
    features = feature_set(shown_by, half_lives_h=(1.0, FOR_EVER_H), entities=tuple(ENTITIES))
    columns = [features.dense_names.index(f"{name}/shown.1e+09h") for name in ENTITIES]
    feed = Feed(features)
    for visit in visits:
        feed.visit(*visit)
    everything = list(range(len(ITEMS)))
    for user, device in product(range(len(USERS)), DEVICES):
        shown = np.expm1(3 * feed.dense(user, device, everything)[:, columns])
        expected = [
            [feed.recount(entity, user, device, item) for entity in features.entities] for item in everything
        ]
        np.testing.assert_allclose(shown, expected, atol=1e-3)


def test_a_count_halves_with_each_declared_half_life() -> None:
    features = feature_set(half_lives_h=(1.0, 24.0), entities=("item",))
    assert features.speeds == ("1h", "24h") and features.dense_names[:2] == (
        "item/shown.1h",
        "item/shown.24h",
    )
    feed = Feed(features)
    feed.visit(0, None, [1], [])
    for hours in (0, 1, 24):
        now_ms, feed.now_ms = feed.now_ms, feed.now_ms + hours * HOUR_MS
        shown = np.expm1(3 * feed.dense(0, None, [1])[0, :2])
        np.testing.assert_allclose(shown, [0.5**hours, 0.5 ** (hours / 24)], atol=1e-5)
        feed.now_ms = now_ms


def test_the_default_half_lives_keep_their_names() -> None:
    assert feature_set().speeds == ("fast", "slow")
    assert feature_set(half_lives_h=(6.0, 336.0, 2000.0)).speeds == ("6h", "336h", "2000h")


def test_only_declared_kinds_enter_the_history() -> None:
    feed = Feed(feature_set(history_of=("click",)))
    feed.visit(0, None, [0, 1, 2], [(0, "view"), (1, "click"), (1, "buy"), (2, "buy")])
    session = feed.sessions[0]
    assert [entry.keys[0] for entry in session.history] == [key_of("item", "v1")]
    assert session.history[0].outcomes == [1.0, 1.0]  # a later kind is an outcome of its entry
    assert set(session.seen) == {key_of("item", f"v{n}") for n in range(3)}
    everything = Feed(feature_set())
    everything.visit(0, None, [0, 1, 2], [(1, "click")])
    assert len(everything.sessions[0].history) == 3


def test_the_age_is_the_time_since_the_first_publication() -> None:
    feed = Feed(feature_set(item_age=True))
    column = feed.features.dense_names.index(AGE)
    feed.catalogue.apply(Item(time_ms=START_MS + 9, item_id="v2", fields={"author": "new"}))
    feed.catalogue.ensure("never published")
    ages = feed.dense(0, None, list(range(6)))[:, column]
    np.testing.assert_allclose(ages, [*(math.log1p(n) / 5 for n in range(5)), -1], atol=1e-6)
    assert AGE not in feature_set().dense_names


def test_a_trend_is_the_change_of_the_logarithm_of_a_count() -> None:
    features = feature_set(half_lives_h=(1.0, 24.0, 240.0), entities=("all", "item"), trend=True)
    feed = Feed(features)
    for n in range(9):
        feed.now_ms += HOUR_MS
        feed.visit(0, None, [n % 2, 2], [(0, "click")])
    names, dense = features.dense_names, feed.dense(0, None, [0, 1, 2, 3])
    for entity, (fast, slow) in product(("all", "item"), (("1h", "24h"), ("24h", "240h"))):
        counts = [3 * dense[:, names.index(f"{entity}/shown.{s}")] for s in (fast, slow)]
        change = dense[:, names.index(f"{entity}/trend.{fast}")]
        np.testing.assert_allclose(change, counts[0] - counts[1], atol=1e-6)
    assert dense[2, names.index("item/trend.1h")] < -0.5 and not dense[3, names.index("item/trend.1h")]


def test_near_the_newest_visit_are_items_visited_with_those_since_the_last_pause() -> None:
    features = feature_set(entities=("item",), history_of=("click",), near=True, visit_s=300.0)
    feed = Feed(features)
    near, in_visit = (features.dense_names.index(name) for name in (NEAR, NEAR_IN_VISIT))
    feed.covisits = Covisits(CovisitConfig())
    keys = feed.catalogue.keys[:, 0]
    feed.visit(0, None, [0], [(0, "click")])
    pair = [feed.now_ms, 1, keys[2], keys[0], *([0] * (PREVIOUS - 1))]
    feed.covisits.add(np.array([pair], np.int64))
    now = feed.dense(0, None, [0, 1, 2])
    assert now[2, in_visit] == now[2, near] > 0 and not now[1, in_visit]
    feed.now_ms += 301_000
    later = feed.dense(0, None, [0, 1, 2])
    assert later[2, near] > 0 and not later[:, in_visit].any()


values = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3.0])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(values, min_size=4, max_size=4), min_size=n, max_size=n)))  # fmt: skip
def test_a_list_is_compared_as_by_brute_force(rows: list[list[float]]) -> None:
    features = feature_set(
        half_lives_h=(1.0, 24.0), entities=("all", "item"), item_age=True, list_context=("item",)
    )
    own = ["item/click.1h", "item/buy.1h", "item/click.24h", "item/buy.24h"]
    names = features.dense_names
    assert [names[column] for column in features.compared] == [*own, AGE]
    assert names[-10:] == (
        *(f"list.above({name})" for name in (*own, AGE)),
        *(f"list.rank({name})" for name in (*own, AGE)),
    )
    dense = np.zeros((len(rows), len(names)), np.float32)
    dense[:, [names.index(name) for name in own]] = rows
    before = dense[:, :-10].copy()
    FeatureBuilder(features).compare(dense)
    assert (dense[:, :-10] == before).all()
    for n, row in enumerate(rows):
        for k, name in enumerate(own):
            column = [other[k] for other in rows]
            wins = sum(math.tanh((row[k] - x) / 0.05) for x in column)
            rank = wins / (2 * max(1, len(rows) - 1))
            assert dense[n, names.index(f"list.rank({name})")] == pytest.approx(rank, abs=1e-6)
            above = row[k] - sum(column) / len(column)
            assert dense[n, names.index(f"list.above({name})")] == pytest.approx(above, abs=1e-6)


def test_of_a_whole_list_all_columns_that_differ_are_compared_and_the_length_is_one() -> None:
    features = feature_set(
        half_lives_h=(1.0, 24.0), entities=("all", "user", "item", "user×item"), item_age=True,
        near=True, visit_s=300.0, trend=True, position=True, list_context=("user×item",),
        whole_list=True,
        derived=(Derived("both", "difference", ("item/click.1h", AGE)),),
    )  # fmt: skip
    names = features.dense_names
    compared = {names[column] for column in features.compared}
    alike = {*MOMENT, POSITION, "all/trend.1h", "user/trend.1h"}
    alike |= {name for name in names if name.startswith(("all/", "user/"))}
    assert compared == {*names[: len(names) - features.list_columns]} - alike
    assert {"item/watch.24h", "item/trend.1h", NEAR, NEAR_IN_VISIT, AGE, "both"} < compared
    impersonal = {names[column] for column in features.impersonal}
    assert {"item/watch.24h", "item/trend.1h", AGE} < impersonal
    assert impersonal == {name for name in compared if not name.startswith("user×")} - {
        NEAR,
        NEAR_IN_VISIT,
        "both",
    }
    assert names[-1] == LENGTH and [n for n in names if n.startswith("list.rank")] == [
        f"list.rank({names[column]})" for column in features.ranked
    ]
    feed = Feed(features)
    feed.visit(0, None, [0, 1, 2], [(0, "click")])
    assert not feed.dense(0, None, [0, 1, 2])[:, -features.list_columns :].any()
    listed = feed.dense(0, None, [0, 1, 2], is_list=True)
    assert listed[:, -1] == pytest.approx(np.log(3))
    for column in features.compared:
        above = listed[:, names.index(f"list.above({names[column]})")]
        assert above == pytest.approx(listed[:, column] - listed[:, column].mean(), abs=1e-6)
    assert not feed.dense(0, None, [0], is_list=True)[:, -features.list_columns :].any()


def test_only_a_list_is_compared() -> None:
    features = feature_set(entities=("item",), list_context=("item",), item_age=True)
    feed = Feed(features)
    feed.visit(0, None, [0, 1, 2], [(0, "click")])
    compared = 2 * len(features.compared)
    assert not feed.dense(0, None, [0, 1, 2])[:, -compared:].any()
    listed = feed.dense(0, None, [0, 1, 2], is_list=True)
    assert listed[:, -compared:].any()
    rank = features.dense_names.index("list.rank(item/click.fast)")
    assert listed[:, rank] == pytest.approx([0.5, -0.25, -0.25], abs=1e-3)
    # Alone, an item is compared with nothing.
    assert not feed.dense(0, None, [0], is_list=True)[:, -compared:].any()


def test_the_last_bits_of_a_rate_change_no_rank() -> None:
    features = feature_set(entities=("item",), list_context=("item",))
    dense = np.zeros((3, len(features.dense_names)), np.float32)
    dense[:, features.compared[0]] = 0.5, 0.5, 0.7
    moved = dense.copy()
    moved[0, features.compared[0]] += 1e-6
    for rows in (dense, moved):
        FeatureBuilder(features).compare(rows)
    ranks = slice(-len(features.compared), None)
    assert np.abs(dense[:, ranks] - moved[:, ranks]).max() < 1e-4


def test_a_position_is_logged_and_never_scored() -> None:
    features = feature_set(position=True, list_context=("item",), entities=("all", "item"))
    builder, column = FeatureBuilder(features), features.dense_names.index("list.position")
    catalogue = Catalogue(features)
    indices = np.array([catalogue.ensure(f"v{n}") for n in range(4)], np.int64)
    counters = ItemCounters(features).counters
    built = builder.build(
        Session("u", features), "feed", {}, indices, catalogue, counters, START_MS, is_list=True
    )
    assert not built.dense_NF[:, column].any()
    logged = builder.as_shown(built)
    positions = np.log([1, 2, 3, 4])
    assert logged.dense_NF[:, column] == pytest.approx(positions - positions.mean())
    assert not built.dense_NF[:, column].any()  # what is scored stays
    others = np.arange(len(features.dense_names)) != column
    assert np.array_equal(logged.dense_NF[:, others], built.dense_NF[:, others])
    plain = FeatureBuilder(feature_set())
    assert plain.as_shown(built) is built


@pytest.mark.parametrize(
    ("fields", "hours"),
    [
        ({"out": START_MS - 3 * HOUR_MS}, 3.0),
        ({"out": "2023-11-14T20:13:20Z"}, 2.0),
        ({"out": "2023-11-14T20:13:20"}, 2.0),
        ({"out": "1965-03-02"}, 514_606.222),
        ({"out": -152_582_400_000}, 514_606.222),  # the same day, as tables are imported
        ({"out": "yesterday"}, 1.0),
        ({"out": -1}, 1.0),
        ({"out": 1e30}, 1.0),  # no date: must not end the reader of items
        ({}, 1.0),
    ],
)
def test_the_age_is_that_of_the_declared_field(fields: dict[str, object], hours: float) -> None:
    features = feature_set(item_age=True, age_field="out")
    catalogue = Catalogue(features)
    catalogue.apply(Item(time_ms=START_MS - HOUR_MS, item_id="v", fields=fields))
    built = FeatureBuilder(features).build(
        Session("u", features), "feed", {}, np.array([0]), catalogue,
        ItemCounters(features).counters, START_MS,
    )  # fmt: skip
    column = features.dense_names.index(AGE)
    assert built.dense_NF[0, column] == pytest.approx(math.log1p(hours) / 5.0)
