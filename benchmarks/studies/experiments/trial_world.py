"""Simulated users of an experiment: each has habits of their own, comes again, and is seen by many looks.

A user's share of long views is drawn once (Beta), so is how much they watch (Gamma), and both stay: that
makes a user's items dependent, and a later look much like the one before. Treatment multiplies the share.
"""

# U users, T looks

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.statistics.effect import ArmUsers

Floats = NDArray[np.float64]
_SHARE: Final = 0.4  # of shown items that are viewed long
_SHARE_SPREAD: Final = 0.1  # its standard deviation among users
_ITEMS: Final = 4.0  # shown to a user between two looks
_ACTIVITY: Final = 2.0  # shape of the Gamma: some users watch several times as much as others


@dataclass(frozen=True)
class Trial:
    """Sums of each user up to each look, looks first, since one look is taken at a time. ``before_U2``:
    numerator and denominator before exposure."""

    numerators_TU: Floats
    denominators_TU: Floats
    before_U2: Floats
    treated_U: NDArray[np.bool_]

    def at(self, look: int, treated: bool, covariates: bool = False) -> ArmUsers:
        """Users of one arm who had come by a look."""
        is_of_arm = np.flatnonzero((self.treated_U == treated) & (self.denominators_TU[look] > 0))
        before = self.before_U2[is_of_arm]
        covariates_U = np.column_stack([before, before[:, 1] > 0]) if covariates else np.zeros((0, 0))
        return ArmUsers(
            self.numerators_TU[look, is_of_arm], self.denominators_TU[look, is_of_arm], covariates_U
        )


def simulate(
    draw: np.random.Generator,
    users: int,
    looks: int,
    lift: float = 0.0,
    before: float = 0.0,
    again: bool = True,
) -> Trial:
    """``before``: number of looks of history before exposure. ``again``: half of the users are present from
    the beginning, the others come between two looks, and all stay; else each comes once."""
    treated_U = draw.random(users) < 0.5
    of_user = _SHARE * (1 - _SHARE) / _SHARE_SPREAD**2 - 1
    share_U = draw.beta(_SHARE * of_user, (1 - _SHARE) * of_user, users)
    items_U = _ITEMS * draw.gamma(_ACTIVITY, 1 / _ACTIVITY, users)
    first_U = draw.integers(0, looks, users)
    if again:
        first_U[draw.random(users) < 0.5] = 0
    looks_T1 = np.arange(looks)[:, None]
    here_TU = looks_T1 >= first_U if again else looks_T1 == first_U
    shown_TU = draw.poisson(items_U * here_TU)
    lifted_U = share_U * np.where(treated_U, 1 + lift, 1.0)
    if lifted_U.max() > 1:
        raise ValueError(f"lift is {lift}, expected one that leaves each user's share below 1")
    long_TU = draw.binomial(shown_TU, lifted_U)
    shown_0 = draw.poisson(items_U * before)
    before_U2 = np.column_stack([draw.binomial(shown_0, share_U), shown_0]).astype(np.float64)
    return Trial(
        long_TU.cumsum(0).astype(np.float64), shown_TU.cumsum(0).astype(np.float64), before_U2, treated_U
    )
