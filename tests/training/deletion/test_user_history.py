"""Which steps are a line's history: those of epochs that were live, each up to where the next one begins."""

from recsys.events.records import STEPS, Range, Step, pack
from recsys.log.protocol import Append, MemoryLog
from tests.support.training.small_feed import toy_log
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
