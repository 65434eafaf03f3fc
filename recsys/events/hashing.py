"""Hashes: 64-bit keys of ids, and random draws as hashes of ids.

Replayed code must not depend on a generator's state or on Python's salted ``hash``: the same log must give
the same keys, partitions, initial values and samples on every machine.
"""

from typing import Final

import mmh3
import numpy as np
from numpy.typing import NDArray

Id = str | int

_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_2_POW_53: Final = float(1 << 53)


def key_of(slot: str, id_: Id) -> int:
    """The 64-bit key (signed) of an id within a slot, e.g. ``key_of("item", "v12")``.

    The integer 7 and the text "7" are the same id. Two of *n* keys collide with probability of about
    n² / 2⁶⁵: 3e-6 for ten million ids.
    """
    return mmh3.hash64(f"{slot}\x1f{id_}", 0)[0]


def partition_of(user_id: Id, partitions: int) -> int:
    """The log partition of a user, in [0, partitions): the same on every client and server."""
    return mmh3.hash(f"partition\x1f{user_id}", 0, signed=False) % partitions


def digest_of(text: str | bytes) -> str:
    """A short stable digest (32 hex digits) of configurations, feature sets and events."""
    return mmh3.hash_bytes(text, 0).hex()


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), element by element."""
    with np.errstate(over="ignore"):
        z = values + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))


def uniforms(seed: int, keys: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Draws in [0, 1), shape (len(keys), columns): a pure function of (seed, key, column)."""
    base = splitmix64(keys.view(np.uint64) ^ splitmix64(np.array([seed], np.uint64)))
    with np.errstate(over="ignore"):
        cells = base[:, None] + np.arange(1, columns + 1, dtype=np.uint64)[None, :] * _GAMMA
    return (splitmix64(cells) >> np.uint64(11)).astype(np.float64) / _2_POW_53


def uniform(seed: int, *ids: Id) -> float:
    """One draw in [0, 1) from the seed and any ids, e.g. ``uniform(0, request_id, rank)``."""
    text = "\x1f".join(map(str, ids))
    return (mmh3.hash64(text, seed & 0xFFFFFFFF, signed=False)[0] >> 11) / _2_POW_53


def cross(left: NDArray[np.int64] | int, right: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keys of pairs, element by element; 0 (absent) for a right key of 0. Not symmetric."""
    start = np.asarray(left, np.int64).view(np.uint64)
    with np.errstate(over="ignore"):
        mixed = splitmix64(splitmix64(start) + np.asarray(right).view(np.uint64) * _MIX_1)
    return np.where(np.asarray(right) == 0, np.int64(0), mixed.view(np.int64))
