from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import JoinConfig
from recsys.events.event_types import SEEN, Engagement, Impression, ServedItem, Tick, User
from recsys.events.records import CLICK_LIST, Example, Forget
from recsys.features.influence import Influence
from recsys.features.request_features import read_block
from tests.support.simulation.memory_spill import MemorySpill
from tests.support.training.small_feed import FEATURES, START_MS, engagement, feed, impression
from training.joining import pending_impressions
from training.joining.joiner import Joiner

LABELS = list(FEATURES.schema.labels)
CONFIG = JoinConfig(window_s=60, horizon_s=600)


def joiner(shown_by: str = "view", **changes: object) -> Joiner:
    config = JoinConfig(**changes) if changes else CONFIG  # type: ignore[arg-type]
    return Joiner(0, LABELS, config, shown_by=shown_by)


def fed(its: Joiner, *events: object) -> list[Example]:
    return [e for n, event in enumerate(events) for e in its.feed(n, event)]  # type: ignore[arg-type]


def recalling(events: Sequence[object]) -> Joiner:
    """A joiner that reads impressions again, from their place among the events."""
    return Joiner(0, LABELS, CONFIG, lambda offset: events[offset])  # type: ignore[arg-type,return-value]


SHOWN = impression(1, 1, START_MS)


def test_the_end_of_a_view_makes_the_example_with_the_labels_before_it() -> None:
    out = fed(
        joiner(),
        SHOWN,
        engagement(SHOWN, 1, "long_view", 8_000),
        engagement(SHOWN, 1, "view", 9_000, watch_ms=9_000),
    )
    assert [(e.index, e.labels, e.watch_ms, e.correction) for e in out] == [(1, [1.0, 0.0], 9_000, False)]
    assert (out[0].offset, out[0].sequence, out[0].closed_ms) == (0, 1, START_MS + 9_000)


def test_an_example_says_when_its_view_ended_by_its_client_and_others_say_nothing() -> None:
    """The partition's event time may be ahead of it: another client's clock, a view that was held back."""
    its = joiner()
    seen = fed(
        its,
        SHOWN,
        Tick(time_ms=START_MS + 10_000),
        engagement(SHOWN, 1, "view", 9_000, watch_ms=9_000),
        engagement(SHOWN, 0, "click", 9_500),
        engagement(SHOWN, 1, "like", 11_000),
    )
    closed = its.advance(START_MS + 61_000)
    told = [(e.index, e.correction, e.closed_ms, e.view_ended_ms) for e in [*seen, *closed]]
    assert told == [
        (1, False, START_MS + 10_000, START_MS + 9_000),
        (1, True, START_MS + 11_000, 0),
        (0, False, START_MS + 60_000, 0),
    ]


def test_an_example_carries_the_features_of_its_item_as_served() -> None:
    out = fed(joiner(), SHOWN, engagement(SHOWN, 2, "view", 1_000))
    assert SHOWN.features is not None and out[0].features is not None
    served, read = read_block(SHOWN.features, FEATURES), read_block(out[0].features, FEATURES)
    assert (read.items_NI == served.items_NI[2:3]).all()
    assert (read.dense_NF == served.dense_NF[2:3]).all()
    assert (read.history_TH == served.history_TH).all() and out[0].propensity == 0.5


def test_what_was_engaged_with_but_not_viewed_waits_for_the_window() -> None:
    its = joiner()
    assert fed(its, SHOWN, engagement(SHOWN, 0, "like", 1_000)) == []
    assert its.advance(START_MS + 59_999) == []
    out = its.advance(START_MS + 60_000)
    assert [(e.index, e.labels, e.closed_ms) for e in out] == [(0, [0.0, 1.0], START_MS + 60_000)]
    assert its.counts["never_shown"] == 2


def test_what_was_never_shown_is_no_negative_unless_all_was_shown() -> None:
    its = joiner()
    assert fed(its, SHOWN, Tick(time_ms=START_MS + 61_000)) == []
    assert its.counts["never_shown"] == 3
    shown = structs.replace(SHOWN, shown=True)
    out = fed(joiner("impression"), shown, Tick(time_ms=START_MS + 61_000))
    assert [e.labels for e in out] == [[0.0, 0.0]] * 3
    assert fed(joiner("view"), shown, Tick(time_ms=START_MS + 61_000)) == []


