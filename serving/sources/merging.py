"""Merges the results of sources into one list of candidates, in one compiled call.

Legend: S sources, M items that they found, N candidates.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only
from serving.sources.source import Indices

_int = types.int64
_IN = read_only(_int, 1)


@kernel(_int(_IN, _IN, _IN, _IN, _int, _int, types.int32[:, ::1], _int[::1], _int[::1]))
def _merge(found_M: Any, ends_S: Any, shares_S: Any, bits_S: Any, limit: Any, most: Any, marks: Any,
           indices: Any, sources: Any) -> Any:  # fmt: skip
    """Writes candidates with a bit for each source that has them in its share; returns their number.
    ``marks`` (catalogue, 2), zeros before and after: place in the list and last source, both from 1."""
    count, start = 0, 0
    for s in range(ends_S.shape[0]):
        taken = 0
        for m in range(start, ends_S[s]):
            index = found_M[m]
            if marks[index, 1] == s + 1:
                continue
            if taken == shares_S[s]:
                break
            marks[index, 1] = s + 1
            taken += 1
            if marks[index, 0] == 0:
                if count == limit:
                    continue
                indices[count], sources[count] = index, 0
                count += 1
                marks[index, 0] = count
            sources[marks[index, 0] - 1] |= bits_S[s]
        start = ends_S[s]
    start = 0
    for s in range(ends_S.shape[0]):  # what is left of each fills the places that are left
        for m in range(start, ends_S[s]):
            index = found_M[m]
            if marks[index, 0] == 0 and count < min(limit, most):
                indices[count], sources[count] = index, bits_S[s]
                count += 1
                marks[index, 0] = count
        start = ends_S[s]
    for index in found_M:
        marks[index] = 0
    return count


class Merging:
    """Merges one request at a time."""

    def __init__(self) -> None:
        self._marks = np.zeros((0, 2), np.int32)

    def __call__(
        self, found: Sequence[Indices], shares: Sequence[int], places: Sequence[int], limit: int, most: int,
        items: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
        """At most ``limit`` candidates (N,), in the order of the sources, and for each a bit at the place of
        every source that has it. A source gives its share, in which an item counts once; the rest of what it
        found fills the list up to ``most``. ``items``: more than any index."""
        if len(self._marks) < items:
            self._marks = np.zeros((2 * items, 2), np.int32)
        found_M = np.concatenate(found) if found else np.zeros(0, np.int64)
        ends = np.cumsum([len(each) for each in found], dtype=np.int64)
        bits = np.int64(1) << np.array(places, np.int64)
        indices, sources = np.empty(len(found_M), np.int64), np.empty(len(found_M), np.int64)
        shares_S = np.array(shares, np.int64)
        count = _merge(found_M, ends, shares_S, bits, limit, most, self._marks, indices, sources)
        return indices[:count], sources[:count]
