"""The newest delays and their percentiles."""

from hypothesis import given
from hypothesis import strategies as st

from recsys.delays import RECENT_MS, Delays


def test_percentiles_are_of_the_newest() -> None:
    delays = Delays(limit=100)
    assert delays.percentile(0.5) is None and len(delays) == 0
    for i in range(1_000):
        delays.add(i)
    assert delays.percentile(0.0) == 900
    assert delays.percentile(0.5) == 950
    assert delays.percentile(0.95) == 995
    assert delays.percentile(1.0) == 999 and len(delays) == 100


def test_what_is_old_and_what_is_to_come_says_nothing() -> None:
    delays = Delays()
    delays.since([], 5)
    now_ms = 10 * RECENT_MS
    delays.since([now_ms - 40, now_ms - RECENT_MS, 0, now_ms + 1, now_ms], now_ms)
    assert len(delays) == 2 and delays.percentile(1.0) == 40


@given(st.lists(st.lists(st.integers(0, 9_000), max_size=30), max_size=20))
def test_batches_are_as_one_after_the_other(batches: list[list[int]]) -> None:
    at_once, singly = Delays(16), Delays(16)
    for batch in batches:
        at_once.since([10_000 - its for its in batch], 10_000)
        for its in batch:
            singly.add(its)
    shares = (0.0, 0.3, 0.5, 0.95, 1.0)
    assert [at_once.percentile(s) for s in shares] == [singly.percentile(s) for s in shares]
    assert len(at_once) == len(singly)
