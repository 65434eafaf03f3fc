"""Always-valid test for sample ratio mismatch: whether the arms' numbers of users fit their shares.

On a mismatch, something loses or moves users depending on their arm, and no difference between the arms means
anything. The test is the multinomial one of Lindon and Malek (2022, "Anytime-valid inference for multinomial
count data"): the Bayes factor of a Dirichlet around the shares against the shares,

    B = Γ(k) / Γ(k + n) · Π Γ(k s_a + n_a) / Γ(k s_a) / Π s_a^{n_a}

is at least 1/α at any time with probability α at most, if users are assigned by the shares. k, the weight of
the Dirichlet, only sets the size of the deviation that is detected soonest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WEIGHT: Final = 10_000.0  # detects deviations of about half a percentage point soonest
ALPHA: Final = 0.001  # small, since an alarm stops an experiment


@dataclass(frozen=True)
class SampleRatio:
    """Counts, expected counts, and the least p-value so far."""

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    p: float

    @property
    def alarm(self) -> bool:
        return self.p < ALPHA


def log_bayes_factor(counts: Sequence[int], shares: Sequence[float], weight: float = WEIGHT) -> float:
    """log B. Raises ValueError unless shares are positive with sum 1."""
    if len(counts) != len(shares) or not all(s > 0 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares are {list(shares)}, expected {len(counts)} above 0 whose sum is 1")
    out = math.lgamma(weight) - math.lgamma(weight + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        prior = weight * share
        out += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return out


def sample_ratio(
    counts: Sequence[int], shares: Sequence[float], before: float = 1.0, weight: float = WEIGHT
) -> SampleRatio:
    """``before``: least p-value of earlier looks, so that an alarm stays."""
    log_b, total = log_bayes_factor(counts, shares, weight), sum(counts)
    p = math.exp(-log_b) if log_b > 0 else 1.0
    return SampleRatio(tuple(counts), tuple(share * total for share in shares), min(before, p))