END = Tick(time_ms=START_MS + 61_000)


@pytest.mark.parametrize("kind", [SEEN, "like", "click"])
def test_a_list_is_learned_as_a_whole_once_the_viewer_confirms_it(kind: str) -> None:
    its = joiner("impression")
    assert fed(its, SHOWN, END) == [] and its.counts["never_shown"] == 3
    label = float(kind == "like")
    expected = [[0.0, 0.0], [0.0, label], [0.0, 0.0]]
    examples = fed(joiner("impression"), SHOWN, engagement(SHOWN, 1, kind, 10), END)
    assert [e.labels for e in examples] == expected
    its = joiner("impression")
    its.restore(fed_state(SHOWN, END))  # its window is over
    late = its.feed(9, engagement(SHOWN, 1, kind, 90_000))
    assert [e.labels for e in sorted(late, key=lambda e: e.index)] == expected
    assert its.feed(10, engagement(SHOWN, 1, "view", 91_000)) == []  # once


def fed_state(*events: object) -> bytes:
    its = joiner("impression")
    fed(its, *events)
    return its.pack()


def test_of_lists_that_nobody_engages_with_no_more_is_learned_than_the_bounds_admit() -> None:
    influence = Influence(BoundsConfig(burst=4, daily=1))
    its = Joiner(0, LABELS, CONFIG, influence=influence, shown_by="impression")
    lists = [structs.replace(SHOWN, request_id=f"r{n}") for n in range(5)]
    seen = [structs.replace(engagement(each, 0, SEEN, 5), source=7) for each in lists]
    liked = structs.replace(engagement(lists[4], 2, "like", 6), source=7)
    examples = fed(its, *lists, *seen, liked, END)
    assert [e.labels for e in examples] == [[0.0, 0.0]] * 4 + [[0.0, 1.0]]
    assert its.counts["bounded"] == 11


def choosing(click: Engagement, first: str = "v9") -> tuple[Impression, Engagement]:
    """A click with its list of candidates."""
    items = [ServedItem(item_id=i) for i in (click.item_id, first)]
    list_ = structs.replace(SHOWN, request_id=f"{CLICK_LIST}1", items=items)
    return list_, structs.replace(click, choice=list_.request_id)


def test_with_clicks_a_served_list_that_was_only_read_is_not_learned() -> None:
    its = joiner("click")
    assert fed(its, SHOWN, engagement(SHOWN, 1, "click", 10), END) == []  # click is no label here


def test_a_click_in_a_served_list_is_learned_in_its_candidates_and_measured_in_the_list() -> None:
    candidates, click = choosing(engagement(SHOWN, 1, "like", 10))
    alone = fed(joiner("click"), candidates, structs.replace(click, request_id=""), END)
    its = joiner("click")
    examples = fed(its, SHOWN, candidates, click, END)
    learned = [e for e in examples if not e.measured]
    assert [(e.item_id, e.labels, e.features, e.arrived) for e in learned] == [
        (e.item_id, e.labels, e.features, e.arrived) for e in alone
    ]
    measured = [e for e in examples if e.measured]
    assert [e.labels[1] for e in measured] == [0.0, 1.0, 0.0]
    assert {(e.request_id, e.features) for e in measured} == {(SHOWN.request_id, None)}
    assert its.counts["never_shown"] == its.counts["unmatched"] == 0
    later = its.feed(9, engagement(SHOWN, 1, "long_view", 90_000))  # it names the served list alone
    assert [(e.request_id, e.labels) for e in later] == [
        (SHOWN.request_id, [1.0, 1.0]),
        (candidates.request_id, [1.0, 1.0]),
    ]


def test_a_second_click_in_a_list_is_learned_in_candidates_of_its_own() -> None:
    candidates, click = choosing(engagement(SHOWN, 1, "like", 10))
    more, other = choosing(engagement(SHOWN, 2, "like", 20))
    more.request_id = other.choice = f"{CLICK_LIST}2"
    examples = fed(joiner("click"), SHOWN, candidates, click, more, other, END)
    labels = {e.request_id: [x.labels[1] for x in examples if x.request_id == e.request_id] for e in examples}
    assert labels == {
        SHOWN.request_id: [0.0, 1.0, 1.0],
        candidates.request_id: [1.0, 0.0],
        more.request_id: [1.0, 0.0],
    }


