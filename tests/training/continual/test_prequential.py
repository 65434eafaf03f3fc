"""AUC, normalized entropy and calibration over a window of steps, from the sums that a learner makes."""

import numpy as np
import pytest

from recsys.model import prediction_metrics as exact
from recsys.model.prediction_metrics import bin_weights, bins_of
from training.continual.prequential import Prequential


def sums_of(p: np.ndarray, happened: np.ndarray, label: str = "like") -> dict[str, float]:
    ones, bins = np.ones(len(p)), bins_of(p)
    loss = -(happened * np.log(p) + (1 - happened) * np.log1p(-p))
    return {
        "examples": float(len(p)),
        f"loss.{label}": loss.sum(),
        f"predicted.{label}": p.sum(),
        f"happened.{label}": happened.sum(),
        **{f"bin.{label}.{n}": count for n, count in bin_weights(bins, ones).items()},
        **{f"bin1.{label}.{n}": count for n, count in bin_weights(bins, happened).items()},
    }


def drawn(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-draws.normal(-1, 1.2, rows)))
    return p, (draws.random(rows) < p).astype(float)


def test_figures_are_those_of_the_window_and_older_steps_leave() -> None:
    its, kept = Prequential(window=1_000), []
    for seed in range(30):
        p, happened = drawn(seed, 100)
        its.take(sums_of(p, happened))
        kept.append((p, happened))
    p, happened = (np.concatenate(column) for column in zip(*kept[-10:], strict=True))
    found = its.figures()
    assert found["judged"] == its.examples == 1_000
    assert found["auc.like"] == pytest.approx(exact.auc(p, happened), abs=0.004)
    assert found["rate.like"] == pytest.approx(np.mean(happened))
    assert found["normalized_entropy.like"] == pytest.approx(exact.normalized_entropy(p, happened))
    assert found["calibration.like"] == pytest.approx(exact.calibration(p, happened))


def test_of_few_examples_or_none_of_a_kind_nothing_is_said() -> None:
    its = Prequential()
    its.take(sums_of(*drawn(1, 150)))
    assert its.figures() == {}
    its.take(sums_of(np.full(100, 0.1), np.zeros(100), "hide"))
    found = its.figures()
    assert "calibration.like" in found and not [name for name in found if name.endswith(".hide")]


def test_sums_that_are_no_numbers_are_passed_over() -> None:
    its = Prequential()
    good = sums_of(*drawn(2, 400))
    its.take(good)
    before = its.figures()
    for wrong in (good | {"loss.like": float("nan")}, {"left_out": 3.0}, {"examples": 0.0}):
        its.take(wrong)
    assert its.figures() == before
