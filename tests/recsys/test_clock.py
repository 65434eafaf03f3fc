import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.clock import Clock, Pace, is_due, machine_ms, parse_time_ms, timer_of

HOUR_MS = 3_600_000
S = 1_000_000_000
START_MS = 1_577_836_800_000  # 2020


def pace(speed: float = 100.0, **changes: float) -> Pace:
    values = {"machine_ns": 10 * S, "event_ms": START_MS, "until_ns": 70 * S}
    return Pace(speed=speed, **(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now_ms", "due"),
    [(1_000, True), (1_001, True), (999, False), (500, False), (499, True), (1_000 - HOUR_MS, True)],
)
def test_what_is_done_every_so_often_is_due_in_time_and_after_the_clock_was_set_back(
    now_ms: int, due: bool
) -> None:
    assert is_due(now_ms, 1_000, 500) is due


@pytest.mark.parametrize(
    ("now_s", "speed", "passed_ms"),
    [(10, 100.0, 0), (10.001, 2000.0, 2_000), (11, 100.0, 100_000), (12, 0.5, 1_000), (60, 0.0, 0)],
)
def test_event_time_passes_at_the_speed_of_its_pace(now_s: float, speed: float, passed_ms: int) -> None:
    clock = Clock(lambda: pace(speed), lambda: int(now_s * S))
    assert clock() == START_MS + passed_ms


def test_event_time_stands_still_at_the_end_of_its_lease_at_its_limit_and_before_it_begins() -> None:
    for now_s in (70, 71, 1_000):
        assert pace().at(now_s * S) == START_MS + 6_000_000
    assert pace(limit_ms=START_MS + 500).at(11 * S) == START_MS + 500
    assert pace().at(3 * S) == START_MS


def test_a_pace_that_would_go_back_is_waited_for() -> None:
    now_s, paces = [20], [pace()]
    clock = Clock(lambda: paces[-1], lambda: now_s[0] * S)
    assert clock() == START_MS + 1_000_000
    paces.append(pace(machine_ns=20 * S, event_ms=START_MS + 900_000))
    assert clock() == START_MS + 1_000_000
    now_s[0] = 21
    assert clock() == START_MS + 1_000_000
    now_s[0] = 22
    assert clock() == START_MS + 1_100_000


_paces = st.builds(
    pace,
    st.floats(0, 5_000),
    machine_ns=st.integers(0, 100 * S),
    event_ms=st.floats(START_MS - 1e6, START_MS + 1e6),
    until_ns=st.integers(0, 200 * S),
    limit_ms=st.floats(START_MS - 1e6, START_MS + 1e9),
)


@given(st.lists(st.tuples(_paces, st.integers(0, 100 * S)), min_size=2, max_size=20))
def test_event_time_never_goes_back_whatever_the_paces_and_the_machines_clock(
    seen: list[tuple[Pace, int]],
) -> None:
    newest = iter(seen)
    now: list[tuple[Pace, int]] = []
    clock = Clock(lambda: now[-1][0], lambda: now[-1][1])
    times = list[int]()
    for each in newest:
        now.append(each)
        times.append(clock())
        assert times[-1] >= int(each[0].at(each[1]))
    assert times == sorted(times)


def test_a_parts_timer_is_its_clock_unless_event_time_has_another_pace() -> None:
    def clock() -> int:
        return 7

    assert timer_of(clock) is clock and timer_of(machine_ms) is machine_ms
    assert timer_of(Clock(pace, lambda: 11 * S))() == 11_000


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2020-01-01", START_MS),
        ("2020-01-01T01:00+01:00", START_MS),
        (str(START_MS), START_MS),
        ("2020-01-01T00:00:00Z", START_MS),
    ],
)
def test_times_are_epoch_milliseconds_or_iso(text: str, time_ms: int) -> None:
    assert parse_time_ms(text) == time_ms
    with pytest.raises(ValueError):
        parse_time_ms(f"{text}?")
