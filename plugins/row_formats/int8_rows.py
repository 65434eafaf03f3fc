"""Stores rows as published in the format int8: a scale and D bytes instead of D floats.

A published row (``parameter_server.publish.rounding``) is a float32 scale times whole numbers within ±127, so
it can be stored as these and restored bit for bit: lookups and digests equal those of ``RowStore``. The scale
is derived from the row, so deltas and snapshots keep their format. A row that isn't such a product (published
earlier in another format) is stored as float32 until it changes.

Not FBGEMM's tables: these are slower here (``recsys bench int8``), have no removal, and use a half-precision
scale and a bias, which don't restore a published row.
"""

# N keys, D dimension, R rows stored as codes, S = D + 4 bytes of a row: its scale, then its codes

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only
from recsys.arrays.growable import grown, written_bytes
from recsys.arrays.id_map import IdMap
from recsys.config.system_config import TableConfig
from serving.replica.row_store import Keys, Rows, RowStore

Packed = NDArray[np.uint8]
_SCALE_BYTES: Final = 4
_MOST = np.float32(127)  # largest absolute value of a code


class Int8Rows(RowStore):
    """A ``RowStore`` with a quarter to a third of the bytes. Inherited storage holds the float32 rows."""

    def __init__(self, config: TableConfig, seed: int, room: int = 8) -> None:
        super().__init__(config, seed)
        room = max(room, 8)
        self._codes_of = IdMap(room)
        self._packed: Packed = np.zeros((room, _SCALE_BYTES + config.dim), np.uint8)
        self._packed_written = 0

    def __len__(self) -> int:
        return len(self._codes_of) + self.float_rows

    @property
    def float_rows(self) -> int:
        """Number of rows stored as float32, because int8 isn't exact for them."""
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        own = written_bytes(self._packed, self._packed_written)
        return own + self._codes_of.nbytes + super().nbytes

    def lookup(self, keys: Keys) -> Rows:
        slots = self._codes_of.find(keys)
        out = np.empty((len(keys), self.config.dim), np.float32)
        if _read(self._packed, slots, out):
            missing = slots < 0
            out[missing] = super().lookup(keys[missing])
        return out

    def set(self, keys: Keys, values: Rows, step: int = 0) -> None:
        keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values, np.float32)
        packed = np.empty((len(keys), self._packed.shape[1]), np.uint8)
        exact = np.empty(len(keys), np.bool_)
        _pack(values, packed, exact)
        if not exact.all():
            self._drop(keys[~exact])
            super().set(keys[~exact], values[~exact])
            keys, values, packed = keys[exact], values[exact], packed[exact]
        if self.float_rows:
            super().remove(keys)
        before = len(self._codes_of)
        slots = self._codes_of.insert(keys)
        self._packed = grown(self._packed, len(self._codes_of))
        self._packed_written = max(self._packed_written, len(self._codes_of))
        self._count(keys, self._unpacked(slots), -1, slots < before)
        self._count(keys, values, 1)
        self._packed[slots] = packed

    def reserve(self, more: int) -> None:
        self._codes_of.reserve(more)
        self._packed = grown(self._packed, len(self._codes_of) + more)

    def remove(self, keys: Keys, step: int = 0) -> None:
        self._drop(keys)
        super().remove(keys)

    def export(self) -> tuple[Keys, Rows]:
        own = self._codes_of.keys
        keys, rows = super().export()
        keys = np.concatenate([own, keys])
        rows = np.concatenate([self._unpacked(np.arange(len(own))), rows])
        order = np.argsort(keys, kind="stable")
        return keys[order], rows[order]

    def _drop(self, keys: Keys) -> None:
        slots = self._codes_of.find(keys)
        slots = slots[slots >= 0]
        if len(slots):
            self._count(self._codes_of.keys[slots], self._unpacked(slots), -1)
            self._codes_of.remove(slots).apply(self._packed)

    def _unpacked(self, slots: Keys) -> Rows:
        out = np.empty((len(slots), self.config.dim), np.float32)
        _read(self._packed, slots, out)
        return out


@kernel(types.int64(read_only(types.uint8, 2), read_only(types.int64, 1), types.float32[:, ::1]))
def _read(packed: Any, slots: Any, out: Any) -> Any:
    """Writes the rows of slots; returns the number of negative slots, whose rows stay as they are."""
    missing = 0
    for i in range(slots.shape[0]):
        slot = slots[i]
        if slot < 0:
            missing += 1
            continue
        row, to = packed[slot], out[i]
        bits = np.uint32(row[0]) | np.uint32(np.uint32(row[1]) << np.uint32(8))
        bits |= np.uint32(np.uint32(row[2]) << np.uint32(16))
        bits |= np.uint32(np.uint32(row[3]) << np.uint32(24))
        scale = np.uint32(bits).view(np.float32)
        for j in range(to.shape[0]):
            to[j] = np.float32(np.int8(row[4 + j])) * scale
    return missing


@kernel(types.boolean(read_only(types.float32, 1), types.uint32, types.uint8[::1]))
def _try(row: Any, word: Any, to: Any) -> Any:
    """Writes a scale by its bits and a row's codes for it; returns whether they restore the row."""
    scale, same = np.uint32(word).view(np.float32), True
    for k in range(4):
        to[k] = np.uint8((word >> np.uint32(8 * k)) & np.uint32(255))
    for j in range(row.shape[0]):
        code = np.int32(0)  # so that there is no -0
        if scale > 0:
            code = np.int32(np.rint(min(max(row[j] / scale, -_MOST), _MOST)))
        restored = np.float32(np.float32(code) * scale).view(np.uint32)
        same &= restored == np.float32(row[j]).view(np.uint32)
        to[4 + j] = np.uint8(code & 255)
    return same


@kernel(types.void(read_only(types.float32, 2), types.uint8[:, ::1], types.boolean[::1]))
def _pack(rows: Any, packed: Any, exact: Any) -> None:
    """Finds scale and codes of each row, and whether they restore it bit for bit.

    A published row's largest code is 127. Its scale times 127 was rounded, as is the division here: the scale
    is the quotient or one of its two neighbours. Where two are possible, they restore the same row.
    """
    for i in range(rows.shape[0]):
        top = np.float32(0)
        for j in range(rows.shape[1]):
            top = max(top, abs(rows[i, j]))
        word = np.float32(top / _MOST).view(np.uint32)
        exact[i] = _try(rows[i], word, packed[i])
        if not exact[i] and top > 0:
            exact[i] = _try(rows[i], np.uint32(word + np.uint32(1)), packed[i])
            if not exact[i]:
                exact[i] = _try(rows[i], np.uint32(word - np.uint32(1)), packed[i])
