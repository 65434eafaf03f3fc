from dataclasses import replace

import msgspec
import numpy as np
import pytest

from recsys.config.safety_config import BoundsConfig
from recsys.events.event_types import SEEN, Engagement, Event, Impression, Item, Verdict
from recsys.events.hashing import Id, cross, key_of
from recsys.features import influence, item_counters
from recsys.features.catalogue import Catalogue
from recsys.features.columns import GLOBAL
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.influence import Influence, ReadLists
from recsys.features.item_counters import ItemCounters, segment_of
from recsys.features.request_features import read_block
from recsys.features.session import Session
from tests.support.serving.session_events import ALL_SHOWN, NOW_MS, did, keys_of, shown
from tests.support.training.small_feed import FEATURES, block

FEED = FEATURES.context_keys("feed", {})[0]
V1 = key_of("item", "v1")


def by_id(item_id: Id) -> Keys:
    return keys_of(int(str(item_id)[1:]))


def count(its: ItemCounters, key: int, kind: str) -> float:
    row = its.counters.read(np.array([key]), NOW_MS).reshape(2, -1)
    return float(row[0, its.features.kinds.index(kind)])


def fold(features: FeatureSet = FEATURES) -> ItemCounters:
    its = ItemCounters(features)
    keys_NI = np.array([keys_of(1, features), keys_of(2, features)])
    its.impression(on_screen("r1", 1, 2), keys_NI)
    return its


def on_screen(request_id: str, *items: int) -> Impression:
    return msgspec.structs.replace(shown(request_id, *items), shown=True)


def test_an_engagement_counts_for_the_item_its_groups_and_the_context() -> None:
    its = fold()
    its.engagement(did("r1", 1, "like"), keys_of(1))
    crossed = cross(FEED, np.array([V1, key_of("duration", 6)])).tolist()
    entities = (GLOBAL, V1, key_of("item.author", "a1"), key_of("item.tags", "t1"), FEED, *crossed)
    assert [count(its, key, "like") for key in entities] == [1.0] * len(entities)
    assert count(its, key_of("item", "v2"), "like") == 0.0


def test_without_its_request_it_counts_for_the_item_alone() -> None:
    its = fold()
    its.engagement(did("r9", 1, "like"), keys_of(1))
    assert count(its, V1, "like") == 1.0 and count(its, FEED, "like") == 0.0


def test_a_view_shows_what_the_client_saw_and_an_impression_what_was_all_shown() -> None:
    its = fold()
    assert count(its, V1, "shown") == 0.0
    its.engagement(did("r1", 1, "view", watch_ms=1_000), keys_of(1))
    assert (count(its, V1, "shown"), count(its, FEED, "shown")) == (1.0, 1.0)
    its = fold(ALL_SHOWN)
    assert (count(its, V1, "shown"), count(its, GLOBAL, "shown")) == (1.0, 2.0)
    its.engagement(did("r1", 1, "view", watch_ms=1_000), keys_of(1, ALL_SHOWN))
    assert count(its, V1, "shown") == 1.0
    assert count(its, V1, "watch") == pytest.approx(np.log(2))


def test_a_list_that_was_only_read_counts_for_nothing_until_it_is_confirmed() -> None:
    keys_NI = np.array([keys_of(n, ALL_SHOWN) for n in (1, 2)])
    for kind in (SEEN, "like"):
        its = ItemCounters(ALL_SHOWN)
        its.impression(shown("r1", 1, 2), keys_NI)
        assert len(its.counters) == 0 and its.take_changed() == []
        again = ItemCounters(ALL_SHOWN)
        again.lists.restore(its.lists.pack())
        for fold_ in (its, again):
            for _ in range(2):  # the second time it is confirmed already
                fold_.engagement(did("r1", 1, kind), keys_NI[0])
            assert count(fold_, V1, "shown") == count(fold_, key_of("item", "v2"), "shown") == 1.0
            assert count(fold_, V1, "like") == (2.0 if kind == "like" else 0.0)
            fold_.verdict(verdict(True), [shown("r1", 1, 2)], by_id)
            assert count(fold_, V1, "shown") == 0.0


