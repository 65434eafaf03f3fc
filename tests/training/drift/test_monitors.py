"""Forecasts of blocks and alarms of monitors, on streams whose changes are known and with pinned figures."""

import numpy as np
import pytest

from training.drift.baseline import Baseline
from training.drift.monitors import DetectorConfig, FeatureMonitor, LossMonitor

HOUR_MS = 3_600_000


def blocks(count: int) -> np.ndarray:
    """By block: a daily cycle with noise, a number that wanders, and a constant."""
    draw, wander, out = np.random.default_rng(7), 0.0, []
    for n in range(count):
        wander = 0.9 * wander + draw.normal()
        cycle = 0.3 * np.sin(2 * np.pi * n / 24) + 0.1 * np.cos(4 * np.pi * n / 24)
        out.append([5.0 + cycle + 0.05 * draw.normal(), 10.0 + wander, 2.0])
    return np.array(out)


def test_a_forecast_knows_the_hour_and_whitens_what_is_left() -> None:
    baseline, values = Baseline(3, memory=100, warm_up=20), blocks(240)
    values[200:, 0] += 0.4
    z = np.array(
        [baseline.take(row, n * HOUR_MS, 100.0 + 20 * (n % 5)) for n, row in enumerate(values[:230])]
    )
    assert not z[:20].any() and z[20:, :2].any(1).all() and not z[:, 2].any()
    assert np.abs(z[60:200]).max() < 3 < z[200, 0]
    assert z[[25, 61, 150, 210], :2].ravel() == pytest.approx(
        [-0.49877947, 0.19976302, -0.33331135, 0.14909625, 0.15755515, 0.79065137, -0.15794903, -0.99963932],
        rel=1e-6,
    )
    at_ms = 230 * HOUR_MS
    assert baseline.expected(at_ms) == pytest.approx([4.9977886, 9.2452037, 2.0], rel=1e-6)
    assert baseline.scale() == pytest.approx([0.16104811, 1.9957946, 3e-09], rel=1e-6)
    assert baseline.strayed() == pytest.approx([2.331025, 0.25577277, np.inf], rel=1e-6)
    baseline.restart(0, 6)
    assert baseline.expected(at_ms) == pytest.approx([5.325123, 9.2452037, 2.0], rel=1e-6)
    after = [baseline.take(values[n], n * HOUR_MS, 120.0)[0] for n in range(230, 240)]
    assert after[::3] == pytest.approx([-0.61259107, 0.097254326, -0.020719088, 0.66084245], rel=1e-6)


def test_a_memory_shorter_than_two_warm_ups_is_refused() -> None:
    assert Baseline(1, memory=20, warm_up=10)
    for memory, warm_up in ((19, 10), (100, 9)):
        with pytest.raises(ValueError, match=f"memory is {memory} and warm_up {warm_up} blocks"):
            Baseline(1, memory, warm_up)


CONFIG = DetectorConfig(block=100, warm_up=30, memory=100, quiet=10)


def test_alarms_of_losses_and_calibration() -> None:
    """The loss of ``like`` grows, then falls; calibration of ``hide`` moves a little, for long."""
    monitor, draw, alarms = LossMonitor(("like", "hide"), CONFIG), np.random.default_rng(1), []
    for step in range(600):
        metrics = {"examples": 50.0}
        for label, loss in (("like", 0.7 if 240 <= step < 440 else 0.6), ("hide", 0.4)):
            metrics[f"loss.{label}"] = 50 * (loss + 0.02 * draw.normal())
            metrics[f"predicted.{label}"] = 50 * (0.3 + 0.02 * draw.normal())
            metrics[f"happened.{label}"] = 50 * 0.3
        metrics["happened.hide"] += 50 * 0.03 * (step >= 400)
        alarms += monitor.step(metrics, step * 600_000, step)
    figures = [(a.kind, a.what, a.step, a.detector) for a in alarms]
    assert figures == [
        ("loss", "like", 243, "page-hinkley"),
        ("loss", "like", 271, "page-hinkley"),
        ("calibration", "hide", 415, "page-hinkley"),
    ]
    assert [(a.measured, a.expected, a.scale) for a in alarms] == [
        pytest.approx(numbers, rel=1e-6)
        for numbers in (
            (0.64345891, 0.60285307, 0.012944775),
            (0.69715007, 0.64717231, 0.013540203),
            (-0.029366788, -0.0030812671, 0.014164253),
        )
    ]


def test_alarms_of_features_and_of_shares_of_frequent_keys() -> None:
    monitor = FeatureMonitor(("age", "hour"), ("author",), CONFIG, least=0.1, most=2)
    draw, alarms = np.random.default_rng(2), []
    for step in range(160):
        dense = draw.normal(1.0 + 0.5 * (step >= 100), 1.0, (100, 2)).astype(np.float32)
        dense[:, 1] = draw.normal(2.0, 1.0, 100)
        shares = (0.1, 0.5, 0.3, 0.07, 0.03) if step < 130 else (0.1, 0.2, 0.3, 0.37, 0.03)
        author = draw.choice(5, 100, p=shares)
        alarms += monitor.step(dense, {"author": author}, step * 600_000, step)
    figures = [(a.kind, a.what, a.step, a.detector) for a in alarms]
    assert figures == [("feature", "age", 102, "page-hinkley"), ("share", "author=0x1", 132, "page-hinkley")]
    assert [(a.measured, a.expected) for a in alarms] == [
        pytest.approx(numbers, rel=1e-6) for numbers in ((1.5345925, 1.0199944), (0.19333333, 0.49658925))
    ]


def test_sums_that_are_no_numbers_are_refused_and_nothing_is_no_block() -> None:
    monitor = LossMonitor(("like",), CONFIG)
    with pytest.raises(ValueError, match="step 7: the sum of like is nan"):
        monitor.step({"examples": 1.0, "loss.like": float("nan")}, 0, 7)
    assert monitor.step({"examples": 0.0, "loss.like": 1.0}, 0, 8) == []
    with pytest.raises(ValueError, match="drift.quiet is 0, expected a positive number"):
        DetectorConfig(quiet=0)
