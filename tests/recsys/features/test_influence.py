"""Bounds of influence: one judgement of each account, room, shares of networks and of new accounts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from recsys.config.safety_config import BoundsConfig
from recsys.events.event_types import Engagement
from recsys.features.influence import Influence

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def did(
    user: int, item: int, kind: str = "view", at_ms: int = 0, source: int = 1, narrowed: bool = False
) -> Engagement:
    return Engagement(
        time_ms=NOW_MS + at_ms, request_id="r", user_id=f"u{user}", item_id=f"v{item}", kind=kind,
        source=source, narrowed=narrowed or UNSET,
    )  # fmt: skip


def bounds(**changes: object) -> Influence:
    return Influence(BoundsConfig(**changes))  # type: ignore[arg-type]


def test_a_kind_of_an_account_and_item_counts_once() -> None:
    influence = bounds()
    likes = [influence.counts(did(1, 1, "like", n)) for n in range(5)]
    assert likes == [True, False, False, False, False]
    assert influence.counts(did(2, 1, "like")) and influence.counts(did(1, 2, "like"))


def test_two_kinds_of_an_account_and_item_count_beside_views_and_dislikes() -> None:
    influence = bounds()
    kinds = ("view", "like", "long_view", "share", "follow", "comment", "hide", "skip")
    counted = [kind for kind in kinds if influence.counts(did(1, 1, kind))]
    assert counted == ["view", "like", "long_view", "share", "hide", "skip"]
    assert influence.counted(did(1, 1, "share")) and not influence.counted(did(1, 1, "follow"))


def test_kinds_under_own_names_count_once_and_are_remembered() -> None:
    names = [f"kind{n}" for n in range(60)]
    influence = Influence(BoundsConfig(), 1, ["click", *names])
    counts = [[influence.counts(did(1, 1, kind, n)) for n in range(3)] for kind in names[:50]]
    assert counts == [[True, False, False]] * 50
    again = Influence(BoundsConfig(), 1, ["click", *names])
    again.restore(influence.pack())
    assert again.counted(did(1, 1, "kind0")) and not again.counted(did(2, 1, "kind0"))
    assert not again.counted(did(1, 1, "click"))


def test_kinds_under_own_names_have_room_beside_two_others() -> None:
    influence = Influence(BoundsConfig(), 1, ["click", "like", "purchase", "share"])
    kinds = ["like", "share", "follow", "purchase", "purchase"]
    assert [influence.counts(did(1, 1, kind)) for kind in kinds] == [True, True, False, True, False]


def test_an_account_judges_as_many_items_as_it_has_room_for() -> None:
    influence = bounds(burst=10, daily=24)
    assert sum(influence.counts(did(1, n)) for n in range(50)) == 10
    assert influence.counts(did(2, 1))
    assert sum(influence.counts(did(1, 100 + n, at_ms=DAY_MS // 8)) for n in range(50)) == 3
    assert sum(influence.counts(did(1, 200 + n, at_ms=9 * DAY_MS)) for n in range(50)) == 10
    # The first judgement decides for all kinds.
    assert not influence.counts(did(1, 49, "like", 9 * DAY_MS + 1))


def test_room_neither_goes_nor_comes_when_time_goes_back() -> None:
    influence = bounds(burst=5, daily=1)
    now_ms = 5 * DAY_MS
    assert all(influence.counts(did(1, n, at_ms=now_ms)) for n in range(3))
    assert influence.counts(did(1, 10, at_ms=0)), "the room of five isn't less for it"
    assert influence.counts(did(1, 11, at_ms=now_ms))
    assert not influence.counts(did(1, 12, at_ms=0))
    assert not influence.counts(did(1, 13, at_ms=now_ms)), "nothing was earned on the way back"


def test_a_network_does_not_raise_its_own_share_by_what_it_does_with_the_item() -> None:
    influence = bounds(floor=30)
    for user in range(100):
        assert influence.counts(did(user, user % 40, source=user % 50 + 10))
    assert all(influence.counts(did(500 + n, n, source=1)) for n in range(2))
    farmed = sum(influence.counts(did(1_000 + n, 1_000, source=1)) for n in range(500))
    assert 30 <= farmed < 40


def test_a_network_judges_an_item_as_often_as_its_share_allows() -> None:
    influence = bounds(floor=5)
    for user in range(200):  # 200 judgements by others, each of two items
        assert influence.counts(did(user, user % 40, source=user % 50 + 10))
        assert influence.counts(did(user, 1_000, source=user % 50 + 10))
    farmed = sum(influence.counts(did(1_000 + n, 1_000, source=1)) for n in range(100))
    assert 5 <= farmed < 20


def test_a_key_that_sends_everything_is_not_bounded() -> None:
    influence = bounds(floor=0)
    assert all(influence.counts(did(user, user % 3, source=7)) for user in range(300))


def test_new_accounts_judge_an_item_as_often_as_established_ones_allow() -> None:
    influence = bounds(floor=4, new_ratio=1.0)
    for user in range(200):
        for item in range(20):
            assert influence.counts(did(user, item, at_ms=user, source=user))
    for user in range(200):
        assert influence.counts(did(user, 100 + user, at_ms=2 * DAY_MS, source=user))
    later = 3 * DAY_MS
    assert all(influence.counts(did(n, 500, at_ms=later, source=n)) for n in range(6))
    new = [influence.counts(did(1_000 + n, 500, at_ms=later, source=1_000 + n)) for n in range(30)]
    assert sum(new) == 10  # the floor, and as many as established ones
    alone = [influence.counts(did(2_000 + n, 501, at_ms=later, source=n)) for n in range(30)]
    assert sum(alone) == 4


def test_in_a_young_system_accounts_of_half_its_age_are_established() -> None:
    influence, hour_ms = bounds(floor=4, new_ratio=1.0), DAY_MS // 24
    for user in range(30):
        assert influence.counts(did(user, user, at_ms=user, source=user))
        assert influence.counts(did(user, 100 + user, at_ms=hour_ms + user, source=user))
    attack = [did(1_000 + n, 500, at_ms=2 * hour_ms + n, source=1_000 + n) for n in range(30)]
    again = bounds(floor=4, new_ratio=1.0)
    again.restore(influence.pack())
    for each in (influence, again):
        assert sum(map(each.counts, attack)) == 4
    assert all(influence.counts(did(n, 501, at_ms=2 * hour_ms, source=n)) for n in range(10))


def test_with_many_accounts_for_each_established_one_new_ones_are_not_bounded() -> None:
    influence, hour_ms = bounds(floor=4), DAY_MS // 24
    for user in range(20):
        assert influence.counts(did(user, user, at_ms=user, source=user))
        assert influence.counts(did(user, 100 + user, at_ms=hour_ms, source=user))
    for n in range(400):  # visitors who come once
        influence.counts(did(1_000 + n, 1_000 + n, at_ms=hour_ms + n, source=n))
    assert all(influence.counts(did(2_000 + n, 500, at_ms=2 * hour_ms, source=n)) for n in range(30))


def test_accounts_whose_judgements_are_refused_do_not_lift_the_bound_on_new_ones() -> None:
    influence, hour_ms = bounds(floor=4), DAY_MS // 24
    for user in range(20):
        assert influence.counts(did(user, user, at_ms=user, source=user))
        assert influence.counts(did(user, 100 + user, at_ms=hour_ms, source=user))
    attack = [did(1_000 + n, 500, at_ms=hour_ms + n, source=n) for n in range(400)]
    assert sum(map(influence.counts, attack)) == 4


def test_in_an_old_system_no_number_of_accounts_lifts_the_bound_on_new_ones() -> None:
    influence = bounds(floor=4, new_ratio=1.0)
    for user in range(200):
        for item in range(20):
            influence.counts(did(user, item, at_ms=user, source=user))
        influence.counts(did(user, 100 + user, at_ms=2 * DAY_MS, source=user))
    for n in range(2_000):
        influence.counts(did(1_000 + n, 1_000 + n, at_ms=2 * DAY_MS, source=n))
    assert sum(influence.counts(did(4_000 + n, 500, at_ms=3 * DAY_MS, source=n)) for n in range(30)) == 4


def test_judgements_of_an_account_that_becomes_established_make_room_for_new_ones() -> None:
    influence, hour_ms = bounds(floor=4, new_ratio=1.0), DAY_MS // 24
    for user in range(30):  # all were new when they judged the item
        assert influence.counts(did(user, 500, at_ms=user, source=user))
    for user in range(30):
        assert influence.counts(did(user, 100 + user, at_ms=hour_ms, source=user))
    again = bounds(floor=4, new_ratio=1.0)
    again.restore(influence.pack())
    for each in (influence, again):
        new = [each.counts(did(1_000 + n, 500, at_ms=2 * hour_ms, source=n)) for n in range(50)]
        assert sum(new) == 34


def test_what_a_new_account_judged_is_forgotten_with_it() -> None:
    influence, hour_ms = bounds(floor=4, new_ratio=1.0), DAY_MS // 24
    for user in range(30):
        influence.counts(did(user, 500, at_ms=user, source=user))
        influence.forget(f"u{user}")
    for user in range(30):
        influence.counts(did(user, 100 + user, at_ms=hour_ms, source=user))
        influence.counts(did(user, 200 + user, at_ms=hour_ms, source=user))
        influence.counts(did(user, 300 + user, at_ms=3 * hour_ms, source=user))
    assert not any(influence.counts(did(1_000 + n, 500, at_ms=3 * hour_ms, source=n)) for n in range(9))


def test_in_a_narrowed_list_the_engagements_of_new_accounts_do_not_count() -> None:
    influence = bounds()
    assert not influence.counts(did(1, 1, "like", narrowed=True))
    assert not influence.counts(did(1, 1, "share")), "the first judgement decides"
    assert influence.counts(did(1, 2, "like"))
    later_ms = 10 * DAY_MS
    for item in range(100, 130):
        influence.counts(did(1, item, at_ms=later_ms))
    assert influence.counts(did(1, 3, "like", later_ms + DAY_MS, narrowed=True))
    unbounded = bounds(enabled=False)
    assert unbounded.counts(did(1, 1, "like", narrowed=True))


@pytest.mark.parametrize("changes", [{"enabled": False}, {}])
def test_without_a_source_or_where_they_are_off_everything_counts(changes: dict[str, bool]) -> None:
    influence = bounds(burst=1, **changes)
    untouched = influence.pack()
    for n in range(5):
        event = did(1, n % 2, "like")
        if not changes:
            event = Engagement(time_ms=event.time_ms, request_id="r", user_id="u1", item_id="v1", kind="like")
        assert influence.counts(event) and influence.admits(event)
    assert influence.pack() == untouched


def test_a_partition_has_its_share_of_the_floors() -> None:
    whole, half = Influence(BoundsConfig(floor=10)), Influence(BoundsConfig(floor=10), 2)
    for influence in (whole, half):
        for user in range(100):
            influence.counts(did(user, user, source=100 + user))
    assert [
        sum(influence.counts(did(900 + n, 7_000, source=1)) for n in range(40)) for influence in (whole, half)
    ] == [10, 5]


def test_a_forgotten_account_begins_anew() -> None:
    influence = bounds(burst=1, daily=1)
    assert influence.counts(did(1, 1)) and not influence.counts(did(1, 2))
    influence.forget("u1")
    assert influence.counts(did(1, 3))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.sampled_from(["view", "like"]),
                       st.integers(0, DAY_MS), st.integers(0, 2)), max_size=60),
    st.integers(0, 60),
)  # fmt: skip
def test_a_restored_state_decides_as_the_one_it_was_packed_from(
    events: list[tuple[int, int, str, int, int]], cut: int
) -> None:
    whole, first = bounds(burst=6, floor=2), bounds(burst=6, floor=2)
    expected = [whole.counts(did(*event)) for event in events]
    decided = [first.counts(did(*event)) for event in events[:cut]]
    again = bounds(burst=6, floor=2)
    again.restore(first.pack())
    assert decided + [again.counts(did(*event)) for event in events[cut:]] == expected
    assert again.pack() == whole.pack()
