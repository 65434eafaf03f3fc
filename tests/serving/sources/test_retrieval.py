from collections import deque
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from examples.plugin_package.recsys_example_plugins import SameAuthor
from recsys.arrays.bitmap import Bitmap
from recsys.config.policy_config import SOURCES, UNWANTED, PolicyConfig
from recsys.events.event_types import Engagement, Impression
from recsys.events.hashing import key_of
from recsys.events.records import ItemState
from recsys.features.covisits import Visits
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.item_counters import ItemCounters
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Request
from serving.scorers.probabilities import user_vector
from serving.sources.history import Again
from serving.sources.retrieval import BUILT_IN, Retrieval
from serving.sources.topic import Topic, liked_groups
from tests.support.serving.candidate_sources import names_by_index
from tests.support.serving.replica_harness import NOW_MS, item, made, policy, popular, session_of, viewer
from tests.support.training.small_feed import FEATURES, block

ALL = {
    "trial": 7,
    "covisit": 9,
    "vector": 10,
    "similar": 9,
    "topic": 8,
    "segment": 4,
    "popular": 6,
    "fresh": 5,
}


class Retrieved(NamedTuple):
    sources: dict[int, list[str]]
    failed: list[str]


def collect(
    replica: Replica, shares: dict[str, int], wanted: np.ndarray | None = None, limit: int = 60,
    salt: int = 1, **session: tuple[int, ...],
) -> Retrieved:  # fmt: skip
    its = viewer(replica, **session)
    none = np.zeros(0, np.int64)
    user = FeatureBuilder(replica.features).build(
        its, "feed", {}, none, replica.catalogue, replica.counters, NOW_MS
    )
    mask = np.ones(len(replica.catalogue), np.bool_) if wanted is None else wanted
    replica.config = replace(replica.config, serve=replace(replica.config.serve, candidates=limit))
    query = Query(Request("u"), its, policy(trust_after=50), NOW_MS, f"r{salt}")
    *found, failed = Retrieval(replica).collect(query, user, Bitmap.of(mask), shares)
    bits = zip(*(part.tolist() for part in found), strict=True)
    names = {index: [n for k, n in enumerate(shares) if of >> k & 1] for index, of in bits}
    return Retrieved(names, failed)


def test_the_policy_names_the_sources_that_there_are() -> None:
    assert (*ALL, "again") == SOURCES == (*BUILT_IN,) == (*PolicyConfig().sources, "again")
    assert collect(made(), {"vectr": 3}).failed == ["vectr"]  # no policy has it: it is refused before


def test_a_plug_in_is_a_source_and_a_wrong_result_of_it_counts_as_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "examples.plugin_package.recsys_example_plugins:same_author@1"
    replica, wanted = made(), np.arange(40) % 2 == 0
    found = collect(replica, {name: 4}, wanted, liked=(3, 8))
    same = [n for n in range(39, -1, -1) if n % 9 == 8 and wanted[n]]  # as v8, the one liked last
    assert found.failed == [] and [*found.sources][:2] == same[:2]
    assert found.sources[same[0]] == [name] and all(wanted[index] for index in found.sources)
    other = name.replace("@1", "@2")
    assert collect(replica, {other: 4}, liked=(3, 8)) == ({}, [other])
    for wrong in ([1, 2], np.array([1]), np.array([400]), np.array([[2]]), np.array([0.5])):
        monkeypatch.setattr(SameAuthor, "__call__", lambda *_, wrong=wrong: wrong)
        both = collect(replica, {name: 4, "fresh": 3}, wanted)
        assert both.failed == [name] and {*map(tuple, both.sources.values())} == {("fresh",)}


def test_every_source_keeps_to_its_share_and_to_what_is_wanted() -> None:
    replica = made()
    popular(replica, {n: n for n in range(40)})
    visited(replica, {"a": (3, *range(20, 40))})
    wanted = np.arange(40) % 2 == 0
    for name, share in ALL.items():
        found = collect(replica, {name: share}, wanted, liked=(3, 8))
        assert found.failed == [] and 0 < len(found.sources) <= share + 1, name
        assert all(wanted[index] for index in found.sources), name
    assert not collect(replica, ALL, np.zeros(40, np.bool_), liked=(3,)).sources


