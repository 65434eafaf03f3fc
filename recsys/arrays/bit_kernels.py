"""The compiled loops of a bitmap: hundreds of indices at once, in one pass.

``bits``: uint8, index i is bit i % 8, from the lowest, of byte i // 8. Nothing is done where an index lies
beyond them: then ``inside`` is false.
"""

from typing import Any

from numba import types

from recsys.arrays.compiled import kernel, read_only

_BITS, _INDICES = types.uint8[::1], read_only(types.int64, 1)
_ANY_INDICES = types.Array(types.int64, 1, "A", readonly=True)  # a column will do


@kernel(types.boolean(read_only(types.uint8, 1), _ANY_INDICES))
def inside(bits: Any, indices: Any) -> Any:
    """Whether all indices lie within."""
    within = True
    for i in range(indices.shape[0]):
        within &= 0 <= indices[i] < 8 * bits.shape[0]
    return within


@kernel(types.boolean(read_only(types.uint8, 1), _ANY_INDICES, types.boolean[::1]))
def look(bits: Any, indices: Any, there: Any) -> Any:
    """Whether each index is in it."""
    if not inside(bits, indices):
        return False
    for i in range(indices.shape[0]):
        there[i] = bits[indices[i] >> 3] >> (indices[i] & 7) & 1
    return True


@kernel(types.int64(_BITS, _INDICES, types.int64[::1]))
def take(bits: Any, indices: Any, taken: Any) -> Any:
    """Takes out those that are in it, which ``taken`` then begins with; how many they are, or -1."""
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
    """Puts indices in."""
    if not inside(bits, indices):
        return False
    for i in range(indices.shape[0]):
        bits[indices[i] >> 3] |= types.uint8(1) << types.uint8(indices[i] & 7)
    return True
