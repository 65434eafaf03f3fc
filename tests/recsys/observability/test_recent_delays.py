"""The newest delays and their percentiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.observability.recent_delays import LATE_MS, MOST_MS, RecentDelays


def test_percentiles_are_of_the_newest() -> None:
    delays = RecentDelays(limit=100)
    assert delays.percentile(0.5) is None and len(delays) == 0
    for i in range(1_000):
        delays.add(i)
    assert delays.percentile(0.0) == 900
    assert delays.percentile(0.5) == 950
    assert delays.percentile(0.95) == 995
    assert delays.percentile(1.0) == 999 and len(delays) == 100


def test_what_is_of_a_past_log_and_what_is_to_come_says_nothing() -> None:
    delays = RecentDelays()
    delays.since([], 5)
    now_ms = 10 * 86_400_000
    delays.since([now_ms - 40, now_ms - 86_400_000, 0, now_ms + 1, now_ms], now_ms)
    assert len(delays) == 2 and delays.percentile(1.0) == 40


def test_a_stage_that_falls_behind_never_shows_how_good_it_was() -> None:
    delays, now_ms = RecentDelays(), 10 * 86_400_000
    delays.since([now_ms - 900] * 500, now_ms)
    assert delays.p95("its", now_ms) == {"its": 900.0}
    delays.since([now_ms - 300_000] * 30, now_ms)  # minutes behind: a minute, or more
    assert delays.p95("its", now_ms) == {"its": MOST_MS}
    assert delays.p95("its", now_ms + LATE_MS) == {"its": MOST_MS}
    assert delays.p95("its", now_ms + LATE_MS + 1) == {}  # nothing came
    delays.since([now_ms + LATE_MS], now_ms + LATE_MS + 1)
    assert "its" in delays.p95("its", now_ms + LATE_MS + 1)


@given(st.lists(st.lists(st.integers(0, 9_000), max_size=30), max_size=20))
def test_batches_are_as_one_after_the_other(batches: list[list[int]]) -> None:
    at_once, singly = RecentDelays(16), RecentDelays(16)
    for batch in batches:
        at_once.since([10_000 - its for its in batch], 10_000)
        for its in batch:
            singly.add(its)
    shares = (0.0, 0.3, 0.5, 0.95, 1.0)
    assert [at_once.percentile(s) for s in shares] == [singly.percentile(s) for s in shares]
    assert len(at_once) == len(singly)


def test_what_a_past_log_told_is_over_soon_after_it() -> None:
    delays, now_ms = RecentDelays(), 10 * 86_400_000
    delays.since([now_ms - 3_600_000] * 400, now_ms)
    delays.since([now_ms + LATE_MS - 300] * 5, now_ms + LATE_MS)
    assert delays.p95("its", now_ms + LATE_MS) == {"its": MOST_MS}
    assert delays.p95("its", now_ms + LATE_MS + 1) == {"its": 300.0}


def test_the_mean_is_of_the_last_half_minute() -> None:
    failed = RecentDelays(8)
    assert failed.mean(0) is None
    for now_ms, value in ((0, 1.0), (LATE_MS, 1.0), (LATE_MS + 1, 0.0), (LATE_MS + 2, 0.0)):
        failed.add(value, now_ms)
    assert failed.mean(LATE_MS + 2) == pytest.approx(1 / 3)
    assert failed.mean(3 * LATE_MS) is None
