"""Whether arms have as many users as their shares say, tested as often as one likes.

Where they haven't, something loses or moves users by their arm, and no difference between the arms means
anything. The test is the multinomial one of Lindon and Malek (2022, "Anytime-valid inference for multinomial
count data"): the Bayes factor of a Dirichlet around the shares against the shares,

    B = Γ(k) / Γ(k + n) · Π Γ(k s_a + n_a) / Γ(k s_a) / Π s_a^{n_a}

is at least 1/α at any time with probability α at most, if users fall into the arms by their shares. k, the
weight of the Dirichlet, says how small a deviation is looked for first, and changes nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WEIGHT: Final = 10_000.0  # deviations of about half a percentage point are met soonest
ALPHA: Final = 0.001  # an alarm stops an experiment: it should mean something


@dataclass(frozen=True)
class SampleRatio:
    """The counts, what was expected of them, and the least p-value of any look so far."""

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    p: float

    @property
    def alarm(self) -> bool:
        return self.p < ALPHA


def log_bayes_factor(
    counts: Sequence[int], shares: Sequence[float], weight: float = WEIGHT
) -> float:
    """log B. Raises ValueError where shares aren't positive with sum 1."""
    if len(counts) != len(shares) or not all(s > 0 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"shares are {list(shares)}, expected {len(counts)} above 0 whose sum is 1"
        )
    out = math.lgamma(weight) - math.lgamma(weight + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        prior = weight * share
        out += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return out


def sample_ratio(
    counts: Sequence[int], shares: Sequence[float], before: float = 1.0, weight: float = WEIGHT
) -> SampleRatio:
    """``before``: the p-value of the look before this one; with it an alarm stays."""
    log_b, total = log_bayes_factor(counts, shares, weight), sum(counts)
    p = math.exp(-log_b) if log_b > 0 else 1.0
    return SampleRatio(tuple(counts), tuple(share * total for share in shares), min(before, p))
