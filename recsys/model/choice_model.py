"""The choice model: which of all candidates is taken, from numbers that are there from the first event on.

A multinomial logit (McFadden 1974, "Conditional logit analysis of qualitative choice behavior"): candidate i
is taken with probability exp(w · xᵢ) / Σⱼ exp(w · xⱼ), where x are the dense features in which candidates
differ: counts and rates at each half-life, co-visits, age, the viewer's own counts. It is linear, so a
hundred choices teach it what a network learns from many thousands. It orders all candidates; the ranker
orders the first of them as a list.

Of what an item was chosen before, a sample is learned from. A row that stands for k candidates has log k
added to its utility (McFadden 1978, "Modelling the choice of residential location"). Shards descend by
Newton's method (parameter_server/table/newton.py), for which a worker sends the gradient of -log P of each
taken item and its second derivatives.

What others take has another weight for a viewer of whom nothing is known, since co-visits and own counts,
which are 0 then, correlate with it: so numbers that the viewer's past has no part in are inputs twice, once
times 1 / (1 + the viewer's events), and so are the ranker's log odds.

Where a log has clicks alone, the ranker learns from candidates, and its log odds are one more input. They are
those of the ranker before it learns from the choice, so they don't depend on the version that served.

Rows of a choice, float32 (R, 1 + F), the taken item first: log k, the dense features, then those log odds.

Legend: C choices of a lane, R rows, W weights, N candidates, F dense features.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only
from recsys.features.families.moment import EVENTS_UNIT
from recsys.features.feature_set import FeatureSet

Floats = NDArray[np.float32]
UNIT: Final = 2.0**-10  # of all sums, so that those of a step fit the bound on gradients
_FARTHEST: Final = np.float32(20.0)  # difference of a feature that counts
_RAREST: Final = 4.5e-5  # probability
_float, _double, _int = types.float32, types.float64, types.int64


def log_odds(probabilities_N: Floats) -> Floats:
    """Logits of probabilities, within ±10; 0 of what isn't a number."""
    clipped = np.clip(np.nan_to_num(probabilities_N, nan=0.5), _RAREST, 1 - _RAREST)
    odds: Floats = np.log(clipped / (1 - clipped)).astype(np.float32)
    return odds


def reads_ranker(features: FeatureSet) -> bool:
    """Whether the ranker's log odds are an input."""
    return features.schema.shown_by == "click" and bool(features.differing)


def choice_size(features: FeatureSet) -> int:
    """Number of weights: of ``FeatureSet.differing``, of ``FeatureSet.impersonal`` for new viewers; where the
    ranker's log odds are an input, of these for new viewers and for all."""
    return len(features.differing) + len(features.impersonal) + 2 * reads_ranker(features)


def _inputs(dense_NF: Floats, odds_N: Floats, features: FeatureSet) -> Floats:
    """Inputs (N, W) in the order of the weights: ``choice_size`` names them."""
    odds_NO = odds_N[:, None] if reads_ranker(features) else dense_NF[:, :0]
    events = features.dense_names.index("events")
    newness_N1 = np.exp(-np.float32(EVENTS_UNIT) * np.maximum(dense_NF[:, [events]], 0))
    impersonal_NI = np.concatenate([np.take(dense_NF, features.impersonal, 1), odds_NO], 1)
    differing_ND = np.take(dense_NF, features.differing, 1)
    return np.concatenate([differing_ND, impersonal_NI * newness_N1, odds_NO], 1)


def choice_rows(rows: bytes, features: FeatureSet) -> Floats | None:
    """The rows of a choice by features of this set, without the ranker's log odds; None where these aren't
    such, or a number isn't finite."""
    width, values = 1 + len(features.dense_names), np.frombuffer(rows, np.float32)
    if len(values) % width or not np.isfinite(values).all():
        return None
    return values.reshape(-1, width)


def utilities(
    weights_W: Floats, dense_NF: Floats, odds_N: Floats, features: FeatureSet
) -> NDArray[np.float64]:
    """The utility of each candidate (N,), which doesn't depend on the other candidates. ``odds_N``: the
    ranker's log odds, where they are an input."""
    used = _inputs(dense_NF, odds_N, features).astype(np.float64)
    total: NDArray[np.float64] = (used * weights_W).sum(1)
    return total


def choice_sums(
    weights_W: Floats, choices: Sequence[Floats], weights_C: Floats, features: FeatureSet
) -> Floats:
    """The sums over choices that Newton's method needs, in its unit: gradient (W,), upper triangle of the
    second derivatives, weight of all choices. ``choices``: the rows of each; ``weights_C``: of each."""
    size = choice_size(features)
    gradient, curvature = np.zeros(size), np.zeros((size, size))
    if size and len(choices):
        ends, rows = np.cumsum([len(own) for own in choices]), np.concatenate(choices)
        inputs = _inputs(rows[:, 1 : 1 + len(features.dense_names)], rows[:, -1], features)
        _add_choices(
            weights_W.astype(np.float64), rows[:, 0].astype(np.float64), inputs, ends,
            weights_C.astype(np.float64), gradient, curvature,
        )  # fmt: skip
    counted = [float(weights_C.sum())] if size else []
    sums = np.concatenate([gradient, curvature[np.triu_indices(size)], counted])
    return (sums * UNIT).astype(np.float32)


@kernel(
    types.void(
        read_only(_double, 1),
        read_only(_double, 1),
        read_only(_float, 2),
        read_only(_int, 1),
        read_only(_double, 1),
        _double[::1],
        _double[:, ::1],
    )
)
def _add_choices(
    weights: Any, standing: Any, inputs: Any, ends: Any, of_choice: Any, gradient: Any, curvature: Any
) -> None:
    """Adds the gradient and the second derivatives (upper triangle) of each choice. The taken item's utility
    is 0, that of a row its difference to it."""
    size, start = weights.shape[0], 0
    for c in range(ends.shape[0]):
        taken, start = inputs[start], start + 1
        count = ends[c] - start
        away = np.empty((count, size), np.double)
        utility, mean = np.empty(count, np.double), np.zeros(size, np.double)
        most = 0.0
        for r in range(count):
            row = inputs[start + r]
            utility[r] = standing[start + r]
            for j in range(size):
                d = row[j] - taken[j]
                away[r, j] = min(max(d, -_FARTHEST), _FARTHEST)
                utility[r] += weights[j] * away[r, j]
            most = max(most, utility[r])
        total = np.exp(-most)
        for r in range(count):
            utility[r] = np.exp(utility[r] - most)
            total += utility[r]
        for r in range(count):
            share = utility[r] / total
            for j in range(size):
                mean[j] += share * away[r, j]
                part = of_choice[c] * share * away[r, j]
                if part != 0:
                    for k in range(j, size):
                        curvature[j, k] += part * away[r, k]
        for j in range(size):
            gradient[j] += of_choice[c] * mean[j]
            part = of_choice[c] * mean[j]
            if part != 0:
                for k in range(j, size):
                    curvature[j, k] -= part * mean[k]
        start = ends[c]
