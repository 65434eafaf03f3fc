"""How long a click takes to be known."""

from recsys.events.hashing import key_of
from recsys.events.records import SampledView
from serving.tracing.freshness import AWAY_MS, FOLLOWED, Freshness, Rate


def views(*pairs: tuple[str, str]) -> list[SampledView]:
    """Views (request, item) as a step's record names them."""
    return [SampledView(key_of(*pair), 2, offset) for offset, pair in enumerate(pairs)]


def test_a_rate_is_over_the_window_alone() -> None:
    rate = Rate(window_ms=10_000)
    assert rate.per_s() == 0.0
    for second in range(60):
        rate.observe(100 * second if second < 30 else 3_000 + 10 * (second - 30), second * 1_000)
    assert rate.per_s() == 10.0


def test_a_rate_begins_anew_where_the_clock_was_set_back() -> None:
    rate = Rate(window_ms=10_000)
    for second in range(20):
        rate.observe(100 * second, 3_600_000 + second * 1_000)
    for second in range(3):
        rate.observe(2_000 + 7 * second, second * 1_000)
        assert rate.per_s() == (7.0 if second else 0.0)


def test_a_click_is_served_once_a_step_has_learned_its_example() -> None:
    fresh = Freshness()
    fresh.acknowledged("r1", 7, 1_000, 200)
    fresh.acknowledged("r1", "v8", 1_010, 1_010)
    fresh.acknowledged("r1", 7, 1_030, 200)  # again
    assert fresh.learned(views(("r9", "v8"), ("r1", "9")), 1_500) == []  # of others
    assert len(fresh.to_served) == 0 and not fresh.learned_views
    step = views(("r9", "v1"), ("r1", "7"))
    assert fresh.learned(step, 1_600) == [("r1", step[1])]
    assert fresh.to_served.percentile(1.0) == 600 and list(fresh.learned_views) == [("r1", "7")]
    fresh.learned(views(("r1", "v8")), 2_010)
    assert fresh.learned(views(("r1", "v8")), 9_999) == []  # again: nothing waits
    assert len(fresh.to_served) == 2 and fresh.to_served.percentile(1.0) == 1_000
    # The client of the first had held it for 800 ms.
    assert fresh.view_to_acknowledged.percentile(1.0) == 800
    assert fresh.view_to_served.percentile(1.0) == 1_400
    assert len(fresh.view_to_acknowledged) == len(fresh.view_to_served) == 2


def test_a_client_that_was_away_is_judged_when_its_view_comes_and_a_slow_model_is_told() -> None:
    fresh = Freshness()
    for request, ended_ms in (("away", 1_000_000 - AWAY_MS), ("here", 999_500), ("past", 1_000_001)):
        fresh.acknowledged(request, "v", 1_000_000, ended_ms)
    fresh.learned(views(("away", "v"), ("here", "v"), ("past", "v")), 1_300_000)
    assert len(fresh.view_to_acknowledged) == len(fresh.view_to_served) == 1
    assert fresh.view_to_served.percentile(0.95, 1_300_000) == 300_500
    assert fresh.view_to_served.percentile(0.95, 1_400_000) is None  # nothing was learned since
    assert len(fresh.to_served) == 3


def test_clicks_that_are_never_learned_are_let_go() -> None:
    fresh = Freshness()
    for i in range(FOLLOWED + 10):
        fresh.acknowledged(f"r{i}", "v", i, i)
    fresh.learned(views(("r0", "v"), (f"r{FOLLOWED + 9}", "v")), 10_000)
    assert len(fresh.to_served) == 1


def test_a_view_that_is_learned_before_it_is_acknowledged_is_measured_at_once() -> None:
    fresh = Freshness()
    fresh.learned(views(("r1", "7")), 990)
    fresh.acknowledged("r1", 7, 1_000, 900)
    assert fresh.to_served.percentile(1.0) == 0 and list(fresh.learned_views) == [("r1", "7")]
    assert fresh.view_to_served.percentile(1.0) == 100
    fresh.learned(views(("r1", "7")), 80_000)
    assert len(fresh.to_served) == 1


def test_views_that_are_never_acknowledged_here_are_let_go() -> None:
    fresh = Freshness()
    fresh.learned(views(*(("r1", str(n)) for n in range(FOLLOWED + 1))), 1_000)
    for item in (0, 1):
        fresh.acknowledged("r1", item, 1_000, 900)
    assert list(fresh.learned_views) == [("r1", "1")]
