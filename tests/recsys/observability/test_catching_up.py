"""The bounds of catching up, and the sentence about it."""

import pytest

from recsys.observability.catching_up import CatchingUp, catching_up, duration, said


@pytest.mark.parametrize(
    ("behind", "per_s", "state"),
    [
        (999, 0.0, None),
        (1_000, 0.0, CatchingUp(1_000, 0.0, None)),
        (49_999, 5_000.0, None),  # ten seconds of what it reads anyway
        (994_708, 2_500.0, CatchingUp(994_708, 2_500.0, 397.9)),
    ],
)
def test_a_fold_far_behind_catches_up(behind: int, per_s: float, state: CatchingUp | None) -> None:
    assert catching_up(behind, per_s) == state


def test_it_is_said_with_the_rate_and_the_time_left() -> None:
    states = {"sessions": CatchingUp(994_708, 2_500.0, 397.9), "counters": CatchingUp(7_000, 0.0, None)}
    assert said(states) == (
        "catching up: sessions: 994,708 behind, 2,500 a second, 7 min left; "
        "counters: 7,000 behind, 0 a second"
    )
    assert said({}) == ""
    assert [duration(s) for s in (40, 119, 600, 7_199, 9_000)] == [
        "40 s",
        "119 s",
        "10 min",
        "120 min",
        "2.5 h",
    ]
