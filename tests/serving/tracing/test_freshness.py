"""How long a click takes to be known."""

from recsys.events.records import Range
from serving.tracing.freshness import AWAY_MS, FOLLOWED, Freshness, Rate


def test_a_rate_is_over_the_window_alone() -> None:
    rate = Rate(window_ms=10_000)
    assert rate.per_s() == 0.0
    for second in range(60):
        rate.observe(100 * second if second < 30 else 3_000 + 10 * (second - 30), second * 1_000)
    assert rate.per_s() == 10.0


def test_a_click_is_served_once_a_step_has_learned_its_example() -> None:
    fresh = Freshness()
    fresh.acknowledged("r1", 7, 1_000, 200)
    fresh.acknowledged("r1", "v8", 1_010, 1_010)
    fresh.acknowledged("r1", 7, 1_030, 200)  # again
    fresh.example(2, 40, "r1", "7")
    fresh.example(2, 41, "r9", "v8")  # another request
    fresh.example(0, 5, "r1", "v8")
    fresh.learned([Range(2, 0, 40)], 1_500)
    assert len(fresh.to_served) == 0 and not fresh.learned_views
    fresh.learned([Range(2, 40, 60), Range(1, 0, 99)], 1_600)
    assert fresh.to_served.percentile(1.0) == 600 and list(fresh.learned_views) == [("r1", "7")]
    fresh.learned([Range(0, 3, 6)], 2_010)
    fresh.learned([Range(0, 3, 6)], 9_999)  # again: nothing waits
    assert len(fresh.to_served) == 2 and fresh.to_served.percentile(1.0) == 1_000
    # The client of the first had held it for 800 ms.
    assert fresh.view_to_acknowledged.percentile(1.0) == 800
    assert fresh.view_to_served.percentile(1.0) == 1_400
    assert len(fresh.view_to_acknowledged) == len(fresh.view_to_served) == 2


def test_a_client_that_was_away_is_judged_when_its_view_comes_and_a_slow_model_is_told() -> None:
    fresh = Freshness()
    for request, ended_ms in (
        ("away", 1_000_000 - AWAY_MS),
        ("here", 999_500),
        ("past", 1_000_001),
    ):
        fresh.acknowledged(request, "v", 1_000_000, ended_ms)
    for offset, request in enumerate(("away", "here", "past")):
        fresh.example(0, offset, request, "v")
    fresh.learned([Range(0, 0, 3)], 1_300_000)
    assert len(fresh.view_to_acknowledged) == len(fresh.view_to_served) == 1
    assert fresh.view_to_served.percentile(0.95, 1_300_000) == 300_500
    assert fresh.view_to_served.percentile(0.95, 1_400_000) is None  # nothing was learned since
    assert len(fresh.to_served) == 3


def test_clicks_that_are_never_learned_are_let_go() -> None:
    fresh = Freshness()
    for i in range(FOLLOWED + 10):
        fresh.acknowledged(f"r{i}", "v", i, i)
    fresh.example(0, 0, "r0", "v")
    fresh.example(0, 1, f"r{FOLLOWED + 9}", "v")
    fresh.learned([Range(0, 0, 2)], 10_000)
    assert len(fresh.to_served) == 1


def test_an_example_that_is_read_before_its_view_is_acknowledged_is_measured() -> None:
    fresh = Freshness()
    fresh.example(2, 40, "r1", "7")
    fresh.acknowledged("r1", 7, 1_000, 900)
    fresh.learned([Range(2, 40, 41)], 1_060)
    assert fresh.to_served.percentile(1.0) == 60 and list(fresh.learned_views) == [("r1", "7")]
    fresh.example(2, 90, "r1", "7")  # a correction, long after
    fresh.learned([Range(2, 41, 91)], 80_000)
    assert len(fresh.to_served) == 1


def test_examples_whose_view_never_comes_are_let_go() -> None:
    fresh = Freshness()
    for offset in range(FOLLOWED + 1):
        fresh.example(0, offset, "r1", str(offset))
    for item in (0, 1):
        fresh.acknowledged("r1", item, 1_000, 900)
    fresh.learned([Range(0, 0, 9)], 1_060)
    assert list(fresh.learned_views) == [("r1", "1")]
