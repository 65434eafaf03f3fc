"""The true posterior of a taste, by importance sampling.

The proposal is that of ``benchmarks.studies.quality.taste_posterior``; draws of the prior would degenerate.
"""

# T tags, S swipes, D draws

import numpy as np

from benchmarks.studies.quality.taste_posterior import Floats, LogLikelihood, Taste


def draw(taste: Taste, draws: int, generator: np.random.Generator) -> Floats:
    """Tastes (D, T) drawn from the mixture."""
    chosen_D = generator.choice(len(taste.weights_C), draws, p=taste.weights_C)
    roots_CTT = np.linalg.cholesky(taste.covariances_CTT)
    normal_DT = generator.standard_normal((draws, taste.means_CT.shape[1]))
    tastes_DT: Floats = taste.means_CT[chosen_D] + np.einsum(
        "dts,ds->dt", roots_CTT[chosen_D], normal_DT
    )
    return tastes_DT


def log_density(taste: Taste, tastes_DT: Floats) -> Floats:
    """The log density of each taste, (D,), up to a constant of T alone."""
    logs = []
    for weight, mean_T, covariance_TT in zip(
        taste.weights_C, taste.means_CT, taste.covariances_CTT, strict=True
    ):
        root_TT = np.linalg.cholesky(covariance_TT)
        away_TD = np.linalg.solve(root_TT, (tastes_DT - mean_T).T)
        logs.append(np.log(weight) - np.log(np.diag(root_TT)).sum() - (away_TD**2).sum(0) / 2)
    found: Floats = np.logaddexp.reduce(np.array(logs), axis=0)
    return found


def reweighed(
    posterior: Taste,
    prior: Taste,
    x_ST: Floats,
    base_S: Floats,
    log_likelihood: LogLikelihood,
    draws: int,
    generator: np.random.Generator,
) -> tuple[Floats, Floats, float]:
    """Tastes (D, T) and weights (D,) that sum to 1: draws of the true posterior, the more the truer.

    The third is the effective number of draws as a share of all (Kong 1992): 1 where the approximation is
    the truth.
    """
    tastes_DT = draw(posterior, draws, generator)
    logs_D = (
        log_likelihood(base_S + tastes_DT @ x_ST.T).sum(1)
        + log_density(prior, tastes_DT)
        - log_density(posterior, tastes_DT)
    )
    weights_D = np.exp(logs_D - logs_D.max())
    weights_D /= weights_D.sum()
    return tastes_DT, weights_D, float(1 / (weights_D**2).sum() / draws)
