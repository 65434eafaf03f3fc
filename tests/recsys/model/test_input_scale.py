"""Inputs of other scales become standard ones, as of all examples so far, and follow a drift slowly."""

import numpy as np
import pytest
import torch

from parameter_server.table.dense import Dense, fits
from recsys.model.input_scale import InputScale
from recsys.model.input_statistics import HEADER, UNIT, fold, inputs_of, statistics_size

MEANS = np.array([-3.0, 0.0, 8.0, 0.5], np.float32)
DEVIATIONS = np.array([1.5, 0.5, 3.0, 0.0], np.float32)  # the last one is constant
F = len(MEANS)


def batch(draw: np.random.Generator, size: int, shift: float = 0.0) -> torch.Tensor:
    noise = draw.normal(0, 1, (size, F)).astype(np.float32)
    return torch.from_numpy(MEANS + shift + DEVIATIONS * noise)


def new_line(others: int = 3) -> Dense:
    head = InputScale(F).place.detach().numpy()
    return Dense(np.concatenate([head, np.ones(others, np.float32)]), rate=0.01, average=0.9)


def scale_of(vector: np.ndarray) -> InputScale:
    scale = InputScale(F)
    with torch.no_grad():
        scale.place.copy_(torch.from_numpy(vector[: statistics_size(F)]))
    return scale


def gradient_of(vector: np.ndarray, *lanes: torch.Tensor) -> np.ndarray:
    """The sum of the lanes' gradients; the other parameters have 1."""
    total = np.ones_like(vector)
    total[: statistics_size(F)] = 0
    for inputs in lanes:
        scale = scale_of(vector)
        scale(inputs).sum().backward()
        assert scale.place.grad is not None
        total[: statistics_size(F)] += scale.place.grad.numpy()
    return total


def test_a_new_line_has_its_inputs_as_they_are() -> None:
    inputs = batch(np.random.default_rng(0), 9)
    assert torch.equal(InputScale(F)(inputs), inputs)
    assert InputScale(0)(torch.zeros(3, 0)).shape == (3, 0)


def test_the_statistics_are_those_of_all_examples_so_far() -> None:
    draw, dense, seen = np.random.default_rng(1), new_line(), list[torch.Tensor]()
    for size in (1, 5, 64, 300):
        lanes = [batch(draw, size), batch(draw, 2 * size, shift=1.0)]
        seen += lanes
        assert dense.apply(gradient_of(dense.values, *lanes))
        every = torch.cat(seen).numpy().astype(np.float64)
        mean, less_1, count = dense.values[1 : statistics_size(F)].reshape(3, F)
        assert mean == pytest.approx(every.mean(0), rel=1e-5)
        assert less_1 + 1 == pytest.approx(every.var(0), abs=1e-5)
        assert count / UNIT == pytest.approx(len(every))
    standard = scale_of(dense.averaged)(torch.cat(seen)).detach().numpy()
    assert standard[:, :3].mean(0) == pytest.approx(0, abs=1e-4)
    assert standard[:, :3].std(0) == pytest.approx(1, abs=1e-4)
    assert np.abs(standard[:, 3]).max() < 4, "a constant isn't made large"


def test_a_column_that_was_constant_is_0_until_it_was_learned_to_differ() -> None:
    draw, dense = np.random.default_rng(5), new_line()
    dense.apply(gradient_of(dense.values, batch(draw, 200)))
    inputs = batch(draw, 4)
    inputs[0, 3] = 100.0
    assert (
        not scale_of(dense.values)(inputs)[:, 3].any()
        and scale_of(dense.values)(inputs)[:, 0].all()
    )
    dense.apply(gradient_of(dense.values, inputs))
    assert scale_of(dense.values)(inputs)[0, 3] > 1


def test_statistics_are_not_descended_and_other_parameters_are() -> None:
    dense, head = new_line(), statistics_size(F)
    for _ in range(5):
        dense.apply(gradient_of(dense.values, batch(np.random.default_rng(2), 8)))
        assert dense.values[0] == HEADER + F and np.array_equal(
            dense.values[:head], dense.averaged[:head]
        )
    arrays = dense.export()
    assert not arrays["m"][:head].any() and not arrays["v"][:head].any()
    assert (dense.values[head:] < 1).all() and (arrays["m"][head:] > 0).all()
    again = new_line()
    again.load(arrays)
    step = gradient_of(dense.values, batch(np.random.default_rng(3), 8))
    assert again.apply(step) and dense.apply(step) and again.digest() == dense.digest()


def test_old_examples_fade() -> None:
    draw, dense = np.random.default_rng(4), new_line()
    for shift in (0.0, 2.0):
        for _ in range(30):
            dense.apply(gradient_of(dense.values, batch(draw, 10_000, shift)))
    mean = dense.values[1 : 1 + F]
    assert mean - MEANS == pytest.approx(2.0, abs=0.15)  # a plain mean would be 1 away


@pytest.mark.parametrize("far", [30.0, 1e6])
def test_no_lane_exceeds_the_bound_of_the_parameter_server(far: float) -> None:
    gradient = gradient_of(new_line().values, torch.full((16_384, F), far))
    assert fits(gradient, 1_000.0) and gradient[1] < 0


def test_what_is_not_a_number_is_refused() -> None:
    dense, before = new_line(), new_line().digest()
    assert not dense.apply(gradient_of(dense.values, torch.full((2, F), float("nan"))))
    assert dense.digest() == before


def test_examples_that_are_not_learned_tell_nothing() -> None:
    scale, some = InputScale(3), InputScale(3)
    inputs = torch.randn(8, 3)
    weights = torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 0])[:, None]
    (scale(inputs) * weights).sum().backward()
    some(inputs[weights[:, 0] > 0]).sum().backward()
    assert scale.place.grad is not None and some.place.grad is not None
    torch.testing.assert_close(scale.place.grad, some.place.grad)


def test_sums_of_nothing_change_nothing() -> None:
    values = new_line().values.copy()
    fold(values, np.zeros_like(values), F)
    assert np.array_equal(values, new_line().values)


def test_only_a_vector_that_says_so_has_statistics() -> None:
    size = statistics_size(2)
    for first, length, inputs in ((HEADER + 2, size, 2), (HEADER + 2, size - 1, 0), (HEADER + 0.5, size, 0),
                                  (2.0, size, 0), (HEADER, 1, 0), (float("nan"), size, 0)):  # fmt: skip
        vector = np.zeros(length, np.float32)
        vector[0] = first
        assert inputs_of(vector) == inputs, first
    assert inputs_of(np.zeros(0, np.float32)) == 0