def test_what_is_read_without_an_engagement_is_bounded_by_account() -> None:
    bounds = BoundsConfig(burst=3, daily=1)
    its, v2 = ItemCounters(ALL_SHOWN, bounds), key_of("item", "v2")
    keys_NI = np.array([keys_of(n, ALL_SHOWN) for n in (1, 2)])
    for n in range(5):
        its.impression(shown(f"r{n}", 1, 2), keys_NI)
        its.engagement(did(f"r{n}", 1, SEEN, source=7), keys_NI[0])
    assert (count(its, V1, "shown"), count(its, v2, "shown")) == (2.0, 1.0)
    its.impression(shown("r9", 1, 2), keys_NI)
    its.engagement(did("r9", 2, "like", source=7), keys_NI[1])  # it was engaged with: it was shown
    assert (count(its, V1, "shown"), count(its, v2, "shown")) == (2.0, 2.0)
    lists = [shown(f"r{n}", 1, 2) for n in range(5)]
    its.verdict(verdict(True), lists, by_id)  # no more than what counted
    assert (count(its, V1, "shown"), count(its, v2, "shown")) == (0.0, 1.0)


def test_a_list_is_confirmed_by_its_reader_with_one_of_its_items_and_goes_as_it_came() -> None:
    keys_NI = np.array([keys_of(n, ALL_SHOWN) for n in (1, 2)])
    its = ItemCounters(ALL_SHOWN)
    its.impression(shown("r1", 1, 2), keys_NI)
    its.engagement(did("r1", 3, SEEN), keys_of(3, ALL_SHOWN))
    its.engagement(msgspec.structs.replace(did("r1", 1, SEEN), user_id="other"), keys_NI[0])
    assert len(its.counters) == 0
    later = msgspec.structs.replace(did("r1", 1, SEEN), time_ms=NOW_MS + 50 * 3_600_000)
    its.engagement(later, keys_NI[0])
    its.verdict(verdict(True), [shown("r1", 1, 2)], by_id)  # at the time of the confirmation
    assert not its.counters.export()[1].any()


def test_an_engagement_that_the_bounds_leave_out_confirms_no_list() -> None:
    its = ItemCounters(ALL_SHOWN, BoundsConfig(burst=1, daily=1))
    for n in (1, 2):
        its.impression(shown(f"r{n}", n), keys_of(n, ALL_SHOWN)[None])
        its.engagement(did(f"r{n}", n, "like", source=7), keys_of(n, ALL_SHOWN))
    assert (count(its, V1, "shown"), count(its, key_of("item", "v2"), "shown")) == (1.0, 0.0)


def test_an_item_that_the_bounds_left_out_is_shown_once_it_is_engaged_with() -> None:
    its, v2 = ItemCounters(ALL_SHOWN, BoundsConfig(burst=1, daily=1)), key_of("item", "v2")
    keys_NI = np.array([keys_of(n, ALL_SHOWN) for n in (1, 2)])
    its.impression(shown("r1", 1, 2), keys_NI)
    its.engagement(did("r1", 1, SEEN, source=7), keys_NI[0])
    assert (count(its, V1, "shown"), count(its, v2, "shown")) == (1.0, 0.0)
    for _ in range(2):
        its.engagement(did("r1", 2, "like", source=7), keys_NI[1])
        assert [count(its, v2, kind) for kind in ("shown", "like")] == [1.0, 1.0]
    its.verdict(verdict(True), [shown("r1", 1, 2)], by_id)
    assert (count(its, V1, "shown"), count(its, v2, "shown")) == (0.0, 0.0)


def test_one_readers_lists_push_out_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influence, "UNREAD", 3)
    keys_NI = np.array([keys_of(n, ALL_SHOWN) for n in (1, 2)])
    lists = ReadLists(6 * keys_NI.nbytes)
    bounds = Influence()
    other = msgspec.structs.replace(shown("other", 1, 2), user_id="other")
    lists.add(other, keys_NI)
    for n in range(9):
        lists.add(shown(f"r{n}", 1, 2), keys_NI)
    again = ReadLists(6 * keys_NI.nbytes)
    again.restore(lists.pack())
    for each in (lists, again):
        confirmed = [n for n in range(9) if each.confirm(shown(f"r{n}", 1, 2), bounds) is not None]
        assert confirmed == [6, 7, 8] and each.confirm(other, bounds) is not None
    assert (lists.evicted, again.evicted) == (6, 0)
    for n in range(9, 12):  # the confirmed ones take room, but none of the unread
        lists.add(shown(f"r{n}", 1, 2), keys_NI)
    assert lists.evicted == 7 and lists.withdraw("other") is None
    assert all(lists.confirm(shown(f"r{n}", 1, 2), bounds) is not None for n in (9, 10, 11))