def test_candidates_name_all_their_sources_once_and_keep_to_the_limit() -> None:
    replica = made(items=12)
    popular(replica, {n: 1 + n for n in range(12)})
    found = collect(replica, dict.fromkeys(ALL, 12), liked=(3, 8))
    assert len(found.sources) == 12
    assert all(len(set(names)) == len(names) for names in found.sources.values())
    assert any(len(names) >= 4 for names in found.sources.values())
    assert len(collect(replica, dict.fromkeys(ALL, 12), limit=5, liked=(3,)).sources) == 5


def test_vector_finds_the_items_nearest_to_the_user_side() -> None:
    replica = made()
    its = viewer(replica, liked=(3, 8))
    none = np.zeros(0, np.int64)
    user = FeatureBuilder(replica.features).build(
        its, "feed", {}, none, replica.catalogue, replica.counters, NOW_MS
    )
    query = user_vector(replica.model, replica.rows, user)
    assert query.shape == (replica.index.dim,) and query.any()
    nearest = np.argsort(-(replica.index.vectors @ query))[:10]
    assert set(collect(replica, {"vector": 10}, liked=(3, 8)).sources) == set(nearest.tolist())


def test_similar_looks_around_what_was_liked_last() -> None:
    replica = made()
    found = collect(replica, {"similar": 8}, liked=(3, 8))
    vectors = replica.index.vectors[:, :-1]  # without the bias
    for n in (3, 8):
        near = np.argsort(-(vectors @ vectors[n]))[:4]
        assert set(near.tolist()) <= set(found.sources)
    assert not collect(replica, {"similar": 8}, seen=(3, 8)).sources


def test_topic_takes_from_the_groups_that_are_liked_half_of_them_the_popular_ones() -> None:
    replica = made(items=100)
    popular(replica, {5: 9, 15: 8, 25: 7})  # of tag t0
    found = collect(replica, {"topic": 8}, liked=(0, 10))
    groups = {n for n in range(100) if n % 5 == 0} | {n for n in range(100) if n % 9 in (0, 1)}
    assert set(found.sources) <= groups and {5, 15} <= set(found.sources)
    other = collect(replica, {"topic": 8}, salt=2, liked=(0, 10))
    assert set(other.sources) != set(found.sources)
    assert not collect(replica, {"topic": 8}, seen=(0, 10)).sources


def test_what_is_liked_weighs_by_its_outcomes_and_how_new_it_is() -> None:
    replica = made()
    session = viewer(replica, seen=(2,), liked=(3, 8))
    order = [key for key, _ in liked_groups(session, policy().config.unwanted)]
    keys = replica.catalogue.keys
    author, tags = (replica.features.slot(f"item.{name}").start for name in ("author", "tags"))
    assert order[0] == keys[8, tags] == keys[3, tags]  # liked twice
    assert order[1:] == [keys[8, author], keys[3, author]]  # and t2, passed by, isn't there


def test_a_group_that_is_passed_by_otherwise_weighs_less_than_one_that_is_always_liked() -> None:
    replica = made(items=100)  # item n has tag n % 5
    session = session_of(replica, ((1, True), (5, False), (0, True)))
    order = [key for key, _ in liked_groups(session, policy().config.unwanted)]
    tags = replica.catalogue.keys[:, replica.features.slot("item.tags").start]
    assert order.index(tags[1]) < order.index(tags[0])  # one of one, and one of two


def test_a_label_that_lowers_items_is_no_liking_of_their_groups() -> None:
    replica = made()
    session = viewer(replica, seen=(2,))
    session.history[0].outcomes[1] = 1.0  # the second label

    def liked(**weights: float) -> list[tuple[int, float]]:
        return liked_groups(session, policy(weights=weights).config.unwanted)

    assert len(liked(like=1.0)) == 2 and liked(like=0.0) == liked(like=1.0)
    assert liked(like=-3.0) == [] and liked_groups(session, UNWANTED) == liked(like=1.0)
    assert liked_groups(session, ("like",)) == [], "whatever it weighs"
    by = policy(weights={"like": -3.0}, sources={"topic": 8})
    for its, found in ((by, {"any"}), (policy(sources={"topic": 8}), {"topic", "any"})):
        query = Query(Request("u"), session, its, NOW_MS, "r1")
        of = names_by_index(Pipeline(replica).candidates(query))
        assert {source for names in of.values() for source in names} == found


