"""How many users were given each arm: each user once, by the first. Far less is held of each than of what
they did, so all of them are counted where outcomes are of a share.

A user takes 9 bytes. Beyond ``most`` half of them leave, by a hash of the user that knows nothing of arms,
and half of those to come.
"""

# N users of a call, U users that are held, in the order of their keys

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MOST: Final = 2_000_000
_NEW: Final = 16_384  # users that are held apart until so many are laid in order at once


def in_sample(users: Any, share: float) -> Any:
    """Whether users, by their 64-bit keys, are among a share of all."""
    return (users & 0xFFFF_FFFF) < share * 2**32


class ExposureCounts:
    """Counts users by arm. ``sampled``: the share of them that is counted."""

    def __init__(self, arms: int, most: int = MOST) -> None:
        self._most = most
        self.sampled = 1.0
        self._keys_U = np.zeros(0, np.int64)
        self._arms_U = np.zeros(0, np.int8)
        self._new: dict[int, int] = {}
        self._counts = [0] * arms

    @property
    def nbytes(self) -> int:
        return self._keys_U.nbytes + self._arms_U.nbytes + 100 * len(self._new)

    def counts(self) -> list[int]:
        return list(self._counts)

    def add(self, users_N: NDArray[np.int64], arms_N: NDArray[np.int64]) -> None:
        """ArmUsers who are given an arm, in order; most of them again."""
        if self.sampled < 1:
            here = in_sample(users_N, self.sampled)
            users_N, arms_N = users_N[here], arms_N[here]
        there = np.searchsorted(self._keys_U, users_N)
        known = np.zeros(len(users_N), np.bool_)
        inside = there < len(self._keys_U)
        known[inside] = self._keys_U[there[inside]] == users_N[inside]
        for user, arm in zip(users_N[~known].tolist(), arms_N[~known].tolist(), strict=True):
            if user not in self._new:
                self._new[user] = arm
                self._counts[arm] += 1
        if len(self._new) >= _NEW or len(self._new) + len(self._keys_U) > self._most:
            self._lay_in_order()

    def _lay_in_order(self) -> None:
        keys = np.concatenate([self._keys_U, np.fromiter(self._new, np.int64)])
        arms = np.concatenate([self._arms_U, np.fromiter(self._new.values(), np.int8)])
        order = np.argsort(keys, kind="stable")
        self._keys_U, self._arms_U, self._new = keys[order], arms[order], {}
        while len(self._keys_U) > self._most:
            self.sampled /= 2
            here = in_sample(self._keys_U, self.sampled)
            self._keys_U, self._arms_U = self._keys_U[here], self._arms_U[here]
            counted = np.bincount(self._arms_U, minlength=len(self._counts))
            self._counts = [int(n) for n in counted]
