"""Columns that grow: one row a thing, room behind for more."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def grown(column: NDArray[Any], rows: int, limit: int = 0) -> NDArray[Any]:
    """The column, or a copy with room for at least ``rows`` rows, zeros behind: twice what it had, or all of
    ``limit`` where that is enough. Room that was never written to takes no memory (``written_bytes``). Not by
    ``ndarray.resize``: what that adds is not on huge pages, and random reads were a quarter slower."""
    if rows <= len(column):
        return column
    room = limit if rows <= limit else max(rows, 2 * len(column))
    out = np.zeros((room, *column.shape[1:]), column.dtype)
    out[: len(column)] = column
    return out


def written_bytes(column: NDArray[Any], rows: int) -> int:
    """The memory behind a column of ``grown`` of which ``rows`` rows were ever written, in whole pages; where
    the system gives huge ones, up to 2 MiB more."""
    written = rows * column.nbytes // max(1, len(column))
    return min(column.nbytes, -(-written // 4096) * 4096)
