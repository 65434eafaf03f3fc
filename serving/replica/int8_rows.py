"""Rows kept as they are published in the format int8: a scale and D bytes instead of D floats.

A published row (``parameter_server.publish.rounding``) is a float32 scale times whole numbers within ±127, so it can
be kept as those and given back bit for bit: lookups and digests are those of ``RowStore``. The scale is found
again from the row, which needs no other form of a delta or a snapshot. A row that isn't such a product
(published in another format, before that was changed) is kept whole beside them until it changes.

Not FBGEMM's tables: theirs are slower here (``recsys bench int8``), have no removal, and a half-precision
scale and a bias, which don't give a published row back.
"""

# N keys, D dimension, R rows kept as codes, S = D + 4 bytes of one: its scale, then its codes

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from parameter_server.table.id_map import IdMap
from parameter_server.table.kernels import kernel
from recsys.arrays.compiled import read_only
from recsys.arrays.growable import grown, written_bytes
from recsys.config.system_config import TableConfig
from serving.replica.row_store import Keys, Rows, RowStore

Packed = NDArray[np.uint8]
_SCALE_BYTES: Final = 4
_MOST = np.float32(127)  # a code's size


class Int8Rows(RowStore):
    """A ``RowStore`` with a quarter to a third of the bytes of a row. What it inherits holds the rest."""

    def __init__(self, config: TableConfig, seed: int, room: int = 8) -> None:
        super().__init__(config, seed)
        room = max(room, 8)
        self._codes_of = IdMap(room)
        self._packed: Packed = np.zeros((room, _SCALE_BYTES + config.dim), np.uint8)
        self._written = 0

    def __len__(self) -> int:
        return len(self._codes_of) + self.whole

    @property
    def whole(self) -> int:
        """How many rows are kept as float32, because int8 doesn't hold them exactly."""
        return super().__len__()

    @property
    def nbytes(self) -> int:
        own = written_bytes(self._packed, self._written)
        return own + self._codes_of.nbytes + super().nbytes

    def lookup(self, keys: Keys) -> Rows:
        """The rows of keys, (N, D)."""
        slots = self._codes_of.find(keys)
        out = np.empty((len(keys), self.config.dim), np.float32)
        if _read(self._packed, slots, out):
            elsewhere = slots < 0
            out[elsewhere] = super().lookup(keys[elsewhere])
        return out

    def set(self, keys: Keys, values: Rows) -> None:
        """Overwrites the rows of distinct keys."""
        keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values, np.float32)
        packed = np.empty((len(keys), self._packed.shape[1]), np.uint8)
        exact = np.empty(len(keys), np.bool_)
        _pack(values, packed, exact)
        if not exact.all():
            self._drop(keys[~exact])
            super().set(keys[~exact], values[~exact])
            keys, values, packed = keys[exact], values[exact], packed[exact]
        if self.whole:
            super().remove(keys)
        before = len(self._codes_of)
        slots = self._codes_of.insert(keys)
        if len(self._codes_of) > len(self._packed):
            self._packed = grown(self._packed, len(self._codes_of))
        self._written = max(self._written, len(self._codes_of))
        self._count(keys, self._unpacked(slots), slots < before, -1)
        self._count(keys, values, np.ones(len(keys), np.bool_), 1)
        self._packed[slots] = packed

    def reserve(self, more: int) -> None:
        """Makes room for so many more rows. Another thread may read meanwhile, and none may write."""
        self._codes_of.reserve(more)
        self._packed = grown(self._packed, len(self._codes_of) + more)

    def remove(self, keys: Keys) -> None:
        """Drops rows: their ids have the initial value again."""
        self._drop(keys)
        super().remove(keys)

    def export(self) -> tuple[Keys, Rows]:
        """All keys, ascending, with their rows: what a digest is made of."""
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
            there = np.ones(len(slots), np.bool_)
            self._count(self._codes_of.keys[slots], self._unpacked(slots), there, -1)
            self._codes_of.remove(slots).apply(self._packed)

    def _unpacked(self, slots: Keys) -> Rows:
        out = np.empty((len(slots), self.config.dim), np.float32)
        _read(self._packed, slots, out)
        return out


@kernel(types.int64(read_only(types.uint8, 2), read_only(types.int64, 1), types.float32[:, ::1]))
def _read(packed: Any, slots: Any, out: Any) -> Any:
    """Writes the rows of slots; returns how many slots are below 0, whose rows are left as they are."""
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
    """Writes the scale with these bits and the codes that it makes of a row; whether they give it back."""
    scale, same = np.uint32(word).view(np.float32), True
    for k in range(4):
        to[k] = np.uint8((word >> np.uint32(8 * k)) & np.uint32(255))
    for j in range(row.shape[0]):
        code = np.int32(0)  # so that there is no -0
        if scale > 0:
            code = np.int32(np.rint(min(max(row[j] / scale, -_MOST), _MOST)))
        made = np.float32(np.float32(code) * scale).view(np.uint32)
        same &= made == np.float32(row[j]).view(np.uint32)
        to[4 + j] = np.uint8(code & 255)
    return same


@kernel(types.void(read_only(types.float32, 2), types.uint8[:, ::1], types.boolean[::1]))
def _pack(rows: Any, packed: Any, exact: Any) -> None:
    """Finds scale and codes of each row, and whether they give it back bit for bit.

    A published row's largest code is 127. Its scale times 127 was rounded, and so is the division here: the
    scale is the quotient or one of its two neighbours. Where two would do, they give the same row.
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
