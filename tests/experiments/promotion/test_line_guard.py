"""When a line is behind the simple lists beside it, or learns no positive: and when it isn't."""

from collections.abc import Callable

import numpy as np
import pytest

from experiments.promotion.line_guard import LEAST_EXAMPLES, WINDOW_MS, LineFault, LineGuard

ITEMS = 200
EVERY_MS = 3_000
SHARES = 1 / np.arange(1, ITEMS + 1)
SHARES /= SHARES.sum()
Draw = np.random.Generator
List = Callable[[Draw, int], list[int]]


def by_chance(draw: Draw, wanted: int) -> list[int]:
    return [int(item) for item in draw.permutation(ITEMS)[:10]]


def good(draw: Draw, wanted: int) -> list[int]:
    """Has what is wanted in six of ten lists."""
    items = by_chance(draw, wanted)
    return [wanted, *items[1:]] if draw.random() < 0.6 else items


def popular(draw: Draw, wanted: int) -> list[int]:
    return list(range(10))


def holds(
    lists: List, windows: float, users: int = 300, engages: float = 1.0, late_ms: int = 1_000,
    guard: LineGuard | None = None, start_ms: int = 10**12, seed: int = 1,
) -> list[LineFault]:  # fmt: skip
    """Viewers take items by their popularity, which our lists know or don't."""
    draw, guard, faults = (np.random.default_rng(seed), guard or LineGuard(), list[LineFault | None]())
    for n in range(int(windows * WINDOW_MS / EVERY_MS)):
        now_ms, user = start_ms + n * EVERY_MS, f"u{draw.integers(users)}"
        wanted = int(draw.choice(ITEMS, p=SHARES))
        guard.serve(user, f"r{n}", lists(draw, wanted), now_ms)
        if draw.random() < engages:
            faults.append(guard.engage(user, wanted, now_ms + late_ms))
    return [fault for fault in faults if fault is not None]


def test_a_line_by_chance_is_behind_from_the_first_of_two_windows_on() -> None:
    hold, *_ = holds(by_chance, 3.2)
    assert hold.since_ms == 10**12 + 1_000 and not hold.was_well
    assert "popularity" in hold.reason and "allowed -0.02" in hold.reason
    assert hold.evidence["high"] < -0.02 and hold.evidence["cases"] >= 200


def test_a_line_that_turns_bad_was_well_before() -> None:
    guard = LineGuard()
    assert holds(good, 2.5, guard=guard) == []
    bad_ms = 10**12 + int(2.5 * WINDOW_MS)
    hold, *_ = holds(by_chance, 4, guard=guard, start_ms=bad_ms)
    assert hold.was_well and bad_ms - WINDOW_MS < hold.since_ms < bad_ms + 2 * WINDOW_MS


def test_a_line_that_is_as_good_as_before_has_nothing_to_return_to() -> None:
    """A fashion lifts popularity above it."""
    draw, guard, faults = np.random.default_rng(1), LineGuard(), list[LineFault | None]()
    for n in range(int(6 * WINDOW_MS / EVERY_MS)):
        now_ms, user = 10**12 + n * EVERY_MS, f"u{draw.integers(300)}"
        is_fashion = n > 2.5 * WINDOW_MS / EVERY_MS
        wanted = int(draw.integers(10) if is_fashion else 100 + draw.integers(ITEMS))
        guard.serve(user, f"r{n}", good(draw, wanted), now_ms)
        faults.append(guard.engage(user, wanted, now_ms + 1_000))
    hold, *_ = filter(None, faults)
    assert hold.kind == "behind" and not hold.was_well


def test_one_window_behind_is_no_reason() -> None:
    assert holds(by_chance, 1.9) == []


def test_a_good_line_is_never_held() -> None:
    assert holds(good, 10) == []


def test_lists_that_are_popularity_itself_raise_no_false_alarm_in_100_windows() -> None:
    assert holds(popular, 100) == []


