"""What the trainer says of itself is read from the deltas, and what can't be read of them is passed over."""

from recsys.log import Append, MemoryLog
from recsys.loops import Heartbeat
from recsys.records import DELTAS, Delta, pack, topics
from training.continual.progress import Progress


def delta(step: int, part: int = 0) -> Append:
    metrics = {"examples": 4.0, "loss.click": 2.0}
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
    progress.tell(beat)
    said = beat.now()
    assert said.counters["steps"] == 2 and said.counters["examples"] == 8
    assert said.gauges["unreadable_deltas"] == 2
    assert said.gauges["step"] == 2 and said.gauges["loss.click"] == 0.5
    assert said.gauges["learned_after_s"] == 3.0
