"""Whoever looks back from a log's end finds what is there, whatever gaps offsets have and however short reads
are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.experiment_power.population import _span
from recsys.events.event_types import Tick, decode, encode
from recsys.events.records import CONTROL, EVENTS, EXAMPLES, STEPS, Range, Step, pack
from recsys.log.protocol import Append, MemoryLog, Topic, newest_first
from runtime.supervision.system_status import Version, last_step
from tests.support.simulation.gappy_log import GappyLog
from tests.support.training.small_feed import example
from training.candidates.space_keeper import ends_before
from training.joining.joiner_loop import sequences_after
from training.steps.lineage import last_steps, newest_step
from training.steps.sequencer_loop import last_position
from training.steps.ticker import Ticker

STEPS_CUT = 300


def gappy(**partitions: int) -> GappyLog:
    log = GappyLog()
    for topic, count in partitions.items():
        log.create(Topic(topic, count))
    return log


@pytest.fixture
def cut() -> GappyLog:
    """Steps of two partitions: the first ten touch the second, too."""
    log = gappy(**{STEPS: 1, CONTROL: 1})
    for n in range(1, STEPS_CUT + 1):
        ranges = [Range(0, 4 * n - 4, 4 * n)] + [Range(1, n - 1, n)] * (n <= 10)
        step = Step(line="main", epoch=0, step=n, ranges=ranges, examples=4, lanes=4, time_ms=n, config="")
        log.append(STEPS, [Append(0, b"main", pack(step))])
    return log


@given(
    count=st.integers(0, 60),
    bounds=st.tuples(st.integers(0, 430), st.integers(0, 430)),
    first=st.integers(1, 50),
    most=st.integers(1, 50),
)
def test_all_records_of_a_range_come_once_the_newest_first(count, bounds, first, most):
    log, begin = gappy(t=1), min(bounds)
    stop = min(max(bounds), 3 + 7 * count)
    offsets = log.append("t", [Append(0, b"", b"%d" % n) for n in range(count)])
    found = [r.offset for r in newest_first(log, "t", 0, begin, stop, first, most)]
    assert found == [at for at in reversed(offsets) if begin <= at < stop]
    assert [r.offset for r in newest_first(log, "t", 0)] == offsets[::-1]


def test_what_retention_took_is_not_asked_for():
    log = MemoryLog()
    log.create(Topic("t"))
    log.append("t", [Append(0, b"", b"")] * 20)
    log.trim("t", 0, 15)
    assert [r.offset for r in newest_first(log, "t", 0)] == [19, 18, 17, 16, 15]


def test_a_tick_goes_on_from_the_newest_event_behind_a_gap():
    log, clock = gappy(**{EVENTS: 1}), [0]
    log.append(EVENTS, [Append(0, b"", encode(Tick(time_ms=ms))) for ms in (500, 700, 9_000)])
    ticker = Ticker(log, lambda: clock[0])
    for clock[0] in range(100_000, 101_501, 250):
        ticker.turn()
    assert decode(next(newest_first(log, EVENTS, 0)).value).time_ms == 10_000
    clock[0] += 100
    log.append(EVENTS, [Append(0, b"", b"nonsense")] * 2)
    for clock[0] in range(102_000, 104_001, 250):
        ticker.turn()  # what can't be read is passed over
    assert decode(next(newest_first(log, EVENTS, 0)).value).time_ms > 10_000


def test_status_knows_the_step(cut):
    assert last_step(cut) == Version("main", 0, STEPS_CUT)
    assert last_step(gappy(**{STEPS: 1})) is None


def test_the_newest_steps_are_found(cut):
    assert newest_step(cut, "main", 0) == STEPS_CUT
    found = [step.step for step in last_steps(cut)]
    assert found == list(range(STEPS_CUT - 63, STEPS_CUT + 1))


def test_a_line_goes_on_where_it_was(cut):
    assert last_position(cut, "main", 0, 2) == (STEPS_CUT, {0: 4 * STEPS_CUT, 1: 10}, 0)


def test_it_is_known_where_a_step_ends(cut):
    among = range(cut.begin(STEPS, 0), cut.end(STEPS, 0))
    assert ends_before(cut, "main", {0}, 200, among, {0, 1}) == {0: 800, 1: 10}


def test_examples_that_stand_there_are_known():
    log = gappy(**{EXAMPLES: 1})
    log.append(EXAMPLES, [Append(0, b"", pack(example(n))) for n in range(1, 8)])
    assert sequences_after(log, 0, 3) == {4, 5, 6, 7, 8}  # example n has number n + 1
    closed = [example(n).closed_ms for n in (1, 7)]
    assert _span(log) == (min(closed), max(closed))
