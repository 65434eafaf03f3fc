from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events.event_types import Item, User
from recsys.events.field_keys import PROFILE_WIDTH
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema
from recsys.events.hashing import key_of
from recsys.features.catalogue import Catalogue
from recsys.features.counters import HALF_LIVES_MS
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.item_counters import ItemCounters
from recsys.features.request_features import RequestFeatures, read_block
from recsys.features.session import Session
from tests.support.serving.request_batches import batch_of
from tests.support.serving.session_events import NOW_MS, did, shown
from tests.support.training.small_feed import FEATURES, SCHEMA

KINDS = ("ids", "ids+history", "all")
RICH = Schema(
    item=(("author", CATEGORICAL), ("price", NUMERIC), ("tags", CATEGORICAL)),
    groups=("author", "tags"),
    vectors=(("embedding", 3),),
)


class Feed:
    """A catalogue, a session and counters with a past."""

    def __init__(self, features: FeatureSet = FEATURES, items: int = 30) -> None:
        self.features = features
        self.catalogue = Catalogue(features)
        self.counters = ItemCounters(features)
        self.session = Session("u", features)
        self.builder = FeatureBuilder(features)
        for n in range(items):
            fields = {"author": f"a{n % 5}", "tags": [f"t{n % 7}", f"t{n % 3}"], "price": n,
                      "duration_ms": 3_000 + 900 * n, "embedding": [n, 1, 2]}  # fmt: skip
            self.catalogue.apply(Item(time_ms=0, item_id=f"v{n}", fields=fields))

    def live(self, requests: int, start: int = 0) -> "Feed":
        """Shows three items a request; of some the viewer does something."""
        for n in range(start, start + requests):
            chosen = np.array([n % 30, (3 * n + 1) % 30, (7 * n + 2) % 30])
            at_ms = NOW_MS + 60_000 * n
            impression = shown(f"r{n}", *chosen, at_ms=at_ms)
            keys = self.catalogue.keys[chosen]
            self.session.fold_impression(impression, keys)
            self.counters.impression(impression, keys)
            for kind in ("long_view", "like", "view")[n % 3 :]:
                event = did(f"r{n}", int(chosen[n % 3]), kind, at_ms + 5_000, watch_ms=9_000)
                self.session.fold_engagement(event, keys[n % 3])
                self.counters.engagement(event, keys[n % 3])
        return self

    def build(self, candidates: Any, now_ms: int = NOW_MS + 3_600_000) -> RequestFeatures:
        return self.builder.build(
            self.session, "feed", {}, np.asarray(candidates, np.int64), self.catalogue,
            self.counters.counters, now_ms,
        )  # fmt: skip


def bytes_of(built: RequestFeatures) -> list[bytes]:
    names = ("user_U", "items_NI", "history_TH", "outcomes_TO", "dense_NF")
    return [getattr(built, name).tobytes() for name in names]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schema", [SCHEMA, RICH, replace(SCHEMA, groups=())])
def test_every_array_has_the_width_that_is_announced(kind: str, schema: Schema) -> None:
    features = FeatureSet(schema, kind, history=4)
    for candidates in ([], [3], [1, 2, 3]):
        built = Feed(features).live(5).build(candidates)
        assert built.user_U.shape == (features.user_columns,)
        assert built.items_NI.shape == (len(candidates), features.item_columns)
        assert built.history_TH.shape == (features.history_length, features.history_keys)
        assert built.outcomes_TO.shape == (features.history_length, features.outcomes)
        width = FeatureBuilder(features).dense_width
        assert built.dense_NF.shape == (len(candidates), width) and (width > 0) == (kind == "all")


def test_of_a_long_profile_the_first_values_are_features() -> None:
    schema = replace(SCHEMA, user=(("age", CATEGORICAL), ("likes", CATEGORICAL)))
    fields = {"age": "9", "likes": [f"t{n}" for n in range(60)]}
    first, other = Feed(FeatureSet(schema)), Feed(FeatureSet(schema))
    first.session.fold_user(User(time_ms=1, user_id="u", fields=fields))
    other.session.profile = other.features.profile_keys(fields)
    assert first.session.profile[:PROFILE_WIDTH] == other.session.profile
    assert first.build([1, 2]).user_U.tolist() == other.build([1, 2]).user_U.tolist()
    likes = [key_of("user.likes", f"t{n}") for n in range(PROFILE_WIDTH)]
    assert first.session.profile == [key_of("user.age", "9"), *likes]


def test_one_candidate_has_the_same_features_alone_and_among_300() -> None:
    feed = Feed().live(40)
    rng = np.random.default_rng(0)
    many = rng.integers(0, 30, 300)
    whole = feed.build(many)
    for place in (0, 1, 7, 150, 299):
        alone, row = feed.build(many[[place]]), whole.rows([place])
        assert alone.dense_NF.tobytes() == row.dense_NF.tobytes()
        assert alone.items_NI.tobytes() == row.items_NI.tobytes()
    assert len({row.tobytes() for row in whole.dense_NF}) > 20  # and they differ between items


