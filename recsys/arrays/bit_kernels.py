"""Compiled loops of a bitmap, over hundreds of indices in one pass.

``bits``: uint8; index i is bit i % 8 (lowest first) of byte i // 8. A kernel changes nothing and reports
failure if an index is out of range.
"""

from typing import Any

from numba import types

from recsys.arrays.compiled import kernel, read_only

_BITS, _INDICES = types.uint8[::1], read_only(types.int64, 1)
_ANY_INDICES = types.Array(types.int64, 1, "A", readonly=True)  # strided arrays are accepted


@kernel(types.boolean(read_only(types.uint8, 1), _ANY_INDICES))
def inside(bits: Any, indices: Any) -> Any:
    """Whether all indices are in range."""
    within = True
    for i in range(indices.shape[0]):
        within &= 0 <= indices[i] < 8 * bits.shape[0]
    return within


@kernel(types.boolean(read_only(types.uint8, 1), _ANY_INDICES, types.boolean[::1]))
def look(bits: Any, indices: Any, present: Any) -> Any:
    """Writes whether each index is set."""
    if not inside(bits, indices):
        return False
    for i in range(indices.shape[0]):
        present[i] = bits[indices[i] >> 3] >> (indices[i] & 7) & 1
    return True


@kernel(types.int64(_BITS, _INDICES, types.int64[::1]))
def take(bits: Any, indices: Any, taken: Any) -> Any:
    """Clears the set indices, writes them to the front of ``taken``, and returns their number or -1."""
    count = 0
    if not inside(bits, indices):
        return -1
    for i in range(indices.shape[0]):
        byte, bit = indices[i] >> 3, types.uint8(1) << types.uint8(indices[i] & 7)
        if bits[byte] & bit:
            bits[byte] &= ~bit
            taken[count] = indices[i]
            count += 1
    return count


@kernel(types.boolean(_BITS, _INDICES))
def give(bits: Any, indices: Any) -> Any:
    """Sets the indices."""
    if not inside(bits, indices):
        return False
    for i in range(indices.shape[0]):
        bits[indices[i] >> 3] |= types.uint8(1) << types.uint8(indices[i] & 7)
    return True