def test_a_click_whose_list_is_gone_is_a_choice_from_candidates_alone() -> None:
    candidates, click = choosing(engagement(SHOWN, 1, "like", 10))
    its = joiner("click")
    examples = fed(its, candidates, click, END)
    assert [e.labels for e in examples] == [[0.0, 1.0], [0.0, 0.0]]
    assert its.counts["unmatched"] == 0


def test_a_click_that_names_no_list_is_joined_with_the_served_one_that_has_its_item() -> None:
    candidates, click = choosing(structs.replace(engagement(SHOWN, 1, "like", 10), request_id=""))
    its = joiner("click")
    examples = fed(its, SHOWN, candidates, click, END)
    assert len(examples) == 5 and its.counts["attributed"] == 1


def test_of_a_click_beyond_the_bounds_nothing_is_learned() -> None:
    influence = Influence(BoundsConfig(burst=1, daily=1))
    its = Joiner(0, LABELS, CONFIG, influence=influence, shown_by="click")
    first = structs.replace(engagement(SHOWN, 0, "like", 5), source=7)
    other = structs.replace(SHOWN, request_id="r2")
    candidates, click = choosing(structs.replace(engagement(other, 1, "like", 10), source=7))
    examples = fed(its, SHOWN, first, other, candidates, click, END)
    assert {e.request_id for e in examples} == {SHOWN.request_id}
    assert its.counts["bounded"] == 2  # one that was only read, and the second click


@pytest.mark.parametrize("is_clicked", [True, False])
def test_a_list_made_of_a_click_is_learned_with_it_only(is_clicked: bool) -> None:
    its = joiner("click")
    shown = structs.replace(SHOWN, request_id=f"{CLICK_LIST}1")
    click = engagement(shown, 0, "like" if is_clicked else "click", 1)  # click is no label
    examples = fed(its, shown, click, Tick(time_ms=START_MS + 61_000))
    assert len(examples) == (3 if is_clicked else 0)
    assert its.counts["never_shown"] == (0 if is_clicked else 3)


def test_a_later_engagement_corrects_until_the_horizon_and_is_late_after_it() -> None:
    its = joiner()
    first = fed(its, SHOWN, engagement(SHOWN, 0, "view", 1_000))
    corrected = its.feed(5, engagement(SHOWN, 0, "like", 300_000))
    assert [(e.labels, e.previous, e.correction) for e in corrected] == [([0.0, 1.0], first[0].labels, True)]
    assert its.feed(6, engagement(SHOWN, 0, "like", 300_001)) == []  # nothing new
    assert its.feed(7, engagement(SHOWN, 0, "long_view", 661_000)) == []
    assert (its.counts["late"], its.counts["corrections"], len(its.impressions)) == (1, 1, 0)
    assert its.counts["unmatched"] == 0


def test_engagements_of_other_items_and_other_users_are_unmatched() -> None:
    its = joiner()
    other = impression(1, 2, START_MS)
    strange = engagement(SHOWN, 0, "view", 10)
    strange.item_id = "nobody"
    assert fed(its, SHOWN, strange, engagement(other, 0, "view", 20)) == []
    assert its.counts["unmatched"] == 2


def test_an_engagement_whose_impression_never_came_is_unmatched_not_late() -> None:
    its = joiner()
    assert fed(its, engagement(SHOWN, 0, "view", 1_000)) == []
    assert (its.counts["unmatched"], its.counts["late"]) == (1, 0)
    its.feed(1, SHOWN)
    its.advance(START_MS + 700_000)
    again = joiner()
    again.restore(its.pack())
    again.feed(2, engagement(SHOWN, 1, "view", 700_000))
    assert (again.counts["unmatched"], again.counts["late"]) == (1, 1)


def test_repeats_count_once() -> None:
    its = joiner()
    view = engagement(SHOWN, 0, "view", 1_000)
    assert len(fed(its, SHOWN, SHOWN, view, view)) == 1
    assert its.counts["repeats"] == 2


