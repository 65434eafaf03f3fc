"""Folds that share an interpreter: one turn at a time, a rest after one that moved little."""

import logging
import threading
from collections.abc import Callable

import pytest

from recsys.log.protocol import LogUnavailable
from recsys.process.fold import PartFold, follow
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.turn_pace import TurnPace


@pytest.mark.parametrize(
    ("moved", "rests"), [(1, True), (499, True), (500, False), (0, False), (None, False)]
)
def test_only_a_turn_that_moved_little_is_followed_by_a_rest(moved: int | None, rests: bool) -> None:
    rested: list[float] = []
    assert TurnPace(rested.append).run(lambda: moved) == moved
    assert bool(rested) == rests
    assert all(0 <= rest_s <= 0.03 for rest_s in rested)


def test_turns_of_two_folds_never_overlap_and_the_lock_is_free_after_one_that_failed() -> None:
    pace = TurnPace(lambda _: None)
    running, most = 0, 0

    def turn() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threading.Event().wait(0.001)
        running -= 1
        return 1

    def fail() -> int:
        raise ValueError

    with pytest.raises(ValueError):
        pace.run(fail)
    threads = [threading.Thread(target=lambda: [pace.run(turn) for _ in range(20)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


class _Pace(TurnPace):
    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.seen: list[int | None] = []

    def run(self, turn: Callable[[], int | None]) -> int | None:
        self.seen.append(super().run(turn))
        return self.seen[-1]


class _Fold(PartFold):
    """Moves one record, then the log is unavailable, then it stops its part."""

    def __init__(self, stop: Stop) -> None:
        self.stop, self.turns = stop, 0

    def _turn(self) -> int:
        self.turns += 1
        if self.turns == 2:
            raise LogUnavailable("away")
        if self.turns == 3:
            self.stop.set()
        return 1

    def _restore(self) -> None:
        pass

    def report(self, beat: Heartbeat, moved: int) -> None:
        pass

    def report_delays(self, beat: Heartbeat) -> None:
        pass


def test_a_part_with_a_pace_runs_each_turn_in_it_also_those_that_fail() -> None:
    pace = _Pace()
    stop = Stop(pace=pace)
    follow(_Fold(stop), stop, logging.getLogger(__name__))
    assert pace.seen == [1, None, 1]
