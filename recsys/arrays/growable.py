"""Columns that grow: one row per entity, with spare rows behind."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def grown(column: NDArray[Any], rows: int, limit: int = 0, factor: float = 2.0) -> NDArray[Any]:
    """The column, or a zero-padded copy with room for at least ``rows`` rows: twice as many, or ``limit`` if
    that suffices. ``ndarray.resize`` would not use huge pages: random reads were a quarter slower."""
    if rows <= len(column):
        return column
    room = limit if rows <= limit else max(rows, int(factor * len(column)))
    out = np.zeros((room, *column.shape[1:]), column.dtype)
    out[: len(column)] = column
    return out


def written_bytes(column: NDArray[Any], rows: int) -> int:
    """Memory of a ``grown`` column of which ``rows`` rows were written, in whole pages; huge pages add up to
    2 MiB."""
    written = rows * column.nbytes // max(1, len(column))
    return min(column.nbytes, -(-written // 4096) * 4096)