def test_features_know_nothing_of_what_came_after() -> None:
    """An impression's features are those of its moment: what is folded later doesn't reach them."""
    feed = Feed().live(10)
    built = feed.build([1, 2, 3], NOW_MS + 600_000)
    before = bytes_of(built)
    feed.live(10, start=10)
    feed.catalogue.apply(Item(time_ms=0, item_id="v1", fields={"author": "new"}))
    assert bytes_of(built) == before
    assert bytes_of(feed.build([1, 2, 3], NOW_MS + 600_000)) != before


@pytest.mark.parametrize("kind", KINDS)
def test_features_at_training_are_those_at_serving(kind: str) -> None:
    features = FeatureSet(SCHEMA, kind, history=4)
    built = Feed(features).live(20).build([4, 9, 2])
    served, read = (batch_of(features, [r]) for r in (built, read_block(built.block(), features)))
    assert served.sparse.keys() == read.sparse.keys()
    assert served.sparse.values().equal(read.sparse.values())
    assert served.sparse.lengths().equal(read.sparse.lengths())
    for name in ("user_B", "item_B", "item_groups_BG", "history_BTH", "outcomes_BTO", "dense_BF"):
        assert getattr(served, name).tobytes() == getattr(read, name).tobytes(), name


def test_a_session_that_went_through_its_store_gives_the_same_features() -> None:
    feed = Feed().live(20)
    before = feed.build([1, 2, 3])
    feed.session = Session.unpack(feed.session.pack(), FEATURES)
    assert feed.build([1, 2, 3]).block() == before.block()


numbers = st.sampled_from([0.0, 1e-30, 1.0, 1e4, 1e12, 1e30])


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(numbers, min_size=12, max_size=12),
    last_ms=st.integers(0, 2 * NOW_MS),
    gap_ms=st.integers(-(10**13), 10**13),
)
def test_no_counter_however_extreme_gives_a_feature_that_is_no_number(
    values: list[float], last_ms: int, gap_ms: int
) -> None:
    feed = Feed(items=3)
    columns = feed.counters.counters.columns
    keys = [int(k) for k in np.unique(feed.catalogue.keys) if k]
    keys += [key_of("entity", "global"), key_of("entity", "user"), FEATURES.context_keys("feed", {})[0]]
    rows = np.resize(np.array(values, np.float32), (len(keys), columns))
    for counters in (feed.counters.counters, feed.session.counters):
        counters.set(np.array(keys), rows, np.full(len(keys), last_ms))
    feed.session.last_ms, feed.session.events = last_ms, 2**40
    dense = feed.build([0, 1, 2], max(0, last_ms + gap_ms)).dense_NF
    assert np.isfinite(dense).all() and np.abs(dense).max() < 100


def test_a_liked_author_raises_the_features_of_that_authors_items() -> None:
    feed = Feed()
    keys = feed.catalogue.keys
    for n in range(5):
        feed.session.fold_engagement(did(f"r{n}", 0, "view", watch_ms=9_000), keys[0])
        feed.session.fold_engagement(did(f"r{n}", 0, "long_view"), keys[0])
    dense = feed.build([5, 8]).dense_NF[:, :-4]  # v5 has the author of v0, v8 nothing of it
    # Shown and long views, fast and slow, and watch time are more; likes, which didn't come, are less.
    assert (dense[0] > dense[1]).sum() == 5 and (dense[0, :-1] < dense[1, :-1]).sum() == 2


def test_numbers_stand_before_the_moment() -> None:
    features = FeatureSet(RICH)
    feed = Feed(features)
    dense = feed.build([3, 5]).dense_NF
    assert (dense[:, -8:-4] == feed.catalogue.numbers[[3, 5]]).all()


def test_the_moment_is_the_time_of_day_and_the_gap() -> None:
    feed, midnight = Feed(), 86_400_000 * 20_000
    feed.session.last_ms = midnight - 60_000
    moment = feed.build([0], midnight).dense_NF[0, -4:]
    np.testing.assert_allclose(moment, [0, 1, np.log(61) / 10, 0], atol=1e-6)
    noon = feed.build([0], midnight + 12 * 3_600_000)
    assert noon.dense_NF[0, -3] == pytest.approx(-1)
    hour = FEATURES.user_slots[-1].start
    assert noon.user_U[hour] == key_of("hour", 12)


def test_old_counts_fade_from_the_features() -> None:
    feed = Feed().live(20)
    columns = slice(0, -4)
    fresh = Feed().build([1])
    later = feed.build([1], NOW_MS + 60 * int(HALF_LIVES_MS[1]))
    np.testing.assert_allclose(later.dense_NF[:, columns], fresh.dense_NF[:, columns], atol=1e-3)
