from recsys.events.control_records import Live
from recsys.events.records import CONTROL, EXAMPLES, STEPS, Range, Step, pack, topics
from recsys.log.protocol import Append, MemoryLog
from training.lines.control import ControlReader
from training.steps.lineage import Lineage
from training.steps.sequencer_loop import EpochEnd

FIRST = Live(line="main", epoch=0)
PROMOTED = Live(line="main", epoch=1, base_step=3, parent_epoch=0, candidate="c1")
BACK = Live(line="main", epoch=2, base_step=2, parent_epoch=0)
BACK_LATER = Live(line="main", epoch=2, base_step=4, parent_epoch=0)  # epoch 0 took a last snapshot


def log_of(*numbers: tuple[int, int]) -> MemoryLog:
    """Records of (epoch, step), and what ``control`` says of the first line."""
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    say(log, FIRST)
    for epoch, step in numbers:
        cut(log, epoch, step)
    return log


def say(log: MemoryLog, said: Live) -> None:
    log.append(CONTROL, [Append(0, b"", pack(said))])


def cut(log: MemoryLog, epoch: int, step: int) -> None:
    record = Step(
        line="main", epoch=epoch, step=step, ranges=[Range(0, step, step + 1)], examples=1,
        lanes=1, time_ms=step, config="",
    )  # fmt: skip
    log.append(STEPS, [Append(0, b"main", pack(record))])


def test_a_step_is_that_of_the_newest_epoch_that_begins_before_it() -> None:
    log = log_of((0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (1, 5), (2, 3), (2, 4))
    for lives, epochs in (
        ([FIRST], [0, 0, 0, 0, None]),
        ([FIRST, PROMOTED], [0, 0, 0, 1, 1]),
        ([FIRST, PROMOTED, BACK], [0, 0, 2, 2, None]),
        ([FIRST, PROMOTED, BACK_LATER], [0, 0, 0, 0, None]),
    ):
        lineage = Lineage(log, "main", lives)
        found = [lineage.record(step) for step in range(1, 6)]
        assert [its.epoch if its else None for its in found] == epochs


def test_an_epoch_ends_for_whom_has_learned_its_last_step_and_only_once_the_next_has_begun() -> None:
    log = log_of((0, 1), (0, 2))
    end = EpochEnd(log, "main", 0)
    assert end.following(2) is None
    say(log, PROMOTED)
    assert end.following(2) is None  # the sequencer may still write a step of this epoch
    cut(log, 0, 3)
    assert end.following(2) is None
    cut(log, 1, 4)
    assert end.following(2) is None
    assert end.following(3) == 1


def test_an_epoch_that_never_came_to_be_live_ends_nothing() -> None:
    log = log_of((0, 1), (5, 1))
    assert EpochEnd(log, "main", 0).following(1) is None


def test_control_that_cannot_be_read_is_passed_over() -> None:
    log = log_of()
    log.append(CONTROL, [Append(0, b"", b"\xc1")])
    say(log, PROMOTED)
    control = ControlReader(log)
    assert control.turn() == [FIRST, PROMOTED] and control.turn() == []
    assert control.live_epoch("main") == 1 and control.live_epoch("other", 4) == 4
    assert log.partitions(EXAMPLES) == 1
