"""Which steps are a line's history: those of epochs that were live, each up to where the next one begins."""

from pathlib import Path

import numpy as np

from parameter_server.storage.snapshots import write_part
from recsys.events.records import STEPS, Range, Step, pack
from recsys.log.protocol import Append, MemoryLog
from tests.support.training.small_feed import toy_log
from training.deletion.unlearn import _snapshot_before
from training.deletion.user_history import UserHistory
from training.lines.control import ControlReader, append_live_record, live_epoch, live_epochs
from training.steps.sequencer_loop import last_position


def cut(log: MemoryLog, epoch: int, step: int, partition: int, start: int, stop: int) -> None:
    record = Step(
        line="main", epoch=epoch, step=step, ranges=[Range(partition, start, stop)],
        examples=stop - start, lanes=4, time_ms=0, config="",
    )  # fmt: skip
    log.append(STEPS, [Append(0, b"main", pack(record))])


def half_made() -> MemoryLog:
    """Epoch 1 ended in the middle of its first records; the line went on in epoch 0, and then in epoch 2."""
    log = toy_log()
    cut(log, 0, 1, 0, 0, 10)
    cut(log, 0, 2, 0, 10, 20)
    cut(log, 1, 1, 0, 0, 10)
    cut(log, 0, 3, 1, 0, 8)
    cut(log, 2, 3, 1, 0, 8)
    append_live_record(log, "main", 0, "the first line", 0)
    append_live_record(log, "main", 2, "a user was unlearned", 1, base_step=2)
    return log


def test_history_is_that_of_the_epochs_that_were_live() -> None:
    log = half_made()
    assert live_epochs(log) == [0, 0, 2] and live_epoch(log) == 2
    control = ControlReader(log)
    control.turn()
    lives = control.lifecycle.lives
    past = UserHistory.read(log, "main", lives, {0: 0}, {0: 15})
    assert (past.firsts, past.last, past.newest_epoch) == ({0: 1, 2: 3}, 3, 2)
    assert (past.first_step(), past.fixed_step()) == (1, 2)
    found = [(step.epoch, step.step) for step in past.records(log, 1)]
    assert found == [(0, 2), (2, 3)]
    assert UserHistory.read(log, "main", lives, {0: 20}, {}).first_step() is None
    assert UserHistory.read(log, "main", lives, {0: 19}, {}).first_step() == 2


def test_steps_go_on_behind_what_was_learned_and_not_where_a_half_made_epoch_ended() -> None:
    assert last_position(half_made(), "main", 2, 2) == (3, {0: 20, 1: 8}, 0)


def test_an_epoch_that_was_rolled_back_is_no_history_though_it_began_before_the_way_back(
    tmp_path: Path,
) -> None:
    """Epoch 0 went on while a candidate took over from step 2; its last snapshot, of step 3, is the way back.
    To unlearn whoever came with step 3, the candidate's weights of step 2 are no start."""
    log = toy_log()
    for epoch, step in ((0, 1), (0, 2), (0, 3), (1, 3), (1, 4), (2, 4)):
        cut(log, epoch, step, 0, 10 * step, 10 * step + 10)
    append_live_record(log, "main", 0, "the first line", 0)
    append_live_record(log, "main", 1, "promoted", 1, base_step=2)
    append_live_record(log, "main", 2, "rolled back", 2, base_step=3)
    control = ControlReader(log)
    control.turn()
    past = UserHistory.read(log, "main", control.lifecycle.lives, {0: 30}, {})
    assert past.firsts == {0: 1, 2: 4} and past.first_step() == 3
    assert [(step.epoch, step.step) for step in past.records(log, 1)] == [(0, 2), (0, 3), (2, 4)]
    for epoch, step in ((0, 1), (1, 2)):
        write_part(tmp_path, "main", epoch, step, 0, 1, {"a": np.zeros(1)}, {"step": step})
    start = _snapshot_before(tmp_path, past, 3)
    assert start is not None and (start.epoch, start.step) == (0, 1)
