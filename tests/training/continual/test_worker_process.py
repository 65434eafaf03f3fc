"""The loop of a worker's process: an unavailable log is waited for, a lost or damaged one ends it."""

from types import SimpleNamespace
from typing import Any

import pytest

from recsys.log.protocol import LogDamaged, LogLost, LogUnavailable

pytestmark = pytest.mark.slow  # it imports Ray Train


def learn(turns: list[int | Exception], waits: list[Exception | None]) -> tuple[int, int, int]:
    """Following epoch, number of steps and of pauses of a worker. ``turns`` and ``waits`` are outcomes; the
    epoch ends after the last turn."""
    from training.continual import worker_process

    pauses, worker = list[None](), SimpleNamespace(step=0)

    def turn() -> int:
        outcome = turns.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        worker.step += bool(outcome)
        return outcome

    def wait() -> None:
        if error := waits.pop(0):
            raise error

    worker.turn = turn
    ended: Any = SimpleNamespace(following=lambda step: None if turns else 8, left_for=lambda: None)
    fake: Any = worker
    following = worker_process._learn(fake, 7, ended, None, wait, lambda: pauses.append(None))
    return following, worker.step, len(pauses)


def test_a_worker_goes_on_once_the_log_is_available_again() -> None:
    away = LogUnavailable("a broker fails over")
    assert learn([64, away, away, 64, 0, 64, 0], [None]) == (8, 3, 2)
    assert learn([64, 0, 64, 0], [away]) == (8, 2, 1)


@pytest.mark.parametrize("error", [LogLost("gone"), LogDamaged("steps/0", "a record")])
def test_a_worker_ends_where_the_log_is_lost_or_damaged(error: Exception) -> None:
    with pytest.raises(type(error)):
        learn([64, error, 64], [])
