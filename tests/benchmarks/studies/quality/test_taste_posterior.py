"""What is known of a taste: the prior without swipes, Bayes' rule where it is known, nearly so elsewhere."""

import numpy as np
import pytest

from benchmarks.studies.quality.taste_posterior import (
    Floats,
    LogLikelihood,
    Taste,
    isotropic,
    learn,
)
from tests.support.serving.taste_draws import draw, reweighed

NONE = np.zeros((0, 3)), np.zeros(0)


def long_views(y_S: Floats) -> LogLikelihood:
    """log P(long view or not | logit)."""
    return lambda logits: -np.logaddexp(0.0, np.where(y_S > 0, -logits, logits))


def drawn(seed: int, swipes: int, tags: int = 6) -> tuple[Taste, Floats, Floats, Floats, Floats]:
    """A person of one of two kinds, who swipes: prior, x, base, what came of it, and their taste."""
    generator = np.random.default_rng(seed)
    prior = isotropic(generator.standard_normal((2, tags)) * 0.7, 0.8)
    taste_T = draw(prior, 1, generator)[0]
    x_ST = generator.standard_normal((swipes, tags)) * (generator.random((swipes, tags)) < 0.4)
    base_S = generator.normal(-0.5, 0.7, swipes)
    y_S = (generator.random(swipes) < 1 / (1 + np.exp(-base_S - x_ST @ taste_T))).astype(float)
    return prior, x_ST, base_S, y_S, taste_T


def test_without_swipes_it_is_the_prior_and_the_chances_are_its_mean() -> None:
    prior = isotropic(np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]), 0.5)
    assert learn(prior, *NONE, long_views(np.zeros(0))) is prior
    x_NT, base_N = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 3.0]]), np.array([-1.0, 0.3])
    tastes = draw(prior, 200_000, np.random.default_rng(0))
    drawn_N = (1 / (1 + np.exp(-base_N - tastes @ x_NT.T))).mean(0)
    assert np.abs(prior.chances(x_NT, base_N) - drawn_N).max() < 0.003


def test_where_a_swipe_tells_the_logit_with_gaussian_noise_the_posterior_is_the_textbook_s() -> (
    None
):
    generator = np.random.default_rng(1)
    means_CT, variance, noise = generator.standard_normal((2, 3)), 0.7, 0.3
    x_ST, base_S, told_S = generator.standard_normal((5, 3)), generator.random(5), np.ones(5)
    found = learn(
        isotropic(means_CT, variance), x_ST, base_S, lambda f: -((told_S - f) ** 2) / noise / 2
    )
    precision_TT = np.eye(3) / variance + x_ST.T @ x_ST / noise
    spread_SS = variance * x_ST @ x_ST.T + noise * np.eye(5)
    logs = []
    for c in range(2):
        mean_T = np.linalg.solve(
            precision_TT, means_CT[c] / variance + x_ST.T @ (told_S - base_S) / noise
        )
        off_S = told_S - base_S - x_ST @ means_CT[c]
        logs.append(-off_S @ np.linalg.solve(spread_SS, off_S) / 2)
        assert np.allclose(found.means_CT[c], mean_T, atol=1e-4)
        assert np.allclose(found.covariances_CTT[c], np.linalg.inv(precision_TT), atol=1e-4)
    odds = np.exp(logs[0] - logs[1])
    assert found.weights_C[0] / found.weights_C[1] == pytest.approx(odds, rel=1e-3)


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_one_long_view_of_one_tag_is_as_the_integral_says(y: float) -> None:
    x_ST, base_S, grid = np.array([[1.5]]), np.array([-1.0]), np.linspace(-9, 9, 20_001)
    found = learn(isotropic(np.zeros((1, 1)), 0.77), x_ST, base_S, long_views(np.array([y])))
    chance = 1 / (1 + np.exp(1.0 - 1.5 * grid))
    weight = np.exp(-(grid**2) / 0.77 / 2) * (chance if y else 1 - chance)
    exact = (weight * chance).sum() / weight.sum()
    assert found.chances(x_ST, base_S)[0] == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("swipes", [1, 5, 20])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_near_the_true_posterior_and_its_draws_do_not_degenerate(
    seed: int, swipes: int
) -> None:
    prior, x_ST, base_S, y_S, _ = drawn(seed, swipes)
    found = learn(prior, x_ST, base_S, long_views(y_S))
    tastes_DT, weights_D, share = reweighed(
        found, prior, x_ST, base_S, long_views(y_S), 20_000, np.random.default_rng(0)
    )
    x_NT, base_N = np.random.default_rng(9).standard_normal((30, 6)) / 2, np.zeros(30)
    exact_N = weights_D @ (1 / (1 + np.exp(-base_N - tastes_DT @ x_NT.T)))
    assert share > 0.6
    errors_N = np.abs(found.chances(x_NT, base_N) - exact_N)
    assert errors_N.mean() < 0.02 and errors_N.max() < 0.06


@pytest.mark.parametrize("seed", range(8))
def test_the_order_does_not_matter_and_a_long_view_more_speaks_for_the_item(seed: int) -> None:
    prior, x_ST, base_S, y_S, _ = drawn(seed, 8)
    found = learn(prior, x_ST, base_S, long_views(y_S))
    turned = learn(prior, x_ST[::-1], base_S[::-1], long_views(y_S[::-1]))
    assert np.allclose(found.chances(x_ST, base_S), turned.chances(x_ST, base_S), atol=1e-6)
    assert found.weights_C.sum() == pytest.approx(1) and (found.weights_C > 0).all()
    (narrow,) = np.linalg.eigvalsh(found.covariances_CTT[:1])
    assert (narrow > 0).all() and (narrow < 0.8 + 1e-9).all()  # no swipe makes less sure
    x_T = np.ones(6) / 2
    more = [
        learn(prior, np.vstack([x_ST, x_T]), np.append(base_S, 0.0), long_views(np.append(y_S, y)))
        for y in (0.0, 1.0)
    ]
    low, high = (taste.chances(x_T[None], np.zeros(1))[0] for taste in more)
    assert low < found.chances(x_T[None], np.zeros(1))[0] < high


def test_it_is_calibrated_over_the_people_of_its_prior() -> None:
    said, did = [], []
    for seed in range(150):
        prior, x_ST, base_S, y_S, taste_T = drawn(seed, 10)
        prior = isotropic(prior.means_CT, 0.8)
        found = learn(prior, x_ST, base_S, long_views(y_S))
        x_NT = np.random.default_rng(seed + 1000).standard_normal((60, 6))
        chances_N = found.chances(x_NT, np.zeros(60))
        best = np.argsort(-chances_N)[:8]  # of the best too: who knows the prior isn't disappointed
        said.append(chances_N[best].mean())
        did.append((1 / (1 + np.exp(-x_NT[best] @ taste_T))).mean())
    assert np.mean(said) == pytest.approx(np.mean(did), abs=0.03)
