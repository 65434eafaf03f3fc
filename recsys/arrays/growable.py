"""Columns that grow: one row per entity, with spare rows behind."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def grown(column: NDArray[Any], rows: int, limit: int = 0) -> NDArray[Any]:
    """Returns the column, or a zero-padded copy with room for at least ``rows`` rows.

    The copy has twice the rows, or ``limit`` rows if that suffices. Rows never written take no memory
    (``written_bytes``). ``ndarray.resize`` would not use huge pages: random reads were a quarter slower.
    """
    if rows <= len(column):
        return column
    room = limit if rows <= limit else max(rows, 2 * len(column))
    out = np.zeros((room, *column.shape[1:]), column.dtype)
    out[: len(column)] = column
    return out


def written_bytes(column: NDArray[Any], rows: int) -> int:
    """Memory of a ``grown`` column of which ``rows`` rows were written, in whole pages.

    Huge pages add up to 2 MiB.
    """
    written = rows * column.nbytes // max(1, len(column))
    return min(column.nbytes, -(-written // 4096) * 4096)
