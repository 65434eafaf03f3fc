import pytest

from recsys.clock import is_due

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("now_ms", "due"),
    [
        (1_000, True),
        (1_001, True),
        (999, False),
        (500, False),
        (499, True),
        (1_000 - HOUR_MS, True),
    ],
)
def test_what_is_done_every_so_often_is_due_in_time_and_after_the_clock_was_set_back(
    now_ms: int, due: bool
) -> None:
    assert is_due(now_ms, 1_000, 500) is due
