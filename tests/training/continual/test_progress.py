"""What the trainer says of itself is read from the deltas, and what can't be read of them is passed over."""

import msgspec
import pytest

from recsys.events.records import DELTAS, EXAMPLES, STEPS, Delta, ErasedExample, Range, Step, pack, topics
from recsys.log.protocol import Append, MemoryLog
from recsys.process.part_process import Heartbeat
from tests.support.training.small_feed import START_MS, example
from training.continual.progress import Progress


def delta(step: int, part: int = 0, more: dict[str, float] | None = None) -> Append:
    metrics = {"examples": 4.0, "loss.click": 2.0} | (more or {})
    told = Delta(
        line="main", epoch=0, part=part, parts=2, step=step, base_step=step - 1,
        time_ms=1_000 * step, metrics=metrics if part == 0 else {},
    )  # fmt: skip
    return Append(0, b"main", pack(told))


def test_steps_are_counted_once_and_what_cannot_be_read_is_passed_over() -> None:
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    progress, beat = Progress(log, "main"), Heartbeat("trainer")
    nested = b"\x91" * 100_000  # deeper than any decoder goes
    log.append(DELTAS, [delta(1), delta(1, 1), Append(0, b"", b"\xc1"), Append(0, b"", nested)])
    log.append(DELTAS, [delta(2), delta(1), delta(2, 1)])  # a line that went back repeats a step
    assert progress.turn(5_000) == 2 and progress.turn(5_000) == 0
    progress.report(beat)
    said = beat.now()
    assert said.counters["steps"] == 2 and said.counters["examples"] == 8
    assert said.gauges["unreadable_deltas"] == 2
    assert said.gauges["step"] == 2 and said.gauges["loss.click"] == 0.5
    assert said.gauges["learned_after_s"] == 3.0
    assert "view_to_learned_p95_ms" not in said.gauges


def test_a_table_whose_rows_do_not_move_raises_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    progress, beat = Progress(log, "main"), Heartbeat("trainer")

    def learned(steps: range, **metrics: float) -> None:
        moved = {"moved.features": 9.0, "moved.items": 0.0, "happened.click": 1.0} | metrics
        log.append(DELTAS, [delta(step, 0, moved) for step in steps])
        log.append(DELTAS, [delta(step, 1) for step in steps])
        progress.turn(5_000)

    learned(range(1, 100))
    learned(range(100, 120), **{"happened.click": 0.0})  # nothing to learn
    assert not caplog.records and progress.still == {"features": 0, "items": 99}
    learned(range(120, 124))
    assert ["items" in record.getMessage() for record in caplog.records] == [True]
    progress.report(beat)
    assert beat.now().gauges["still_steps.items"] == 103
    learned(range(124, 125), **{"moved.items": 1.0})
    assert progress.still["items"] == 0


def test_how_long_views_took_is_told_of_some_examples_a_second() -> None:
    log = MemoryLog()
    for topic in topics(2):
        log.create(topic)
    progress, beat = Progress(log, "main"), Heartbeat("trainer")
    ended = [example(n, view_ended_ms=START_MS + 100 * n) for n in range(10)]
    others = [example(20), example(21, view_ended_ms=START_MS, correction=True)]
    for partition, its in enumerate((ended, others)):
        log.append(EXAMPLES, [Append(partition, b"", pack(one)) for one in its])
    log.append(
        EXAMPLES, [Append(1, b"", b"\xc1"), Append(1, b"", pack(ErasedExample(sequence=1, closed_ms=1)))]
    )
    ranges = [Range(0, 0, 10), Range(1, 0, 4)]
    step = Step(line="main", epoch=0, step=1, ranges=ranges, examples=14, lanes=4, time_ms=1, config="")
    log.append(STEPS, [Append(0, b"main", pack(step))])
    log.append(DELTAS, [delta(1)])
    progress.turn(START_MS + 2_000)
    progress.report(beat)
    assert len(progress.delays) == 10
    assert beat.now().gauges["view_to_learned_p95_ms"] == 2_000
    for number in range(2, 14):
        log.append(STEPS, [Append(0, b"main", pack(msgspec.structs.replace(step, step=number)))])
        log.append(DELTAS, [delta(number)])
        progress.turn(START_MS + 2_000 + 10 * number)
    assert len(progress.delays) == 89  # of the first 128 places in a second
    log.append(DELTAS, [delta(14)])  # whose step isn't there
    progress.turn(START_MS + 3_000)
    assert len(progress.delays) == 89
    # Minutes behind, it shows no more how good it was; and nothing at all where it stands still.
    log.append(STEPS, [Append(0, b"main", pack(msgspec.structs.replace(step, step=14)))])
    log.append(STEPS, [Append(0, b"main", pack(msgspec.structs.replace(step, step=15)))])
    log.append(DELTAS, [delta(15)])
    progress.turn(START_MS + 300_000)
    progress.report(beat)
    assert beat.now().gauges["view_to_learned_p95_ms"] == 60_000
    progress.turn(START_MS + 400_000)
    progress.report(beat)
    assert "view_to_learned_p95_ms" not in beat.now().gauges
