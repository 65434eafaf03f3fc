"""A set of catalogue indices, one bit each: a million in 125 KB, which a request copies in microseconds.

Each change of some indices updates the count and scans no others.
"""

from typing import overload

import numpy as np
from numpy.typing import NDArray

from recsys.arrays import bit_kernels

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Bitmap:
    """A set of indices 0 … ``len`` - 1, indexed like a mask: ``chosen[bitmap[chosen]]``. It starts empty."""

    def __init__(self, size: int = 0) -> None:
        self._size, self._count = size, 0
        self._bits = np.zeros(size // 8 + 1, np.uint8)

    @classmethod
    def of(cls, mask: Mask) -> "Bitmap":
        bitmap = cls(len(mask))
        packed = np.packbits(mask, bitorder="little")
        bitmap._bits[: len(packed)] = packed
        bitmap._count = int(np.count_nonzero(mask))
        return bitmap

    def __len__(self) -> int:
        """Number of indices, set or not."""
        return self._size

    @property
    def count(self) -> int:
        """Number of set indices."""
        return self._count

    @property
    def bits(self) -> NDArray[np.uint8]:
        """View: index i is bit i % 8 (lowest first) of byte i // 8; bits from ``len`` on are 0."""
        return self._bits[: self._size // 8 + 1]

    def copy(self) -> "Bitmap":
        bitmap = Bitmap.__new__(Bitmap)
        bitmap._size, bitmap._count, bitmap._bits = self._size, self._count, self.bits.copy()
        return bitmap

    def grow(self, size: int) -> None:
        """Makes room for indices up to ``size`` - 1; new indices are not set."""
        missing = size // 8 + 1 - len(self._bits)
        if missing > 0:
            more = max(missing, len(self._bits))
            self._bits = np.concatenate([self._bits, np.zeros(more, np.uint8)])
        self._size = max(self._size, size)

    def put(self, index: int, present: bool) -> None:
        """Sets or clears one index."""
        byte, bit = index >> 3, 1 << (index & 7)
        before = int(self._bits[byte])
        after = before | bit if present else before & ~bit
        if before != after:
            self._bits[byte] = after
            self._count += 1 if present else -1

    def take(self, indices: Indices) -> Indices:
        """Clears the given indices and returns the ones that were set, each once, in order.

        Like all methods, raises IndexError for an index out of range.
        """
        taken = np.empty(len(indices), np.int64)
        count = bit_kernels.take(self._bits, np.ascontiguousarray(indices), taken)
        _check(count >= 0, indices, self._size)
        self._count -= count
        return taken[:count]

    def give_back(self, taken: Indices) -> None:
        """Sets the indices that ``take`` returned."""
        _check(bit_kernels.give(self._bits, np.ascontiguousarray(taken)), taken, self._size)
        self._count += len(taken)

    def intersect(self, other: "Bitmap") -> int:
        """Clears what isn't set in another bitmap of this size, and returns how many that were."""
        return self._become(self.bits & other.bits)

    def subtract(self, other: "Bitmap") -> int:
        """Clears what is set in another bitmap of this size, and returns how many that were."""
        return self._become(self.bits & ~other.bits)

    def unite(self, other: "Bitmap") -> None:
        """Sets what is set in another bitmap of this size."""
        self._become(self.bits | other.bits)

    def _become(self, bits: NDArray[np.uint8]) -> int:
        """Takes over bits; returns how many fewer are set than before."""
        before, self._bits = self._count, bits
        self._count = int(np.bitwise_count(bits).sum())
        return before - self._count

    def mask(self) -> Mask:
        """All indices as a mask; scans everything."""
        return np.unpackbits(self.bits, count=self._size, bitorder="little").view(np.bool_)

    def first(self, k: int) -> Indices:
        """The k smallest set indices."""
        smallest, bytes_ = np.empty(0, np.int64), max(64, k // 4)
        while len(smallest) < k:
            smallest = np.flatnonzero(np.unpackbits(self.bits[:bytes_], bitorder="little"))
            if bytes_ >= len(self.bits):
                break
            bytes_ *= 4
        return smallest[:k]

    @overload
    def __getitem__(self, index: int) -> bool: ...
    @overload
    def __getitem__(self, index: Indices) -> Mask: ...
    def __getitem__(self, index: int | Indices) -> bool | Mask:
        if isinstance(index, int | np.integer):
            return bool(self._bits[index >> 3] >> (index & 7) & 1)
        chosen = np.empty(len(index), np.bool_)
        _check(bit_kernels.look(self._bits, index, chosen), index, self._size)
        return chosen


def _check(inside: bool, indices: Indices, size: int) -> None:
    if not inside:
        raise IndexError(f"indices {indices.min()} to {indices.max()}, expected 0 to {size - 1}")