def test_what_a_viewer_does_without_profiling_makes_no_visit() -> None:
    counters = fold()
    for request, visits in (("plain-1", 0), ("r1", 1)):
        counters.engagement(did(request, 1, counters.features.main_labels[0]), keys_of(1))
        assert len(counters.visits.users) == len(counters.visits.take()) == visits


def test_what_is_not_counted_changes_nothing() -> None:
    its = fold()
    its.engagement(did("r1", 1, "skip"), keys_of(1))
    assert its.take_changed() == [] and len(its.counters) == 0


def test_a_viewer_with_a_profile_counts_for_their_segment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_counters, "REQUESTS", 2)
    its = ItemCounters(FEATURES)
    served = msgspec.structs.replace(shown("r1", 1), features=block(1))
    its.impression(served, keys_of(1)[None])
    its.engagement(did("r1", 1, "like"), keys_of(1))
    user_U = read_block(block(1), FEATURES).user_U
    segment = segment_of(FEATURES, user_U)
    assert segment == user_U[FEATURES.slot("profile").start] != 0
    crossed = int(cross(segment, np.array([V1]))[0])
    assert count(its, crossed, "like") == 1.0 == count(its, V1, "like")
    other = ItemCounters(FEATURES)
    other.context_by_request.update(its.context_by_request)
    other.segment_by_request.update(its.segment_by_request)
    other.engagement(did("r1", 1, "like"), keys_of(1))
    assert count(other, crossed, "like") == 1.0
    for n in (2, 3):  # forgotten with its request
        its.impression(shown(f"r{n}", 1), keys_of(1)[None])
    assert not its.segment_by_request
    user_U = user_U.copy()
    user_U[FEATURES.slot("profile").start] = 0
    assert segment_of(FEATURES, user_U) == user_U[FEATURES.slot("context").start]


def test_changes_are_told_once() -> None:
    its = fold()
    its.engagement(did("r1", 1, "like"), keys_of(1))
    changed = its.take_changed()
    assert V1 in changed and changed == sorted(set(changed)) and its.take_changed() == []


def test_the_oldest_requests_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_counters, "REQUESTS", 2)
    its = ItemCounters(FEATURES)
    for n in range(3):
        its.impression(shown(f"r{n}", 1), keys_of(1)[None])
    assert list(its.context_by_request) == ["r1", "r2"]
    other = ItemCounters(FEATURES)
    other.context_by_request.update(its.context_by_request)
    other.engagement(did("r2", 1, "like"), keys_of(1))
    assert count(other, FEED, "like") == 1.0


def test_an_item_whose_duration_changes_has_its_new_cross() -> None:
    its = fold()
    longer = FEATURES.item_keys("v1", {"duration_ms": 60_000})
    its.engagement(did("r1", 1, "like"), keys_of(1))
    its.engagement(did("r1", 1, "like"), longer)
    place = FEATURES.slot("duration").start
    for keys in (keys_of(1), longer):
        assert count(its, int(cross(FEED, keys[place : place + 1])[0]), "like") == 1.0
    assert count(its, V1, "like") == 2.0


def test_kinds_of_other_labels_are_not_counted() -> None:
    features = FeatureSet(replace(FEATURES.schema, labels=("long_view",)), "all", history=4)
    its = fold(features)
    its.engagement(did("r1", 1, "like"), keys_of(1, features))
    assert len(its.counters) == 0


def verdict(quarantined: bool, user: str = "u") -> Verdict:
    return Verdict(time_ms=NOW_MS, user_id=user, quarantined=quarantined)


