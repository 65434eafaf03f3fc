"""Rounding of published rows and dense parameters, and the digest of a set of rows.

    format   a row of dimension D on the wire                           error of a component x
    fp32     D float32, little-endian                                   none
    fp16     D float16, to nearest, ties to even; beyond ±65,504 that   2⁻¹¹ |x|, at least 2⁻²⁵
    int8     its scale s = max |x| / 127 as float32, then D int8        s / 2

Dense parameters are float16 under int8 too: one scale for all of them would lose the small ones.
"""

# N rows, D dimension, S bytes of a row on the wire

from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from parameter_server.table.routing import Keys, Rows, as_keys, as_rows
from recsys.arrays.compiled import kernel, mix, read_only
from recsys.events.hashing import splitmix64

FORMATS: Final = ("fp32", "fp16", "int8")
Packed = NDArray[np.uint8]
_SCALE_BYTES: Final = 4
_HUGE: Final = np.float32(3e38)  # int8: larger values saturate, or 127 · scale might overflow
_TINY: Final = np.float32(1e-30)  # int8: smaller rows are zero, their scale has no inverse

_KEYS, _ROWS = read_only(types.int64, 1), read_only(types.float32, 2)
_U32 = read_only(types.uint32, 2)
_ROWS_OUT, _U32_OUT = types.float32[:, ::1], types.uint32[:, ::1]


class Rounded(NamedTuple):
    """Encoded rows (N, S) and their decoded values (N, D)."""

    packed: Packed
    rows: Rows


def check_format(name: str) -> str:
    """Returns the format; raises ValueError for an unknown one."""
    if name not in FORMATS:
        raise ValueError(f"delta format is {name!r}, expected one of {', '.join(FORMATS)}")
    return name


def row_bytes(dim: int, format: str) -> int:
    """S, the bytes of one encoded row without its key."""
    return {"fp32": 4 * dim, "fp16": 2 * dim, "int8": _SCALE_BYTES + dim}[format]


def round_rows(rows: Rows, format: str) -> Rounded:
    """Rounds rows (N, D) of finite numbers."""
    rows = as_rows(rows)
    count, dim = rows.shape
    if format == "fp32":
        return Rounded(rows.view(np.uint8).reshape(count, 4 * dim), rows)
    out = np.empty_like(rows)
    if format == "fp16":
        halves = np.empty((count, dim), np.uint16)
        halve(rows.view(np.uint32), halves, out.view(np.uint32))
        return Rounded(halves.view(np.uint8).reshape(count, 2 * dim), out)
    scales, codes = np.empty(count, np.float32), np.empty((count, dim), np.int8)
    quantise(rows, scales, codes, out)
    packed = np.empty((count, _SCALE_BYTES + dim), np.uint8)
    packed[:, :_SCALE_BYTES] = scales.view(np.uint8).reshape(count, _SCALE_BYTES)
    packed[:, _SCALE_BYTES:] = codes.view(np.uint8)
    return Rounded(packed, out)


def read_rows(data: bytes, dim: int, format: str) -> Rows:
    """Decodes rows (N, D) from N times S bytes."""
    packed = np.frombuffer(data, np.uint8).reshape(-1, row_bytes(dim, format))
    if format == "fp32":
        return packed.view(np.float32)
    if format == "fp16":
        return _floats(packed.view(np.uint16))
    scales = packed[:, :_SCALE_BYTES].copy().view(np.float32)
    codes = packed[:, _SCALE_BYTES:].view(np.int8)
    out: Rows = codes.astype(np.float32) * scales
    return out


def round_dense(dense: NDArray[np.float32], format: str) -> tuple[bytes, NDArray[np.float32]]:
    """Encoded dense parameters and their decoded values (P,)."""
    packed, rows = round_rows(dense.reshape(1, -1), _dense_format(format))
    return packed.tobytes(), rows.reshape(-1)


def read_dense(data: bytes, format: str) -> NDArray[np.float32]:
    """Decodes dense parameters (P,)."""
    if _dense_format(format) == "fp32":
        return np.frombuffer(data, np.float32)
    return _floats(np.frombuffer(data, np.uint16).reshape(1, -1)).reshape(-1)


def _floats(halves: NDArray[np.uint16]) -> Rows:
    out = np.empty(halves.shape, np.float32)
    _widen(halves, out.view(np.uint32))
    return out


def dense_bytes(format: str) -> int:
    """Bytes of one encoded dense parameter."""
    return 4 if _dense_format(format) == "fp32" else 2


def _dense_format(format: str) -> str:
    return "fp32" if format == "fp32" else "fp16"


def digest_of_rows(seed: int, keys: Keys, rows: Rows, chosen: NDArray[np.bool_]) -> int:
    """Sum, modulo 2⁶⁴, of a hash of each ``chosen`` (key, row): independent of order, and updated by hashing
    only the changed rows. ``seed``: of the table.

    A row is hashed by one multiplier for each of its 32-bit words (Carter, Wegman 1979; Lemire, Kaser 2014):
    two rows of one key collide with probability 2⁻³³ at most, sets of rows with 2⁻⁶⁴ more. No defence against
    adversarial rows.
    """
    words = as_rows(rows).view(np.uint32)
    multipliers = _multipliers(seed, words.shape[1])
    return int(_sum_of_rows(np.uint64(seed), multipliers, as_keys(keys), words, chosen))


