from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events.event_types import SEEN, UNPROVEN, Engagement, Impression, Preference, RequestInputs, User
from recsys.events.hashing import key_of
from recsys.features.columns import VIEWER
from recsys.features.feature_set import FeatureSet
from recsys.features.session import COUNTER_ROWS, READ, REQUESTS, Session
from tests.support.serving.session_events import ALL_SHOWN, NOW_MS, did, keys_of, shown
from tests.support.training.small_feed import FEATURES, SCHEMA

DAY_MS = 86_400_000


def fold(session: Session, *events: Impression | Engagement | User) -> Session:
    for event in events:
        if isinstance(event, Impression):
            keys = [keys_of(int(str(s.item_id)[1:]), session.features) for s in event.items]
            width = session.features.item_columns
            session.fold_impression(event, np.array(keys, np.int64).reshape(-1, width))
        elif isinstance(event, Engagement):
            session.fold_engagement(event, keys_of(int(str(event.item_id)[1:]), session.features))
        else:
            session.fold_user(event)
    return session


def session(features: FeatureSet = FEATURES, seen: int = 500) -> Session:
    return Session("u", features, seen)


def count(its: Session, key: int, kind: str, now_ms: int = NOW_MS) -> float:
    row = its.counters.read(np.array([key]), now_ms).reshape(2, -1)
    return float(row[-1, its.features.kinds.index(kind)])


def everything(its: Session) -> list[Any]:
    """All that is read of a session."""
    history, outcomes = its.read_history(NOW_MS + DAY_MS)
    keys = np.sort(its.counters.export()[0])
    counters = its.counters.read(keys, NOW_MS + DAY_MS)
    return [
        its.user_id, its.offset, its.last_ms, its.events, its.profile, list(its.history),
        list(its.requests), list(its.seen), list(its.hidden), history.tobytes(),
        outcomes.tobytes(), keys.tobytes(), counters.tobytes(),
    ]  # fmt: skip