def test_ids_as_text_and_as_numbers_are_the_same() -> None:
    shown = impression(1, 1, START_MS)
    shown.items[0].item_id = 7
    view = engagement(shown, 0, "view", 10)
    view.item_id = "7"
    assert len(fed(joiner(), shown, view)) == 1


def test_time_never_goes_back() -> None:
    its = joiner()
    fed(its, Tick(time_ms=START_MS + 5_000), SHOWN)
    its.feed(9, engagement(SHOWN, 0, "like", 1))
    assert its.watermark_ms == START_MS + 5_000


def test_an_impression_without_features_still_makes_an_example() -> None:
    shown = impression(1, 1, START_MS)
    shown.features = None
    assert fed(joiner(), shown, engagement(shown, 0, "view", 10))[0].features is None


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 200), requests=st.integers(1, 60))
def test_a_restored_joiner_goes_on_with_the_same_examples(cut: int, requests: int) -> None:
    events = feed(requests)
    cut = min(cut, len(events))
    whole, first, second = joiner(), joiner(), joiner()
    expected = [e for n, event in enumerate(events) for e in whole.feed(n, event)]
    found = [e for n, event in enumerate(events[:cut]) for e in first.feed(n, event)]
    second.restore(first.pack())
    found += [e for n, event in enumerate(events[cut:], cut) for e in second.feed(n, event)]
    assert found == expected
    assert second.counts == whole.counts
    assert [e.sequence for e in expected] == list(range(1, len(expected) + 1))


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 200), requests=st.integers(1, 60))
def test_impressions_read_again_give_the_examples_of_impressions_kept(cut: int, requests: int) -> None:
    events = feed(requests)
    kept, its = joiner(), recalling(events)
    expected = [e for n, event in enumerate(events) for e in kept.feed(n, event)]
    found = [e for n, event in enumerate(events[:cut]) for e in its.feed(n, event)]
    again = recalling(events)
    again.restore(its.pack())
    found += [e for n, event in enumerate(events[cut:], cut) for e in again.feed(n, event)]
    assert found == expected
    assert again.counts == kept.counts and again.counts["lost"] == 0


def test_an_impression_that_is_gone_is_counted_and_changes_nothing_of_what_follows() -> None:
    events = [
        SHOWN,
        engagement(SHOWN, 0, "view", 1_000),
        Tick(time_ms=START_MS + 61_000),
        engagement(SHOWN, 0, "like", 62_000),  # a correction
        engagement(SHOWN, 1, "view", 63_000),  # an example after the window
        other := impression(2, 1, START_MS + 64_000),
        engagement(other, 0, "view", 1_000),
    ]
    whole = fed(recalling(events), *events)
    its = Joiner(0, LABELS, CONFIG, lambda offset: None)
    found = fed(its, *events)
    assert [e.sequence for e in whole] == [1, 2, 3, 4] and found == [whole[0], whole[3]]
    assert (its.counts["lost"], its.counts["corrections"], its.counts["examples"]) == (2, 0, 2)


def test_after_its_window_an_impression_takes_little_memory() -> None:
    """An hour's impressions are held, in memory and in each snapshot: open ones too take little there."""
    events: list[object] = []
    for n in range(300):
        shown = impression(n, n % 12, START_MS + n, items=10)
        events += [shown, *(engagement(shown, i, "view", 500 + i, watch_ms=500) for i in range(8))]
    its = recalling(events)
    fed(its, *events)
    ids = 8 * 300 * 38  # of the events, by which repeats are known: bounded by their number
    whole, open_ = its.impressions.bytes, (len(its.pack()) - ids) / 300
    its.advance(START_MS + 70_000)
    closed = (len(its.pack()) - ids) / 300
    assert len(its.impressions) == 300 and its.impressions.oldest() == 0
    assert 50 < open_ < 250 and 50 < closed < 250 and its.impressions.bytes < whole / 8
    its.advance(START_MS + 700_000)
    assert len(its.impressions) == 0 == its.impressions.bytes and its.impressions.oldest() is None