@cache
def _multipliers(seed: int, dim: int) -> NDArray[np.uint64]:
    return splitmix64(np.uint64(seed) + np.arange(1, dim + 1, dtype=np.uint64))


def distances(left: Rows, right: Rows) -> NDArray[np.float64]:
    """Euclidean distance of each pair of rows (N,), summed in order."""
    out = np.empty(len(left), np.float64)
    _distances(as_rows(left), as_rows(right), out)
    return out


def differ(left: Rows, right: Rows) -> NDArray[np.bool_]:
    """Mask of the pairs of rows that differ in any bit (N,)."""
    out = np.empty(len(left), np.bool_)
    _differ(as_rows(left).view(np.uint32), as_rows(right).view(np.uint32), out)
    return out


@kernel(types.void(_U32, types.uint16[:, ::1], _U32_OUT))
def halve(bits: Any, halves: Any, out_bits: Any) -> None:
    """Rounds float32 (as bits) to float16, to nearest, ties to even; saturates. ``out_bits``: the same
    numbers as float32.

    A normal half is the upper bits of the float after half a step was added; below 2⁻¹⁴ the addition of 0.5
    shifts out the excess bits (both after F. Giesen, float_to_half_fast3_rtne). Both are computed and one is
    chosen, and no array is passed twice, so that the loop vectorizes.
    """
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            word = bits[i, j]
            sign = np.uint32(word & np.uint32(0x8000_0000))
            size = np.uint32(min(np.uint32(word ^ sign), np.uint32(0x477F_E000)))
            odd = np.uint32(np.uint32(size >> np.uint32(13)) & np.uint32(1))
            normal = np.uint32(np.uint32(size + np.uint32(0xFFF) + odd) & np.uint32(0xFFFF_E000))
            shifted = np.float32(size.view(np.float32) + np.float32(0.5))
            tiny = np.float32(shifted - np.float32(0.5)).view(np.uint32)
            code = np.uint32(np.uint32(normal - np.uint32(0x3800_0000)) >> np.uint32(13))
            if size < np.uint32(0x3880_0000):
                normal = tiny
                code = np.uint32(shifted.view(np.uint32) - np.uint32(0x3F00_0000))
            out_bits[i, j] = np.uint32(normal | sign)
            halves[i, j] = np.uint16(code | np.uint32(sign >> np.uint32(16)))


@kernel(types.void(read_only(types.uint16, 2), _U32_OUT))
def _widen(halves: Any, out_bits: Any) -> None:
    """Converts finite float16 to float32, exactly."""
    for i in range(halves.shape[0]):
        for j in range(halves.shape[1]):
            word = np.uint32(halves[i, j])
            size = np.uint32(word & np.uint32(0x7FFF))
            normal = np.uint32(np.uint32(size << np.uint32(13)) + np.uint32(0x3800_0000))
            tiny = np.float32(np.float32(np.int32(size)) * np.float32(2.0**-24)).view(np.uint32)
            if size < np.uint32(0x400):
                normal = tiny
            sign = np.uint32(np.uint32(word & np.uint32(0x8000)) << np.uint32(16))
            out_bits[i, j] = np.uint32(normal | sign)


@kernel(types.void(_ROWS, types.float32[::1], types.int8[:, ::1], _ROWS_OUT))
def quantise(values: Any, scales: Any, codes: Any, out: Any) -> None:
    """Rounds each row to 255 steps of its own scale."""
    for i in range(values.shape[0]):
        top = np.float32(0)
        for j in range(values.shape[1]):
            top = max(top, abs(values[i, j]))
        scale, inverse = np.float32(0), np.float32(0)
        top = min(top, _HUGE)
        if top >= _TINY:
            scale, inverse = top / np.float32(127), np.float32(127) / top
        scales[i] = scale
        for j in range(values.shape[1]):
            code = np.int8(np.rint(min(max(values[i, j], -top), top) * inverse))  # has no -0
            codes[i, j] = code
            out[i, j] = np.float32(code) * scale


@kernel(types.uint64(types.uint64, read_only(types.uint64, 1), _KEYS, _U32, read_only(types.boolean, 1)))
def _sum_of_rows(seed: Any, multipliers: Any, keys: Any, words: Any, chosen: Any) -> Any:
    total = np.uint64(0)
    for i in range(keys.shape[0]):
        if chosen[i]:
            row = np.uint64(0)
            for j in range(words.shape[1]):
                row += np.uint64(words[i, j]) * multipliers[j]
            total += mix(row + mix(np.uint64(keys[i]) ^ seed))
    return total


@kernel(types.void(_ROWS, _ROWS, types.float64[::1]))
def _distances(left: Any, right: Any, out: Any) -> None:
    for i in range(left.shape[0]):
        total = 0.0
        for j in range(left.shape[1]):
            step = np.float64(left[i, j]) - np.float64(right[i, j])
            total += step * step
        out[i] = np.sqrt(total)


@kernel(types.void(_U32, _U32, types.boolean[::1]))
def _differ(left: Any, right: Any, out: Any) -> None:
    for i in range(left.shape[0]):
        differs = False
        for j in range(left.shape[1]):
            differs |= left[i, j] != right[i, j]
        out[i] = differs
