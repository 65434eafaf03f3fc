import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config.system_config import StepConfig
from recsys.events.hashing import key_of
from recsys.events.records import Range
from training.steps.sequencer import LANE_EXAMPLES, SAMPLED_PER_S, Sequencer, lanes_of

CONFIG = StepConfig(examples=4, every_ms=100, soonest_ms=40, lanes=2)


def sequencer(**changes: object) -> Sequencer:
    return Sequencer(CONFIG, line="main", epoch=2, digest="d", **changes)  # type: ignore[arg-type]


def test_a_step_is_cut_when_enough_examples_wait() -> None:
    cutter = sequencer()
    for offset in range(3):
        cutter.arrived(0, offset, 10 * offset, now_ms=0)
    assert cutter.cut(99) is None
    cutter.arrived(1, 0, 5, now_ms=1)
    cutter.arrived(1, 1, 7, now_ms=1)
    step = cutter.cut(1)
    assert step is not None
    assert (step.line, step.epoch, step.step, step.config, step.lanes) == ("main", 2, 1, "d", 2)
    assert (step.examples, step.time_ms) == (4, 20)
    assert step.ranges == [Range(0, 0, 3), Range(1, 0, 1)]
    assert cutter.waiting == 1 and cutter.cut(1) is None


def test_or_when_the_oldest_has_waited_long_enough() -> None:
    cutter = sequencer()
    cutter.arrived(0, 0, 3, now_ms=50)
    cutter.arrived(0, 1, 4, now_ms=140)
    assert cutter.cut(149) is None
    step = cutter.cut(150)
    assert step is not None and step.examples == 2


def test_or_sooner_while_the_trainer_waits() -> None:
    waits = sequencer(live=True)
    assert waits.due_ms(0, idle=True) is None
    waits.arrived(0, 0, 3, now_ms=50)
    assert (waits.due_ms(60, idle=True), waits.due_ms(60)) == (30, 90)
    assert waits.cut(89, idle=True) is None and waits.cut(90) is None
    step = waits.cut(90, idle=True)
    assert step is not None and step.examples == 1


def test_what_is_measured_alone_makes_a_step_no_larger_and_its_rate_no_higher() -> None:
    steps = []
    for measured in (0, 6):
        cutter = Sequencer(CONFIG, line="main", epoch=0, digest="", live=True)
        for offset in range(measured):
            cutter.arrived(0, offset, 0, now_ms=0, learned=False)
        for offset in range(measured, measured + 5):
            cutter.arrived(0, offset, 0, now_ms=0)
        steps.append(cutter.cut(1))
        assert cutter.waiting == 1 and cutter.cut(1) is None
    few, many = steps
    assert few is not None and many is not None
    assert (few.examples, many.examples) == (4, 10)
    assert (few.rate, few.filled) == (many.rate, many.filled)
    cutter = sequencer()
    for offset in range(40):
        cutter.arrived(0, offset, 0, now_ms=0, learned=False)
    assert [step.examples for step in iter(lambda: cutter.cut(1), None) if step] == [32]
    rest = cutter.cut(100)
    assert rest is not None and rest.examples == 8 and cutter.waiting == 0


def test_a_step_names_its_views() -> None:
    cutter = sequencer()
    for offset, view in enumerate([("r1", "7"), None, ("r1", 8)]):
        cutter.arrived(3, offset, 0, now_ms=5_000, view=view)
    step = cutter.cut(5_100)
    assert step is not None
    assert [(v.key, v.partition, v.offset) for v in step.views] == [
        (key_of("r1", 7), 3, 0),
        (key_of("r1", "8"), 3, 2),
    ]


@pytest.mark.parametrize("per_s", [100, 5_000, 50_000])
def test_views_named_in_a_second_do_not_grow_with_the_examples(per_s: int) -> None:
    cutter = Sequencer(StepConfig(), line="main", epoch=0, digest="")
    steps, seconds = [], 4
    for n in range(per_s * seconds):
        now_ms = 10_000 + 1_000 * n // per_s
        cutter.arrived(0, n, 0, now_ms, ("r", n))
        if step := cutter.cut(now_ms):
            steps.append(step)
    named = [view.offset for step in steps for view in step.views]
    at_once = SAMPLED_PER_S  # of the first second
    assert len(named) <= SAMPLED_PER_S * seconds + at_once
    if per_s < SAMPLED_PER_S:
        assert len(named) == sum(step.examples for step in steps)
    else:
        assert len(named) >= 0.9 * SAMPLED_PER_S * (seconds - 1)
        assert named == sorted(named) and named[-1] > 0.9 * per_s * seconds


@pytest.mark.parametrize(("examples", "rate"), [(1, 0.5), (16, 0.5), (36, 0.75), (64, 1.0), (99, 1.0)])
def test_a_small_live_step_learns_at_a_lower_rate(examples: int, rate: float) -> None:
    for live in (True, False):
        cutter = Sequencer(StepConfig(), line="main", epoch=0, digest="", live=live)
        for offset in range(examples):
            cutter.arrived(0, offset, 0, now_ms=0)
        step = cutter.cut(10_000)
        assert step is not None and step.rate == (rate if live else 1.0)


@pytest.mark.parametrize(
    ("examples", "filled"), [(1, 1), (LANE_EXAMPLES, 1), (LANE_EXAMPLES + 1, 2), (1_000, 4)]
)
def test_a_step_fills_as_many_lanes_as_its_size_needs(examples: int, filled: int) -> None:
    config = StepConfig(examples=1_000, lanes=4)
    lanes = Sequencer(config, line="main", epoch=0, digest="")
    for offset in range(examples):
        lanes.arrived(0, offset, 0, now_ms=0)
    step = lanes.cut(10_000)
    assert step is not None and (step.lanes, step.filled) == (4, filled)


def test_it_goes_on_from_a_place() -> None:
    cutter = sequencer(step=7, offsets={0: 30, 1: 12})
    cutter.arrived(0, 31, 1, now_ms=0)  # offsets needn't be dense
    step = cutter.cut(1000)
    assert step is not None and step.step == 8 and step.ranges == [Range(0, 30, 32)]


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 300))
def test_every_example_is_in_exactly_one_step(partitions: list[int], wait_ms: int) -> None:
    cutter, ends, covered = sequencer(), [0, 0, 0], set()
    for now_ms, partition in enumerate(partitions):
        cutter.arrived(partition, ends[partition], now_ms, now_ms)
        ends[partition] += 1
    steps = []
    while (step := cutter.cut(len(partitions) + wait_ms)) is not None:
        steps.append(step)
        for part in step.ranges:
            places = {(part.partition, offset) for offset in range(part.start, part.stop)}
            assert not places & covered
            covered |= places
    assert len(covered) == sum(step.examples for step in steps) == len(partitions) - cutter.waiting
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert cutter.waiting < CONFIG.examples


@given(st.integers(0, 500), st.integers(1, 16), st.integers(0, 16))
def test_lanes_cut_everything_evenly_and_in_order(count: int, lanes: int, filled: int) -> None:
    filled = min(filled, lanes)
    cut = lanes_of(count, lanes, filled)
    used = cut[: filled or lanes]
    assert [place for lane in cut for place in lane] == list(range(count))
    assert len(cut) == lanes and max(map(len, used)) - min(map(len, used)) <= 1
    assert not any(cut[len(used) :])