def test_two_equal_lists_raise_no_false_alarm_in_100_windows() -> None:
    """Our lists hit as often as popularity does, but by chance of their own."""
    share = SHARES[:10].sum()

    def equal(draw: Draw, wanted: int) -> list[int]:
        return [wanted] if draw.random() < share else []

    assert holds(equal, 100) == []


@pytest.mark.parametrize("case", [{"users": 40}, {"engages": 0.01}, {"late_ms": 600_001}])
def test_too_few_cases_or_users_and_late_engagements_never_hold(case: dict[str, float]) -> None:
    assert holds(by_chance, 5, **case) == []  # type: ignore[arg-type]


def test_few_cases_extend_the_window_until_they_are_enough() -> None:
    windows = 2 * 200 / (WINDOW_MS / EVERY_MS * 0.1)
    assert windows > 10
    assert holds(by_chance, windows + 8, engages=0.1) != []


def test_lists_that_are_only_read_never_hold() -> None:
    guard = LineGuard()
    assert holds(by_chance, 10, engages=0, guard=guard) == []
    assert guard.learn(10 * LEAST_EXAMPLES, 0, 10**12) is None


def test_a_client_that_repeats_an_engagement_is_one_case() -> None:
    guard = LineGuard()
    guard.serve("u", "r", ["a"], 0)
    for _ in range(3):
        guard.engage("u", "b", 1)
    assert guard.cases == 1


@pytest.mark.parametrize(
    ("request_id", "hits", "cases"), [("r2", [0, 1], 2), ("", [0, 0], 2), ("r0", [], 0), ("r9", [], 0)]
)
def test_an_engagement_is_a_case_of_the_list_that_it_names(
    request_id: str, hits: list[int], cases: int
) -> None:
    guard = LineGuard()
    for n in range(6):
        guard.serve("u", f"r{n}", ["b" if n == 2 else "a"], n)
    for item, hit in zip(("c", "b"), hits or (0, 0), strict=True):
        guard.engage("u", item, 10, request_id)
        assert guard._window._ours == hit
    assert guard.cases == cases


def test_a_short_list_is_compared_with_as_few_items_of_the_simple_lists() -> None:
    guard = LineGuard()
    for n, item in enumerate(("b", "a", "a")):
        guard.engage(f"v{n}", item, n)
    for n, items in enumerate((["c"], ["c", "d"])):
        guard.serve("u", f"r{n}", items, 10)
        guard.engage("u", "b", 11)
        assert guard._window._hits["popularity"] == n


def engaged(guard: LineGuard, times: int) -> list[LineFault | None]:
    return [guard.engage(f"u{n}", "a", 10) for n in range(times)]


def test_no_positive_for_long_while_engagements_come_is_a_reason() -> None:
    guard = LineGuard()
    guard.learn(100, 1, 5)
    assert guard.learn(LEAST_EXAMPLES, 0, 6) is None
    assert engaged(guard, 49) == [None] * 49
    (hold,) = engaged(guard, 1)
    assert hold is not None and hold.was_well and hold.since_ms == 5
    assert f"{LEAST_EXAMPLES} examples without a positive one while 50" in hold.reason
    assert engaged(guard, 50) == [None] * 50, "it is counted anew"


def test_a_positive_begins_the_count_anew() -> None:
    guard = LineGuard()
    guard.learn(LEAST_EXAMPLES - 1, 0, 6)
    engaged(guard, 60)
    guard.learn(10, 1, 7)
    assert guard.learn(LEAST_EXAMPLES, 0, 8) is None


def test_another_epoch_is_judged_by_its_own_windows() -> None:
    guard = LineGuard()
    assert holds(by_chance, 1.9, guard=guard) == []
    guard.restart()
    assert holds(by_chance, 1.9, guard=guard, start_ms=10**12 + 2 * WINDOW_MS) == []