@settings(max_examples=25, deadline=None)
@given(requests=st.integers(1, 40))
def test_each_shown_item_has_one_first_example_and_corrections_only_add_labels(requests: int) -> None:
    its, labels = joiner(), dict[tuple[int, int], list[float]]()
    for n, event in enumerate([*feed(requests), Tick(time_ms=START_MS + 10_000_000)]):
        for e in its.feed(n, event):
            known = labels.get((e.offset, e.index))
            assert e.correction == (known is not None)
            if known is not None:
                assert e.previous == known and e.labels > known
            labels[e.offset, e.index] = e.labels
    assert len(its.impressions) == 0
    assert len(labels) == its.counts["examples"]


def test_a_state_of_something_else_is_refused() -> None:
    import msgspec

    with pytest.raises(msgspec.MsgspecError):
        joiner().restore(b"\x93\x01\x02\x03")


def test_a_tombstone_ends_what_is_held_of_its_user_alone() -> None:
    its = joiner()
    events = [
        (closed := impression(1, 1, START_MS)),
        engagement(closed, 0, "view", 1_000),
        Tick(time_ms=START_MS + 70_000),  # the window of the first is over
        (open_ := impression(2, 1, START_MS + 70_000)),
        (other := impression(3, 2, START_MS + 70_000)),
    ]
    fed(its, *events)
    assert its.feed(5, User(time_ms=START_MS + 71_000, user_id="u1", removed=True)) == [
        Forget(partition=0, offset=5, sequence=2, user_id="u1", closed_ms=START_MS + 71_000)
    ]
    assert b"u1" not in its.pack()
    late = [engagement(closed, 0, "like", 72_000), engagement(open_, 0, "view", 3_000)]
    assert fed(its, *late) == [] and its.counts["unmatched"] == 2
    [kept] = its.feed(9, engagement(other, 1, "view", 4_000))
    assert (kept.user_id, kept.sequence) == ("u2", 3)
    assert its.advance(START_MS + 10_000_000) == [] and len(its.impressions) == 0
    again = impression(4, 1, START_MS + 10_000_000)
    [back] = fed(its, again, engagement(again, 0, "view", 9))
    assert back.user_id == "u1", "who comes back is learned from again"


def test_a_bounded_account_leaves_no_trace_in_the_weight_of_a_correction() -> None:
    its = Joiner(0, LABELS, CONFIG, influence=Influence(BoundsConfig()), shown_by="view")
    out = fed(
        its,
        SHOWN,
        engagement(SHOWN, 0, "view", 1_000, source=7),
        engagement(SHOWN, 0, "like", 2_000, source=7),
    )
    assert [(e.correction, e.arrived) for e in out] == [(False, []), (True, [])]


# --- what is open, and what is left out ---


def watched(requests: int, **more: object) -> list[object]:
    """A view of each item, and a like of every second one long after it: half of its likes come early."""
    events: list[object] = []
    for n in range(requests):
        shown = impression(n, n, START_MS + 1_000 * n)
        early = [engagement(shown, 0, "like", 100)]
        views = [engagement(shown, i, "view", 200) for i in range(3)]
        events += [shown, *early, *views, engagement(shown, 1, "like", 300_000)]
    return sorted(events, key=lambda event: event.time_ms)  # type: ignore[attr-defined]


def test_an_example_says_what_share_of_its_labels_has_come_by_then() -> None:
    its = joiner()
    out = fed(its, *watched(2_000))
    assert out[0].arrived == [], "nothing is known yet"
    first = [e for e in out if not e.correction][-100:]
    assert all(e.arrived == [1.0, pytest.approx(0.5, abs=0.02)] for e in first)
    assert {tuple(e.arrived) for e in out[-200:] if e.correction} == {(1.0, 0.0)}
    before = {(e.offset, e.index) for e in out if not e.correction and not e.arrived}
    of_these = [e.arrived for e in out if e.correction and (e.offset, e.index) in before]
    assert [1.0, 0.0] in of_these, "first learned before the shares were known, corrected after"
    again = joiner()
    again.restore(its.pack())
    afterwards = impression(9_998, 1, START_MS + 2_290_000)
    late = fed(
        again,
        afterwards,
        engagement(afterwards, 0, "view", 70_000),
        engagement(afterwards, 0, "like", 80_000),
    )
    assert [(e.correction, e.arrived) for e in late] == [(False, []), (True, [])], "after the window"
    again.restore(its.pack())
    later = impression(9_999, 1, START_MS + 2_300_000)
    assert fed(again, later, engagement(later, 0, "view", 1))[-1].arrived == first[-1].arrived


