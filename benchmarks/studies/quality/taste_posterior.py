"""Bayesian posterior of a user's taste after a few swipes, given the distribution of tastes.

A taste is a vector with one number per tag. Its prior is a mixture of a few Gaussians (``Taste``). A swipe on
an item with tag weights x and base b depends on the logit f = b + x · taste alone, by the probability of the
outcome given f; swipes are independent given the taste.

``learn`` replaces each Gaussian by the one at the mode of its posterior, with the curvature there (Laplace's
method for Bayesian logistic regression: Bishop 2006, Pattern Recognition and Machine Learning, section
4.5.1), and reweights it by its evidence (equation 4.137). ``chances`` averages the sigmoid over the
Gaussians of a logit by Gauss–Hermite quadrature.

It is an approximation: the true posterior is skewed where swipes are few and one-sided.
``tests/benchmarks/studies/quality/test_taste_posterior.py`` bounds its error by importance sampling.
"""

# T tags, C components of the mixture, S swipes, N items, Q nodes

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# log P(outcome | logit), elementwise over (..., S), up to constants that don't depend on the logit.
LogLikelihood = Callable[[Floats], Floats]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(12)  # for means over a standard normal
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_APART: Final = 1e-3  # step of central differences: the error is its square
_STEPS: Final = 50
_CLOSE: Final = 1e-6


@dataclass(frozen=True)
class Taste:
    """Belief about a taste: with probability ``weights_C`` it comes from that component's Gaussian."""

    weights_C: Floats
    means_CT: Floats
    covariances_CTT: Floats

    def chances(self, x_NT: Floats, base_N: Floats) -> Floats:
        """The posterior mean of sigmoid(logit) for each item, (N,)."""
        chances_N = np.zeros(len(x_NT))
        for weight, mean_T, covariance_TT in zip(
            self.weights_C, self.means_CT, self.covariances_CTT, strict=True
        ):
            spread_N = np.sqrt(((x_NT @ covariance_TT) * x_NT).sum(1))
            logits_NQ = (base_N + x_NT @ mean_T)[:, None] + spread_N[:, None] * _NODES
            chances_N += weight * (_sigmoid(logits_NQ) @ _WEIGHTS)
        return chances_N


def isotropic(means_CT: Floats, variance: float) -> Taste:
    """Equally likely components in which all tags vary alike and independently."""
    components, tags = means_CT.shape
    return Taste(
        np.full(components, 1 / components),
        means_CT,
        np.broadcast_to(variance * np.eye(tags), (components, tags, tags)),
    )


def learn(prior: Taste, x_ST: Floats, base_S: Floats, log_likelihood: LogLikelihood) -> Taste:
    """Posterior after these swipes; the prior when there are none."""
    if not len(x_ST):
        return prior
    modes = [
        _laplace(mean_T, _inverse(covariance_TT), x_ST, base_S, log_likelihood)
        for mean_T, covariance_TT in zip(prior.means_CT, prior.covariances_CTT, strict=True)
    ]
    logs_C = np.log(prior.weights_C) + [evidence for _, _, evidence in modes]
    weights_C = np.exp(logs_C - logs_C.max())
    return Taste(
        weights_C / weights_C.sum(),
        np.array([mean_T for mean_T, _, _ in modes]),
        np.array([covariance_TT for _, covariance_TT, _ in modes]),
    )


def _laplace(
    prior_T: Floats,
    precision_TT: Floats,
    x_ST: Floats,
    base_S: Floats,
    likelihood: LogLikelihood,
) -> tuple[Floats, Floats, float]:
    """Mode of one component's posterior, its covariance, and its log evidence up to a constant."""

    def value(mean_T: Floats) -> float:
        away_T = mean_T - prior_T
        return float(likelihood(base_S + x_ST @ mean_T).sum() - away_T @ precision_TT @ away_T / 2)

    mean_T, best = prior_T, value(prior_T)
    for _ in range(_STEPS):
        slope_S, bend_S = _differences(likelihood, base_S + x_ST @ mean_T)
        slope_T = x_ST.T @ slope_S - precision_TT @ (mean_T - prior_T)
        step_T = np.linalg.solve(precision_TT + (x_ST.T * bend_S) @ x_ST, slope_T)
        # Newton steps may overshoot where the likelihood isn't a parabola: half of one never does for long.
        while value(mean_T + step_T) < best - _CLOSE and np.abs(step_T).max() > _CLOSE:
            step_T = step_T / 2
        mean_T = mean_T + step_T
        best = value(mean_T)
        if np.abs(step_T).max() <= _CLOSE:
            break
    _, bend_S = _differences(likelihood, base_S + x_ST @ mean_T)
    exact_TT = precision_TT + (x_ST.T * bend_S) @ x_ST
    shrunk = np.linalg.slogdet(exact_TT)[1] - np.linalg.slogdet(precision_TT)[1]
    return mean_T, _inverse(exact_TT), float(best - shrunk / 2)


def _differences(likelihood: LogLikelihood, logits_S: Floats) -> tuple[Floats, Floats]:
    """Slope and negative curvature (at least 0) by central differences; each element has its own logit."""
    below_S, at_S, above_S = (likelihood(logits_S + by) for by in (-_APART, 0.0, _APART))
    bend_S = (2 * at_S - below_S - above_S) / _APART**2
    slope_S: Floats = (above_S - below_S) / (2 * _APART)
    return slope_S, np.maximum(bend_S, 0.0)


def _inverse(matrix_TT: Floats) -> Floats:
    return np.asarray(np.linalg.inv(matrix_TT), np.float64)


def _sigmoid(x: Floats) -> Floats:
    probability: Floats = np.exp(-np.logaddexp(0.0, -x))
    return probability