def test_a_quarantine_takes_back_what_a_user_counted() -> None:
    its, honest = fold(), fold()
    past: list[Event] = [shown("r1", 1, 2)]
    for n, kind in enumerate(("view", "like", "like", "follow", "hide")):
        past.append(did("r1", 1, kind, NOW_MS + n * 3_600_000, source=5, watch_ms=2_000))
    past.append(did("r1", 2, "like", NOW_MS + 9_000))  # without a source: it isn't bounded
    other = replace_user(did("r1", 1, "like", NOW_MS + 1_000, source=6))
    for event in past[1:]:
        assert isinstance(event, Engagement)
        its.engagement(event, by_id(event.item_id))
    for each in (its, honest):
        each.engagement(other, keys_of(1))
    its.verdict(verdict(True), past, by_id)
    now_ms, keys = NOW_MS + 50_000_000, its.counters.export()[0]
    left, expected = its.counters.read(keys, now_ms), honest.counters.read(keys, now_ms)
    np.testing.assert_allclose(left, expected, atol=1e-6)
    assert expected.sum() > 0

    before = its.counters.read(keys, now_ms).tolist()
    its.engagement(did("r1", 2, "long_view", NOW_MS + 10_000, source=5), keys_of(2))
    its.verdict(verdict(True), past, by_id)  # again: nothing more to take back
    assert its.counters.read(keys, now_ms).tolist() == before
    its.verdict(verdict(False), past, by_id)
    its.engagement(did("r9", 3, "like", NOW_MS, source=5), keys_of(3))
    assert count(its, key_of("item", "v3"), "like") == pytest.approx(1.0)


def test_kinds_under_own_names_count_once_and_are_taken_back() -> None:
    schema = replace(FEATURES.schema, labels=("buy",), kinds=("buy", "view"))
    features = FeatureSet(schema, "all", history=4)
    its, buys = fold(features), [did("r1", 1, "buy", NOW_MS + n, source=5) for n in range(3)]
    for buy in buys:
        its.engagement(buy, keys_of(1, features))
    assert count(its, V1, "buy") == pytest.approx(1.0)
    its.verdict(verdict(True), buys, lambda item: keys_of(1, features))
    assert count(its, V1, "buy") == pytest.approx(0.0, abs=1e-6)


def test_what_came_during_an_earlier_quarantine_is_not_taken_back() -> None:
    its = fold()
    its.verdict(verdict(True), [], by_id)
    ignored = did("r1", 1, "like")
    its.engagement(ignored, keys_of(1))
    its.verdict(verdict(False), [], by_id)
    its.verdict(verdict(True), [verdict(True), ignored, verdict(False)], by_id)
    assert count(its, V1, "like") == 0.0


def test_a_quarantine_takes_back_impressions_where_they_show() -> None:
    its, list_ = fold(ALL_SHOWN), shown("r1", 1, 2)
    its.verdict(verdict(True), [list_], lambda item: keys_of(int(str(item)[1:]), ALL_SHOWN))
    assert count(its, V1, "shown") == 0.0
    its.impression(shown("r2", 1), np.array([keys_of(1, ALL_SHOWN)]))
    assert count(its, V1, "shown") == 0.0


def test_taking_back_leaves_no_negative_counts_where_an_item_has_changed() -> None:
    its, tagged = fold(ALL_SHOWN), keys_of(1, ALL_SHOWN).copy()
    tagged[ALL_SHOWN.slot("item.tags").start] = other = key_of("item.tags", "another")
    lists = [on_screen(f"q{n}", 1) for n in range(5)]
    for each in lists:
        its.impression(each, np.array([keys_of(1, ALL_SHOWN)]))
    its.verdict(verdict(True), lists, lambda item: tagged)
    assert (count(its, V1, "shown"), count(its, other, "shown")) == (1.0, 0.0)
    catalogue = Catalogue(ALL_SHOWN)
    catalogue.apply(Item(time_ms=1, item_id="v9", fields={"tags": ["another"]}))
    viewer, builder = Session("u9", ALL_SHOWN), FeatureBuilder(ALL_SHOWN)
    built = builder.build(viewer, "feed", {}, np.array([0]), catalogue, its.counters, NOW_MS)
    assert np.isfinite(built.dense_NF).all()


def replace_user(event: Engagement) -> Engagement:
    return msgspec.structs.replace(event, user_id="other")
