"""Newton's method in a shard: its steps, bounds and exports."""

import numpy as np
import pytest

from parameter_server.table.dense import Dense
from parameter_server.table.newton import newton_step, sums_size, weights_of
from recsys.model.choice_model import UNIT

W = 4
TRIANGLE = np.triu_indices(W)
NOTHING = np.zeros(len(TRIANGLE[0]), np.float32)


def sums_of(curvature: np.ndarray, choices: float) -> np.ndarray:
    triangle = curvature[np.triu_indices(len(curvature))]
    return (np.append(triangle, choices) * UNIT).astype(np.float32)


def test_sizes_tell_the_number_of_weights() -> None:
    assert [weights_of(sums_size(n)) for n in (0, 1, 2, 50, 257)] == [0, 1, 2, 50, 257]
    assert weights_of(1) == -1 and weights_of(5) == -1 and weights_of(-3) == -1


def test_a_step_solves_with_all_derivatives_so_far() -> None:
    draw = np.random.default_rng(0)
    half = draw.normal(0, 3, (20, W))
    curvature, gradient = half.T @ half, draw.normal(0, 3, W)
    args = (gradient * UNIT).astype(np.float32), sums_of(curvature, 1e-9)
    weights, state = newton_step(np.ones(W, np.float32), *args, NOTHING)
    wanted = 1 - np.linalg.solve(curvature + np.eye(W), gradient)
    np.testing.assert_allclose(weights, wanted, atol=1e-4)
    weights, state = newton_step(weights, *args, state)
    np.testing.assert_allclose(state, 2 * curvature[TRIANGLE], rtol=1e-4)
    wanted -= np.linalg.solve(2 * curvature + np.eye(W), gradient)
    np.testing.assert_allclose(weights, wanted, atol=1e-4)


def test_a_weight_moves_by_two_at_most() -> None:
    gradient = np.full(W, 900.0, np.float32)
    weights, _ = newton_step(np.zeros(W, np.float32), gradient, sums_of(np.eye(W), 1), NOTHING)
    assert np.array_equal(weights, np.full(W, -2.0, np.float32))


def test_a_step_without_choices_changes_nothing() -> None:
    weights, state = np.ones(W, np.float32), NOTHING + 1
    after = newton_step(weights, np.ones(W, np.float32), sums_of(np.eye(W), 0), state)
    assert after[0] is weights and after[1] is state


def test_old_choices_fade() -> None:
    nothing = sums_of(np.zeros((W, W), np.float32), 20_000)
    _, state = newton_step(np.zeros(W, np.float32), np.zeros(W, np.float32), nothing, np.eye(W)[TRIANGLE])
    np.testing.assert_allclose(state, np.eye(W)[TRIANGLE] / 2)


def test_an_export_continues_with_the_same_bits() -> None:
    draw = np.random.default_rng(1)
    dense = Dense(np.zeros(6 + W, np.float32), 0.01)
    gradients = [
        np.concatenate([draw.normal(0, 0.1, 6 + W), sums_of(np.eye(W) * n, n)]).astype(np.float32)
        for n in range(1, 6)
    ]
    for gradient in gradients[:3]:
        assert dense.apply(gradient)
    other = Dense(np.zeros(6 + W, np.float32), 0.01)
    other.load(dense.export())
    for gradient in gradients[3:]:
        assert dense.apply(gradient) and other.apply(gradient)
    assert dense.digest() == other.digest() and dense.export()["curvature"].any()


def test_a_gradient_of_another_size_is_refused() -> None:
    dense = Dense(np.zeros(6, np.float32), 0.01)
    with pytest.raises(ValueError, match="different models"):
        dense.apply(np.zeros(6 + 3, np.float32))  # no triangle
    with pytest.raises(ValueError, match="different models"):
        dense.apply(np.zeros(6 + sums_size(7), np.float32))  # of more weights than there are