def test_negatives_are_sampled_out_by_a_hash_and_come_back_with_an_engagement() -> None:
    """The rest is as without sampling; what was left out comes back once, and is corrected like others."""
    events = watched(300)
    whole, its = joiner(), joiner(window_s=60, horizon_s=600, negatives=0.25)
    out, all_ = fed(its, *events), fed(whole, *events)
    labels = {(e.offset, e.index): e.labels for e in all_ if not e.correction}
    kept = {(e.offset, e.index) for e in out if not e.correction and not e.sampled_out}
    assert kept >= {place for place, its_ in labels.items() if any(its_)}
    assert its.counts["sampled_out"] == len(labels) - len(kept)
    assert 0.2 < (len(kept) - 300) / 600 < 0.3 and {e.sampling_rate for e in out} == {0.25}
    back = [e for e in out if e.sampled_out]
    assert back and all(not e.correction and e.previous == [0.0, 0.0] for e in back)
    assert {(e.offset, e.index) for e in back} | kept > {(e.offset, e.index) for e in out if e.correction}
    assert fed(joiner(window_s=60, horizon_s=600, negatives=0.25), *events) == out
    [one] = [e for e in back if e.index == 1][:1]
    shown = events[one.offset]
    [more] = its.feed(10**6, engagement(shown, 1, "long_view", 301_000))  # type: ignore[arg-type]
    assert more.correction and more.sampled_out and more.previous == one.labels


def unsaid(of: Impression, index: int, kind: str, after_ms: int) -> Engagement:
    """An engagement whose client knows of no request."""
    return structs.replace(engagement(of, index, kind, after_ms), request_id="")


def test_an_engagement_without_a_request_is_of_the_newest_open_impression_with_its_item() -> None:
    """Of three lists of one user the first and the second have the item, and the second is the newer."""
    first, other = impression(1, 1, START_MS), impression(3, 1, START_MS + 2_000)
    second = structs.replace(impression(2, 1, START_MS + 1_000), items=first.items)
    others = [structs.replace(item, item_id=f"x{n}") for n, item in enumerate(other.items)]
    other = structs.replace(other, items=others)
    its = joiner()
    out = fed(its, first, second, other, unsaid(first, 1, "like", 3_000), unsaid(first, 1, "view", 4_000))
    assert [(e.request_id, e.index, e.labels) for e in out] == [(second.request_id, 1, [0.0, 1.0])]
    assert (its.counts["attributed"], its.counts["unattributed"], its.counts["unmatched"]) == (2, 0, 0)


@pytest.mark.parametrize("why", ["closed", "before it", "another item", "another user", "forgotten"])
def test_what_can_be_attributed_to_nothing_is_counted_and_no_example(why: str) -> None:
    its, like = joiner(), unsaid(SHOWN, 0, "like", 1_000)
    its.feed(0, SHOWN)
    if why == "closed":
        its.advance(START_MS + 60_000)
    elif why == "before it":
        like = unsaid(SHOWN, 0, "like", -5_001)
    elif why == "another item":
        like = structs.replace(like, item_id="nowhere")
    elif why == "another user":
        like = structs.replace(like, user_id="u7")
    else:
        its.feed(1, User(time_ms=START_MS, user_id=SHOWN.user_id, removed=True))
    assert its.feed(2, like) == [] and its.advance(START_MS + 10**7) == []
    assert (its.counts["attributed"], its.counts["unattributed"]) == (0, 1)