events = st.lists(
    st.one_of(
        st.builds(
            lambda r, items, t: shown(f"r{r}", *items, at_ms=NOW_MS + t),
            st.integers(0, 5), st.lists(st.integers(0, 9), max_size=4, unique=True), st.integers(0, DAY_MS),
        ),
        st.builds(
            lambda r, item, kind, t, w: did(f"r{r}", item, kind, NOW_MS + t, watch_ms=w),
            st.integers(0, 5), st.integers(0, 9),
            st.sampled_from(["view", "long_view", "like", "hide", "skip", "share"]),
            st.integers(0, DAY_MS), st.none() | st.integers(0, 60_000),
        ),
        st.builds(
            lambda c: User(time_ms=NOW_MS, user_id="u", fields={"country": c}),
            st.sampled_from(["de", ["at", "ch"], None]),
        ),
    ),
    max_size=25,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(past=events, future=events, features=st.sampled_from([FEATURES, ALL_SHOWN]))
def test_a_packed_session_reads_and_goes_on_as_before(
    past: list[Any], future: list[Any], features: FeatureSet
) -> None:
    its = fold(session(features, seen=6), *past)
    its.offset = len(past)
    other = Session.unpack(its.pack(), features, seen=6)
    assert everything(other) == everything(its)
    assert everything(fold(other, *future)) == everything(fold(its, *future))


@settings(max_examples=40, deadline=None)
@given(past=events, features=st.sampled_from([FEATURES, ALL_SHOWN]))
def test_a_session_stays_within_its_bounds(past: list[Any], features: FeatureSet) -> None:
    its = fold(session(features, seen=6), *past)
    assert len(its.history) <= features.history and len(its.requests) <= REQUESTS
    assert len(its.seen) <= 6 and len(its.hidden) <= 6
    history, outcomes = its.read_history(NOW_MS + DAY_MS)
    assert history.shape == (features.history, features.history_keys)
    assert np.isfinite(outcomes).all() and (outcomes >= 0).all()
    there = history[:, 0] != 0
    assert there.sum() == len(its.history)
    assert ((outcomes[:, -1] > 0) == there).all()  # how the ranker tells a real entry


def test_the_history_is_newest_first_and_keeps_what_happened() -> None:
    its = fold(
        session(),
        did("r1", 1, "view", NOW_MS, watch_ms=3_000),
        did("r1", 2, "like", NOW_MS + 10),
        did("r1", 2, "view", NOW_MS + 20, watch_ms=7_000),
    )
    history, outcomes = its.read_history(NOW_MS + 3_600_010)
    assert history[:3, 0].tolist() == [key_of("item", "v2"), key_of("item", "v1"), 0]
    like = SCHEMA.labels.index("like")
    assert outcomes[:2, like].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(outcomes[:2, -2], np.log1p([7.0, 3.0]) / 4, rtol=1e-6)
    assert outcomes[0, -1] == pytest.approx(0.5) and outcomes[1, -1] < 0.5  # an hour ago


def test_the_same_item_in_another_request_is_another_entry() -> None:
    its = fold(session(), did("r1", 1, "like"), did("r2", 1, "view"), did("r1", 1, "view"))
    assert [e.request_id for e in its.history] == ["r1", "r2"]


def test_an_engagement_counts_in_the_context_of_its_impression() -> None:
    its = fold(session(), shown("r1", 1, surface="feed"), shown("r2", 2, surface="shop"))
    fold(its, did("r2", 2, "like"))
    feed, shop = (FEATURES.context_keys(name, {})[0] for name in ("feed", "shop"))
    assert (count(its, feed, "like"), count(its, shop, "like")) == (0.0, 1.0)
    fold(its, did("r9", 2, "like"))  # its request is unknown: it counts for the user alone
    assert (count(its, VIEWER, "like"), count(its, shop, "like")) == (2.0, 1.0)


def test_a_request_told_again_has_its_newest_context() -> None:
    its = fold(session(), shown("r1", 1, surface="feed"), shown("r1", 1, surface="shop"))
    fold(its, did("r1", 1, "like"))
    assert count(its, FEATURES.context_keys("shop", {})[0], "like") == 1.0


def test_the_context_of_an_old_request_is_forgotten() -> None:
    its = fold(session(), *[shown(f"r{n}", 1, surface="shop") for n in range(REQUESTS + 1)])
    fold(its, did("r0", 1, "like"), did(f"r{REQUESTS}", 1, "like"))
    assert count(its, FEATURES.context_keys("shop", {})[0], "like") == 1.0


def test_a_list_that_was_only_read_is_not_seen_until_it_is_confirmed() -> None:
    read = fold(session(ALL_SHOWN), shown("r1", 1, 2))
    assert not read.seen and not read.history and len(read.counters) == 0
    again = Session.unpack(read.pack(), ALL_SHOWN)
    at_once = msgspec.structs.replace(shown("r1", 1, 2), shown=True)
    for kind in (SEEN, "like"):
        expected = fold(session(ALL_SHOWN), at_once, did("r1", 1, kind))
        assert list(expected.seen) == [key_of("item", f"v{n}") for n in (1, 2)]
        confirmed = fold(Session.unpack(again.pack(), ALL_SHOWN), did("r1", 1, kind))
        assert confirmed.pack() == expected.pack()
    unproven = did("r1", 1, SEEN, proof=UNPROVEN)
    assert not fold(again, unproven).seen
    lists = [shown(f"r{n}", n) for n in range(READ + 1)]
    many = fold(session(ALL_SHOWN), *lists, did("r0", 0, SEEN), did("r1", 1, SEEN))
    assert list(many.seen) == [key_of("item", "v1")]  # the oldest is forgotten
    assert not fold(session(ALL_SHOWN), shown("r1", 1, 2), did("r1", 3, SEEN)).seen  # not of the list
    long = fold(session(ALL_SHOWN), shown("r0", 1), shown("r1", *range(1_000)))
    assert list(long.read) == ["r1"] and len(fold(long, shown("r2", 1)).read) == 1


def test_where_the_client_says_what_was_seen_an_impression_shows_nothing() -> None:
    its = fold(session(), shown("r1", 1, 2))
    assert not its.seen and not its.history and count(its, VIEWER, "shown") == 0
    fold(its, did("r1", 1, "view", watch_ms=100))
    assert list(its.seen) == [key_of("item", "v1")] and count(its, VIEWER, "shown") == 1.0


def test_where_all_that_is_served_is_shown_a_view_shows_nothing_more() -> None:
    its = fold(session(ALL_SHOWN), shown("r1", 1, 2), did("r1", 1, "view", watch_ms=1_000))
    assert list(its.seen) == [key_of("item", f"v{n}") for n in (1, 2)]
    assert count(its, VIEWER, "shown") == 2.0
    assert count(its, VIEWER, "watch") == pytest.approx(np.log(2))


def test_counters_know_authors_tags_and_durations() -> None:
    its = fold(session(), did("r1", 1, "like"), did("r1", 4, "like"), did("r1", 5, "like"))
    assert count(its, key_of("item.author", "a1"), "like") == 2.0  # of 1 and 4
    assert count(its, key_of("item.tags", "t1"), "like") == 2.0  # of 1 and 5
    assert count(its, key_of("duration", 6), "like") == 3.0


def test_what_is_hidden_is_remembered() -> None:
    its = fold(session(), did("r1", 3, "hide"), did("r1", 4, "skip"))
    assert list(its.hidden) == [key_of("item", "v3")]


def test_where_seen_items_come_again_hidden_ones_are_remembered() -> None:
    its = fold(session(seen=0), did("r1", 3, "hide"), did("r1", 4, "hide"), did("r1", 5, "skip"))
    again = Session.unpack(its.pack(), FEATURES, 0)
    for one in (its, again, again.without_profile()):
        assert list(one.hidden) == [key_of("item", "v3"), key_of("item", "v4")]
        assert not one.seen


def test_a_session_without_events_is_packed_and_seen_without_profile() -> None:
    blob, its = session().pack(), session()
    assert Session.unpack(blob, FEATURES).pack() == blob
    nobody = its.without_profile()
    assert nobody.plain and not nobody.hidden and not len(nobody.counters) and not nobody.lefts
    fold(its, did("r1", 3, "hide"))
    assert list(nobody.hidden) == [key_of("item", "v3")]  # one list: it was made when first read


def test_engagements_with_a_list_without_profile_are_seen_once_and_enter_no_history() -> None:
    plain = msgspec.structs.replace(shown("r1", 3), inputs=RequestInputs(n=1, plain=True))
    viewer = fold(session(), plain, did("r1", 3, "view"), did("r1", 3, "like"), did("r1", 4, "view"))
    assert list(viewer.seen) == [key_of("item", "v3"), key_of("item", "v4")]
    assert not viewer.history and not len(viewer.counters)


def test_items_of_a_list_without_profile_are_seen_where_a_list_counts_as_shown() -> None:
    plain = msgspec.structs.replace(shown("r1", 3, 4), inputs=RequestInputs(n=2, plain=True))
    assert not fold(session(), plain).seen
    viewer = fold(session(ALL_SHOWN), plain, did("r1", 3, "like"))
    assert list(viewer.seen) == [key_of("item", "v3"), key_of("item", "v4")]
    assert not viewer.history and not len(viewer.counters)


def test_a_viewer_without_profiling_has_no_history_of_old_lists_either() -> None:
    viewer = fold(session(), User(time_ms=NOW_MS, user_id="u", fields={"profiling": False}))
    fold(viewer, did("older than all that are remembered", 3, "like"))
    assert list(viewer.seen) == [key_of("item", "v3")]
    assert not viewer.history and not len(viewer.counters)


def test_counters_are_bounded_and_the_newest_stay() -> None:
    its = session()
    for n in range(3 * COUNTER_ROWS):
        keys = FEATURES.item_keys(f"v{n}", {"author": f"b{n}"})
        its.fold_engagement(did("r1", n, "like", NOW_MS + n), keys)
    assert len(its.counters) <= 2 * COUNTER_ROWS
    last = 3 * COUNTER_ROWS - 1
    assert count(its, key_of("item.author", f"b{last}"), "like", NOW_MS + last) == 1.0
    assert count(its, key_of("item.author", "b0"), "like") == 0.0


def test_a_profile_replaces_the_one_before() -> None:
    its = fold(session(), User(time_ms=1, user_id="u", fields={"country": "de"}))
    fold(its, User(time_ms=2, user_id="u", fields={"country": "at", "unknown": "x"}))
    assert its.profile == [key_of("user.country", "at")]


def test_what_outlives_a_session_is_what_the_viewer_said_and_no_history() -> None:
    assert not fold(session(), did("r1", 1, "like")).lasting()
    its = fold(
        session(),
        User(time_ms=1, user_id="u", fields={"country": "de", "profiling": False}),
        did("r1", 1, "like"),
        did("r1", 2, "hide"),
    )
    its.offset = 7
    blocked = Preference(time_ms=1, user_id="u", field="author", value="a1", wish="block")
    its.fold_preference(blocked)
    kept = Session.unpack(its.lasting(), FEATURES)
    assert (kept.user_id, kept.offset, kept.plain) == ("u", 7, True)
    assert kept.profile == its.profile and kept.wishes == its.wishes and kept.hidden == its.hidden
    assert not (kept.seen or kept.history or kept.requests or len(kept.counters) or kept.events)
    assert kept.lasting() == kept.pack() == its.lasting()
    for alone in (User(time_ms=1, user_id="u", fields={"profiling": False}), did("r1", 2, "hide")):
        assert fold(session(), alone).lasting()


def test_a_late_event_does_not_turn_the_clock_back() -> None:
    its = fold(session(), did("r1", 1, "like", NOW_MS), did("r1", 2, "like", NOW_MS - DAY_MS))
    assert its.last_ms == NOW_MS and its.events == 2


def test_ids_alone_read_no_history() -> None:
    features = FeatureSet(SCHEMA, "ids", history=4)
    history, outcomes = fold(session(features), did("r1", 1, "like")).read_history(NOW_MS)
    assert history.shape == (0, features.history_keys) and outcomes.shape == (0, features.outcomes)


def test_what_is_no_session_or_one_of_other_features_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        Session.unpack(b"\x93\x01\x02\x03", FEATURES)
    blob = fold(session(), did("r1", 1, "like")).pack()
    other = FeatureSet(replace(SCHEMA, labels=("click",)), "all", history=4)
    with pytest.raises(ValueError, match="another feature set; empty the session store"):
        Session.unpack(blob, other)
