"""A set of catalogue indices, one bit each: a million in 125 KB, which a request copies in microseconds.

How many there are is kept by what each change finds, so nothing that a request does looks at all of them.
"""

from typing import overload

import numpy as np
from numpy.typing import NDArray

from recsys.arrays import bit_kernels

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Bitmap:
    """Which of the indices 0 … ``len`` - 1 are in it. Reads as a mask does: ``chosen[bitmap[chosen]]``."""

    def __init__(self, size: int = 0) -> None:
        """Of ``size`` indices none is in it."""
        self._size, self._count = size, 0
        self._bits = np.zeros(size // 8 + 1, np.uint8)

    @classmethod
    def of(cls, mask: Mask) -> "Bitmap":
        found = cls(len(mask))
        packed = np.packbits(mask, bitorder="little")
        found._bits[: len(packed)] = packed
        found._count = int(np.count_nonzero(mask))
        return found

    def __len__(self) -> int:
        """How many indices there are, in it or not."""
        return self._size

    @property
    def count(self) -> int:
        """How many are in it."""
        return self._count

    @property
    def bits(self) -> NDArray[np.uint8]:
        """Index i is bit i % 8, from the lowest, of byte i // 8. All bits from ``len`` on are 0. A view."""
        return self._bits[: self._size // 8 + 1]

    def copy(self) -> "Bitmap":
        other = Bitmap.__new__(Bitmap)
        other._size, other._count, other._bits = self._size, self._count, self.bits.copy()
        return other

    def grow(self, size: int) -> None:
        """Makes room for indices up to ``size`` - 1; the new ones aren't in it."""
        missing = size // 8 + 1 - len(self._bits)
        if missing > 0:
            more = max(missing, len(self._bits))
            self._bits = np.concatenate([self._bits, np.zeros(more, np.uint8)])
        self._size = max(self._size, size)

    def put(self, index: int, there: bool) -> None:
        """Adds one index, or takes it out."""
        byte, bit = index >> 3, 1 << (index & 7)
        before = int(self._bits[byte])
        after = before | bit if there else before & ~bit
        if before != after:
            self._bits[byte] = after
            self._count += 1 if there else -1

    def take(self, indices: Indices) -> Indices:
        """Takes out those of the indices that are in it, and returns them, each once, in their order. Raises
        IndexError, as all do, for one that is beyond its memory."""
        taken = np.empty(len(indices), np.int64)
        count = bit_kernels.take(self._bits, np.ascontiguousarray(indices), taken)
        _check(count >= 0, indices, self._size)
        self._count -= count
        return taken[:count]

    def give_back(self, taken: Indices) -> None:
        """Puts in again what ``take`` gave."""
        _check(bit_kernels.give(self._bits, np.ascontiguousarray(taken)), taken, self._size)
        self._count += len(taken)

    def mask(self) -> Mask:
        """Of all indices: for whoever has the time."""
        return np.unpackbits(self.bits, count=self._size, bitorder="little").view(np.bool_)

    def first(self, k: int) -> Indices:
        """The k smallest indices in it."""
        found, bytes_ = np.empty(0, np.int64), max(64, k // 4)
        while len(found) < k:
            part = self.bits[:bytes_]
            found = np.flatnonzero(np.unpackbits(part, bitorder="little"))
            if bytes_ >= len(self.bits):
                break
            bytes_ *= 4
        return found[:k]

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