@pytest.mark.parametrize("cap", [0, 2_000])
def test_attribution_is_the_same_after_a_restart_and_from_the_spill(cap: int) -> None:
    """Every engagement with an open request, told without it, gives the same examples as with it: where an
    item is served to a user once, there is one impression that it can be of."""
    told = [impression(n, n % 3, START_MS + n * 400) for n in range(24)]
    lists = [structs.replace(one, items=[structs.replace(item, item_id=f"{n}-{k}") for k, item in
             enumerate(one.items)]) for n, one in enumerate(told)]  # fmt: skip
    done = [engagement(one, k, kind, 20_000 + k) for one in lists for k, kind in enumerate(["view", "like"])]
    truth = sorted([*lists, *done], key=lambda event: event.time_ms)  # type: ignore[attr-defined]
    bare = [structs.replace(e, request_id="") if isinstance(e, Engagement) else e for e in truth]
    spill = MemorySpill() if cap else None
    its = Joiner(0, LABELS, CONFIG, None, spill, cap)
    out = [e for n, event in enumerate(bare[:30]) for e in its.feed(n, event)]
    again = Joiner(0, LABELS, CONFIG, None, spill, cap)
    again.restore(its.pack())
    out += [e for n, event in enumerate(bare[30:], 30) for e in again.feed(n, event)]
    out += again.advance(START_MS + 100_000)
    expected = joiner()
    assert out == [*fed(expected, *truth), *expected.advance(START_MS + 100_000)]
    assert again.counts["attributed"] == len(done) and not again._opened


def test_impressions_that_an_older_version_stored_uncompressed_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = engagement(SHOWN, 0, "view", 1_000)
    its = joiner()
    its.feed(0, SHOWN)
    new = its.pack()
    monkeypatch.setattr(pending_impressions, "compressed", bytes)
    old = its.pack()
    assert len(new) < len(old)
    for stored in (new, old):
        again = joiner()
        again.restore(stored)
        assert again.feed(1, view) == fed(joiner(), SHOWN, view)


def test_a_state_with_fewer_fields_is_refused() -> None:
    its = joiner()
    its.feed(0, SHOWN)
    old = msgspec.msgpack.decode(its.pack())[:-4]
    with pytest.raises(ValueError, match="length"):
        joiner().restore(msgspec.msgpack.encode(old))


def batch_join(events: Sequence[object], horizon_ms: int) -> dict[tuple[str, str], list[float]]:
    """The labels of each item that was engaged with before its horizon, in event time at which it came."""
    found: dict[tuple[str, str], list[float]] = {}
    shown: dict[str, int] = {}
    waiting: list[object] = []
    now_ms = 0
    for event in events:
        now_ms = max(now_ms, event.time_ms)  # type: ignore[attr-defined]
        if hasattr(event, "items"):
            shown.setdefault(event.request_id, event.time_ms)
        elif hasattr(event, "kind"):
            waiting.append((event, now_ms))
    for event, came_ms in waiting:  # type: ignore[misc]
        if came_ms < shown[event.request_id] + horizon_ms:
            labels = found.setdefault((event.request_id, str(event.item_id)), [0.0] * len(LABELS))
            if event.kind in LABELS:
                labels[LABELS.index(event.kind)] = 1.0
    return found


@settings(max_examples=40, deadline=None)
@given(
    requests=st.integers(1, 40),
    delays=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), max_size=30),
    repeats=st.lists(st.integers(0, 200), max_size=10),
    negatives=st.sampled_from([1.0, 0.3]),
    cap=st.sampled_from([0, 20_000]),
)
def test_final_labels_are_those_of_a_batch_join_for_any_order_and_repeats(
    requests: int, delays: list[tuple[int, int]], repeats: list[int], negatives: float, cap: int
) -> None:
    """Engagements come later than they should, some twice; of what was left out, only those without a label
    are missing."""
    events = list[object](feed(requests)[:-1])
    for at, by in delays:
        at %= len(events)
        if hasattr(events[at], "kind"):
            events.insert(min(len(events), at + by), events.pop(at))
    for at in repeats:
        at %= len(events)
        events.insert(at + (at * 7) % (len(events) - at), events[at])
    events.append(Tick(time_ms=START_MS + 10_000_000))
    config = JoinConfig(window_s=60, horizon_s=30, negatives=negatives)
    its = Joiner(0, LABELS, config, None, MemorySpill() if cap else None, cap)
    final = {(e.request_id, str(e.item_id)): e.labels for e in fed(its, *events)}
    truth = batch_join(events, 90_000)
    missing = {place: labels for place, labels in truth.items() if place not in final}
    assert final == {place: labels for place, labels in truth.items() if place not in missing}
    assert not any(any(labels) for labels in missing.values())
    back = its.counts["sampled_out"] - len(missing)
    assert back >= 0 and (negatives < 1.0 or not missing)
    assert len(its.impressions) == 0
