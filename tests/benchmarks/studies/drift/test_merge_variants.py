"""Which form serves and with which weights: by log loss so far, and nothing else."""

import math

import numpy as np
import pytest

from benchmarks.studies.drift.merge_variants import (
    LatencyGate,
    Lead,
    LogitAverage,
    VariantChooser,
    average_logits,
    losses,
)


def stream(
    rows: int, noise: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels of known odds; two lines that know them, each but for noise of its own; and the odds."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=rows)
    labels = (draw.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    one, other = (1 / (1 + np.exp(-logits - noise * draw.normal(size=rows))) for _ in range(2))
    return one, other, labels, 1 / (1 + np.exp(-logits))


def test_an_average_of_logits_is_that_and_refuses_other_weights() -> None:
    assert average_logits([[0.5], [0.9]], [0.5, 0.5]) == pytest.approx(0.75)
    assert average_logits([[0.2], [0.9]], [1.0, 0.0]) == pytest.approx(0.2)
    assert np.isfinite(average_logits([[0.0], [1.0]], [0.5, 0.5])).all()
    for wrong in ([0.5], [0.7, 0.7], [1.5, -0.5]):
        with pytest.raises(ValueError, match="sum to 1"):
            average_logits([[0.1], [0.2]], wrong)
    assert losses([0.25, 0.25], [1, 0]) == pytest.approx([-math.log(0.25), -math.log(0.75)])


def test_two_lines_with_noise_of_their_own_are_better_as_one() -> None:
    one, other, labels, _ = stream(4000, 0.7)
    averages, told = LogitAverage(), []
    for start in range(0, 4000, 100):
        some = slice(start, start + 100)
        told.append(averages.average(one[some], other[some]))
        averages.update(one[some], other[some], labels[some])
    lost = losses(np.concatenate(told), labels).sum()
    assert lost < min(losses(one, labels).sum(), losses(other, labels).sum())
    assert 0.3 < averages.weight < 0.7 and averages.chances_W.sum() == pytest.approx(1)


def test_a_bad_candidate_gets_no_weight_and_costs_next_to_nothing() -> None:
    one, _, labels, _ = stream(3000, 0.2)
    averages, cost = LogitAverage(), 0.0
    assert averages.weight > 0  # as likely as not
    for start in range(0, 3000, 50):
        some = slice(start, start + 50)
        told = averages.average(one[some], 1 - one[some])
        cost += (losses(told, labels[some]) - losses(one[some], labels[some])).sum()
        averages.update(one[some], 1 - one[some], labels[some])
    assert averages.weight == 0 and cost < 20
    with pytest.raises(ValueError, match="grid is"):
        LogitAverage((0.5, 1.0))


def test_a_form_takes_over_once_it_has_been_better_and_not_before() -> None:
    chooser = VariantChooser("online")
    for form in ("catch-up", "other", "online"):
        chooser.add(form)
    assert set(chooser.leads) == {"catch-up", "other"}
    for _ in range(5):
        assert chooser.update({"catch-up": 0.5, "other": -0.5}) == "online"
    assert chooser.update({"catch-up": 1.0, "other": -0.5}) == "catch-up"
    assert chooser.leads == {"online": Lead(), "other": Lead()}
    with pytest.raises(ValueError, match="serves"):
        chooser.drop("catch-up")
    chooser.drop("other")
    for _ in range(100):  # what the past said holds nobody back once the world has changed
        chooser.update({"online": -1.0})
    steps = 0
    while chooser.live == "catch-up":
        chooser.update({"online": 0.5})
        steps += 1
    assert steps == 7


def test_a_lead_by_chance_is_not_enough() -> None:
    draw = np.random.default_rng(3)
    chooser = VariantChooser("a", clear=4.0)
    chooser.add("b", Lead(1.0, 1.0))
    for gain in draw.normal(size=300):
        assert chooser.update({"b": float(gain)}) == "a"


def test_the_gate_lets_two_lines_through_where_the_second_costs_little() -> None:
    assert LatencyGate(2.0).allows(3.0, 5.0) and not LatencyGate(2.0).allows(3.0, 5.5)