def test_popular_and_fresh_come_in_their_orders() -> None:
    replica = made()
    popular(replica, {7: 3, 9: 8, 2: 5})
    assert list(collect(replica, {"popular": 2}).sources) == [9, 2]
    draws = {tuple(sorted(collect(replica, {"fresh": 3}, salt=s).sources)) for s in range(5)}
    assert len(draws) > 1
    assert set(collect(replica, {"fresh": 99}).sources) == set(range(40))


def test_covisit_finds_items_of_the_same_viewers_those_of_liked_and_newer_entries_first() -> None:
    replica = made()
    visited(replica, {"a": (3, 11), "b": (8, 12), "c": (5, 13)})
    found = collect(replica, {"covisit": 3}, seen=(5,), liked=(3, 8))
    assert list(found.sources) == [12, 11, 13]
    assert list(collect(replica, {"covisit": 1}, np.arange(40) != 12, liked=(3, 8)).sources) == [11]
    assert not collect(replica, {"covisit": 9}).sources


def test_again_returns_the_viewer_s_own_items_those_of_most_engagements_and_newer_ones_first() -> None:
    replica = made()
    assert list(collect(replica, {"again": 9}, liked=(3, 8, 5)).sources) == [5, 8, 3]
    assert list(collect(replica, {"again": 9}, liked=(3, 8, 3, 5)).sources) == [3, 5, 8]
    assert list(collect(replica, {"again": 1}, np.arange(40) != 5, liked=(3, 8, 5)).sources) == [8]
    assert not collect(replica, {"again": 9}).sources


def test_again_knows_items_that_the_history_no_longer_has_and_none_for_a_plain_list() -> None:
    replica = made(items=100)
    length = replica.features.history
    session = session_of(replica, ((n, n == 2) for n in range(2, 3 + length)))
    query = Query(Request("u"), session, policy(), NOW_MS, "r1")
    allowed = Bitmap.of(np.ones(100, np.bool_))

    def own(query: Query) -> list[int]:
        viewer = Pipeline(replica).features.of(query)
        return Again()(replica, query, viewer, allowed, 9).tolist()

    assert own(query) == [2, *range(2 + length, 2, -1)]
    assert own(replace(query, session=session.without_profile())) == []


def test_places_of_items_found_twice_are_filled_up_to_the_sum_of_the_shares() -> None:
    replica = made()
    popular(replica, {n: 40 - n for n in range(10)})
    visited(replica, {"a": (30, 0, 1, 2), "b": (30, 0, 1), "c": (30, 0)})
    found = collect(replica, {"covisit": 2, "popular": 2}, liked=(30,)).sources
    assert found == {0: ["covisit", "popular"], 1: ["covisit", "popular"], 2: ["covisit"], 3: ["popular"]}
    assert len(collect(replica, {"covisit": 2, "popular": 2}, limit=3, liked=(30,)).sources) == 3


def visited(replica: Replica, items_by_user: dict[str, tuple[int, ...]]) -> None:
    """Visits of items, by user, in order."""
    visits = Visits(replica.config.covisits)
    for user, items in items_by_user.items():
        for n in items:
            visits.add(user, int(replica.catalogue.keys[n, 0]), NOW_MS)
    state = ItemState(offsets=[1], keys=b"", values=b"", last_ms=b"", visits=visits.take().tobytes())
    replica.apply_item_state(state, 1)


