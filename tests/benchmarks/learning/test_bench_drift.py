"""The drift monitors on streams whose answer is known; figures are `recsys bench drift`'s."""

import numpy as np
import pytest

from benchmarks.learning.bench_drift import watch
from benchmarks.learning.drift_stream import LABELS, Shift, make_stream
from training.drift.monitors import (
    ChangeMonitor,
    DetectorConfig,
    FeatureMonitor,
    LossMonitor,
    MonitoredNumber,
)

BLOCK = 128
DAY_MS = 86_400_000


def alarms_of(values: np.ndarray, mode: str = "both", day: int = 780, **config: object):
    """Of blocks (T, C), one a step: (block, what) of each alarm."""
    watched = [MonitoredNumber("feature", str(c), mode) for c in range(values.shape[1])]
    watch = ChangeMonitor(watched, DetectorConfig(**config))  # type: ignore[arg-type]
    return [
        (block, alarm)
        for block, row in enumerate(values)
        for alarm in watch.feed(row * BLOCK, BLOCK, block * DAY_MS // day, block + 1)
    ]


def noise(blocks: int, columns: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(blocks, columns))


def test_noise_tells_nothing() -> None:
    assert alarms_of(noise(1_500, 5)) == []


def test_a_daily_cycle_is_usual() -> None:
    blocks = np.arange(1_200)
    for day in (90, 780, 8_000):
        cycle = np.sin(2 * np.pi * blocks / day)[:, None]
        assert alarms_of(noise(1_200, 2, 1) + cycle, day=day) == [], day


def test_neighbours_that_are_alike_are_usual() -> None:
    values, row = noise(1_200, 3), np.zeros(3)
    for block in range(len(values)):
        row = values[block] = 0.8 * row + 0.6 * values[block]
    assert alarms_of(values) == []


def test_a_shift_is_one_alarm_and_then_the_usual() -> None:
    values = noise(800, 3)
    values[400:, 1] += 3
    (told,) = alarms_of(values)
    block, alarm = told
    assert 400 <= block < 410
    assert (alarm.kind, alarm.what, alarm.step) == ("feature", "1", block + 1)
    assert abs(alarm.expected) < 0.6 and 2 < alarm.measured < 4 and 0.8 < alarm.scale < 1.3
    assert alarm.detector == "page-hinkley"


def test_up_hears_only_what_grows() -> None:
    values = noise(600)
    values[400:] -= 3
    assert alarms_of(values, "up") == []
    assert len(alarms_of(-values, "up")) == 1


def test_one_wild_block_is_no_change() -> None:
    values = noise(600)
    values[400] = 1e6
    assert alarms_of(values) == []


def test_small_steps_are_gathered_and_empty_ones_change_nothing() -> None:
    watch = ChangeMonitor([MonitoredNumber("feature", "a")])
    for step in range(10):
        watch.feed(np.array([12.0]), 12, step, step)
        watch.feed(np.array([0.0]), 0, step, step)
    assert watch.blocks == 0
    watch.feed(np.array([12.0]), 12, 11, 11)
    assert watch.blocks == 1


def test_what_is_not_finite_is_refused_by_name() -> None:
    watch = LossMonitor(["like"])
    with pytest.raises(ValueError, match="step 7: the sum of like is nan"):
        watch.step({"examples": 1.0, "loss.like": float("nan")}, 0, 7)


def test_configuration_is_checked() -> None:
    with pytest.raises(ValueError, match=r"drift.block is 0"):
        DetectorConfig(block=0)
    with pytest.raises(ValueError, match="raise memory"):
        ChangeMonitor([MonitoredNumber("feature", "a")], DetectorConfig(memory=100))


def test_a_feature_that_is_rare_is_not_watched_and_a_common_one_is() -> None:
    features = FeatureMonitor([], ["tag"], DetectorConfig())
    rng, none = np.random.default_rng(0), np.zeros((BLOCK, 0), np.float32)
    told = []
    for step in range(400):
        keys = rng.choice(
            [1, 2, 3, 4], BLOCK, p=[0.5, 0.3, 0.18, 0.02] if step < 300 else [0.3, 0.3, 0.38, 0.02]
        )
        told += features.step(none, {"tag": keys.astype(np.int64)}, step * 100_000, step)
    assert {alarm.what for alarm in told} == {"tag=0x1", "tag=0x3"}
    assert all(301 <= alarm.step < 310 for alarm in told)


@pytest.mark.parametrize(
    ("shift", "kinds"),
    [
        (Shift("taste", 1.0), {"loss", "calibration"}),
        (Shift("rate", 0.5), {"loss", "calibration"}),
        (Shift("feature", 0.5), {"feature"}),
        (Shift("share", 0.25), {"share"}),
    ],
)
def test_planted_shifts_are_found_within_two_thousand_examples(shift: Shift, kinds: set[str]) -> None:
    told = watch(make_stream(3, 34_000, 200_000, shift, 30_000))
    assert told and all(30_000 < at <= 32_000 for at, alarm in told if alarm.kind in kinds)
    assert {alarm.kind for _, alarm in told} <= kinds | ({"loss"} if shift.kind == "rate" else set())


def test_a_stationary_stream_is_quiet() -> None:
    assert watch(make_stream(5, 100_000, 50_000, Shift(""), 100_000)) == []


def test_the_same_stream_gives_the_same_alarms() -> None:
    stream = make_stream(1, 34_000, 20_000, Shift("taste", 1.0), 30_000)
    assert watch(stream) == watch(stream)
    assert LABELS
