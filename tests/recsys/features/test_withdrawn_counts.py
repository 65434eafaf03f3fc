"""Item counters after a withdrawal: as if what it names had never come."""

from collections.abc import Iterable

import numpy as np
import pytest

from recsys.events.event_types import Engagement, Event, Impression, Verdict, Withdrawal
from recsys.events.hashing import Id
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.item_counters import ItemCounters
from tests.support.serving.session_events import ALL_SHOWN, NOW_MS, did, keys_of, shown
from tests.support.training.small_feed import FEATURES

HOUR_MS = 3_600_000
SINCE_MS = NOW_MS + 5 * HOUR_MS


def by_id(item_id: Id) -> Keys:
    return keys_of(int(str(item_id)[1:]))


def withdrawal(**requests: list[str]) -> Withdrawal:
    return Withdrawal(time_ms=NOW_MS + 20 * HOUR_MS, user_id="u", from_ms=SINCE_MS, requests=requests)


def fold(events: Iterable[Event], features: FeatureSet = FEATURES) -> ItemCounters:
    counters = ItemCounters(features)
    for event in events:
        if isinstance(event, Impression):
            items = [keys_of(int(str(s.item_id)[1:]), features) for s in event.items]
            counters.impression(event, np.array(items))
        elif isinstance(event, Engagement):
            counters.engagement(event, keys_of(int(str(event.item_id)[1:]), features))
    return counters


def visits_of(counters: ItemCounters) -> list[list[int]]:
    """Visits and pairs that are left over, by time, sorted."""
    sums: dict[tuple[int, ...], int] = {}
    for time_ms, sign, item, *before in counters.visits.take().tolist():
        key = (time_ms, item, *before)
        sums[key] = sums.get(key, 0) + sign
    return sorted([*key, count] for key, count in sums.items() if count)


PAST: list[Event] = [
    shown("r1", 1, 2, 3),
    did("r1", 1, "long_view", NOW_MS + HOUR_MS),
    did("r1", 2, "like", NOW_MS + 2 * HOUR_MS),
    did("r2", 2, "long_view", NOW_MS + 6 * HOUR_MS),
    did("r2", 3, "like", NOW_MS + 7 * HOUR_MS),
    did("r3", 4, "long_view", NOW_MS + 8 * HOUR_MS),
    did("", 5, "like", NOW_MS + 9 * HOUR_MS),
    did("r3", 6, "like", NOW_MS + HOUR_MS),  # dated back: it came last
]
CASES: dict[str, tuple[dict[str, list[str]], list[int]]] = {
    "all": ({}, [3, 4, 5, 6, 7]),
    "a list": ({"r2": []}, [3, 4]),
    "an item": ({"r2": ["v3"], "r3": []}, [4, 5, 7]),
    "no request": ({"": ["v5"]}, [6]),
    "of before": ({"r1": []}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_named_has_never_counted(case: str) -> None:
    requests, gone = CASES[case]
    counters = fold(PAST)
    counters.withdraw(withdrawal(**requests), PAST, by_id)
    expected = fold(event for n, event in enumerate(PAST) if n not in gone)
    now_ms, keys = NOW_MS + 30 * HOUR_MS, counters.counters.export()[0]
    left, right = counters.counters.read(keys, now_ms), expected.counters.read(keys, now_ms)
    np.testing.assert_allclose(left, right, atol=1e-6)
    assert right.sum() > 0
    assert visits_of(counters) == visits_of(expected) != []
    assert counters.visits.users == expected.visits.users


def test_nothing_is_taken_back_twice() -> None:
    counters, first = fold(PAST), withdrawal(r2=[])
    counters.withdraw(first, PAST, by_id)
    keys = counters.counters.export()[0]
    before = counters.counters.read(keys, NOW_MS + 30 * HOUR_MS)
    counters.withdraw(withdrawal(r2=[]), [*PAST, first], by_id)
    after = counters.counters.read(keys, NOW_MS + 30 * HOUR_MS)
    np.testing.assert_allclose(after, before, atol=1e-6)
    # A quarantine takes back the rest, once; and a withdrawal after it nothing.
    verdict = Verdict(time_ms=NOW_MS, user_id="u", quarantined=True)
    counters.verdict(verdict, [*PAST, first], by_id)
    np.testing.assert_allclose(counters.counters.read(keys, NOW_MS + 30 * HOUR_MS), 0, atol=1e-6)
    counters.withdraw(withdrawal(), [*PAST, first, verdict], by_id)
    np.testing.assert_allclose(counters.counters.read(keys, NOW_MS + 30 * HOUR_MS), 0, atol=1e-6)


def test_a_whole_list_takes_back_its_impression_and_an_item_of_it_does_not() -> None:
    late = shown("r9", 1, 2)
    late.time_ms, late.shown = SINCE_MS, True
    for requests, left in (({"r9": []}, 0.0), ({"r9": ["v1"]}, 2.0)):
        counters = fold([late], ALL_SHOWN)
        counters.withdraw(withdrawal(**requests), [late], lambda item: keys_of(int(str(item)[1:]), ALL_SHOWN))
        keys = counters.counters.export()[0]
        column = counters.features.kinds.index("shown")
        shown_2 = counters.counters.read(keys, SINCE_MS).reshape(len(keys), 2, -1)[:, 0, column]
        assert shown_2.max() == pytest.approx(left)


def test_of_a_kind_that_counted_once_only_the_one_that_counted_is_taken_back() -> None:
    """Bounded by a source: the second like of an item didn't count."""
    events: list[Event] = [
        did("r1", 1, "like", NOW_MS + HOUR_MS, source=5),
        did("r2", 1, "like", SINCE_MS + HOUR_MS, source=5),
    ]
    counters = fold(events)
    counters.withdraw(withdrawal(), events, by_id)
    keys = counters.counters.export()[0]
    np.testing.assert_allclose(
        counters.counters.read(keys, NOW_MS + 9 * HOUR_MS),
        fold(events[:1]).counters.read(keys, NOW_MS + 9 * HOUR_MS),
        atol=1e-6,
    )