def test_a_segment_has_its_favourites_among_the_popular_until_the_viewer_is_known() -> None:
    replica = made()
    fold = ItemCounters(replica.features)
    own = key_of("user.country", "de")
    for n, who in ((7, 0), (7, 0), (9, 0), (9, own), (2, 0)):
        fold.impression(shown_to(f"r{n}{who}", who), np.empty((0, replica.features.item_columns)))
        for kind in ("view", "long_view"):
            event = Engagement(
                time_ms=NOW_MS, request_id=f"r{n}{who}", user_id="x", item_id=f"v{n}", kind=kind
            )
            fold.engagement(event, replica.catalogue.keys[n])
    columns = (column.tobytes() for column in fold.counters.export())
    state = dict(zip(("keys", "values", "last_ms"), columns, strict=True))
    replica.apply_item_state(ItemState(offsets=[1], **state), 1)
    its = viewer(replica)
    user = FeatureBuilder(replica.features).build(
        its, "feed", {}, np.zeros(0, np.int64), replica.catalogue, replica.counters, NOW_MS
    )
    user.user_U[replica.features.slot("profile").start] = own
    every = Bitmap.of(np.ones(40, np.bool_))
    query = Query(Request("u"), its, policy(), NOW_MS)
    found, _, _ = Retrieval(replica).collect(query, user, every, {"segment": 1})
    assert found.tolist() == [9]  # liked by one of theirs; by all, 7 is liked more
    known = viewer(replica, liked=tuple(range(25)))
    known.history = deque(known.history, maxlen=30)
    known.history.extend([known.history[-1]] * 20)
    query = replace(query, session=known)
    assert not len(Retrieval(replica).collect(query, user, every, {"segment": 9})[0])


def shown_to(request_id: str, segment: int) -> Impression:
    user_U = np.zeros(FEATURES.user_columns, np.int64)
    user_U[FEATURES.slot("profile").start] = segment
    its = msgspec.structs.replace(block(1), user_keys=user_U.tobytes())
    return Impression(
        time_ms=NOW_MS, request_id=request_id, user_id="x", items=[], surface="feed", features=its
    )


def test_on_trial_are_new_items_that_were_shown_too_seldom() -> None:
    replica = made()
    popular(replica, {3: 2, 5: 1})
    replica.popularity._shown[:] = 50.0
    replica.popularity._shown[[3, 5, 8]] = 49.0, 0.0, 12.0
    assert set(collect(replica, {"trial": 9}).sources) == {3, 5, 8}
    wanted = np.arange(40) != 5
    assert set(collect(replica, {"trial": 9}, wanted).sources) == {3, 8}
    draws = {tuple(collect(replica, {"trial": 1}, salt=salt).sources) for salt in range(20)}
    assert draws == {(3,), (5,), (8,)}


def test_sources_without_a_share_or_a_name_are_left_out() -> None:
    assert not collect(made(), {"vector": 0, "similar": -1, "oracle": 9}).sources


def test_a_source_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = made()

    def broken(*_: object) -> None:
        raise RuntimeError("the index is broken")

    monkeypatch.setattr(replica.index, "search", broken)
    found = collect(replica, {"vector": 5, "fresh": 5}, liked=(3,))
    assert found.failed == ["vector"] and len(found.sources) == 5


def test_an_empty_catalogue_has_no_candidates() -> None:
    found = collect(made(items=0, steps=0), ALL)
    assert found == Retrieved({}, [])
    replica = made(items=0, steps=0)
    replica.apply_item(item(0), 1)
    assert set(collect(replica, ALL).sources) == {0}


def test_of_a_large_group_the_popular_ones_come_and_others_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.sources.topic._POOL", 12)
    replica = made(items=300)
    popular(replica, {5: 9, 15: 8, 295: 7, 4: 99})  # 4 is of another tag
    group = set(
        replica.groups.members(int(replica.catalogue.keys[0, replica.features.slot("item.tags").start]))
    )
    assert len(group) == 60
    wanted, draws = np.ones(300, np.bool_), set[int]()
    wanted[15] = False
    for salt in range(30):
        found = set(collect(replica, {"topic": 12}, wanted, salt=salt, liked=(0,)).sources)
        authors = {n for n in range(300) if n % 9 == 0}
        assert {5, 295} <= found <= group | authors and 15 not in found
        draws |= found & group
    assert len(draws) > 40


def test_a_popular_item_is_found_in_the_groups_that_it_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.sources.topic._POOL", 12)
    replica = made(items=300)
    popular(replica, {5: 9, 4: 99})  # 4 is of another tag
    source = Topic()
    column = replica.features.slot("item.tags").start
    tag = int(replica.catalogue.keys[5, column])
    draws = np.zeros(12)
    assert 4 not in source.members(replica, tag, draws) and 5 in source.members(replica, tag, draws)
    replica.apply_item(msgspec.structs.replace(item(4), fields=item(5).fields), 301)
    assert 4 in source.members(replica, tag, draws)
