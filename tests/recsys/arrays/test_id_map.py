"""Memory of maps and columns: how they grow, what counts as written, and how they shrink to a limit."""

import numpy as np
import pytest

from recsys.arrays.growable import grown, written_bytes
from recsys.arrays.id_map import IdMap


@pytest.mark.parametrize(
    ("rows", "limit", "room"), [(9, 0, 16), (40, 0, 40), (9, 12, 12), (12, 12, 12), (13, 12, 16)]
)
def test_a_column_grows_to_twice_its_rows_or_to_the_limit(rows: int, limit: int, room: int) -> None:
    column = np.arange(16.0).reshape(8, 2)
    larger = grown(column, rows, limit)
    assert larger.shape == (room, 2) and (larger[:8] == column).all() and not larger[8:].any()
    assert grown(column, 8) is column


def test_memory_is_counted_in_pages_that_were_written() -> None:
    column = np.zeros((4_096, 2))  # 16 bytes a row
    assert [written_bytes(column, rows) for rows in (0, 1, 256, 257, 4_096)] == [
        0, 4_096, 4_096, 8_192, 65_536
    ]  # fmt: skip
    assert written_bytes(np.zeros((0, 2)), 0) == 0
    assert written_bytes(np.zeros((1, 2_048)), 1) == 16_384


@pytest.mark.parametrize(("left", "rows"), [(4, 4), (3, 4), (5, 9)])
def test_a_map_beyond_its_limit_shrinks_once_its_rows_fit(left: int, rows: int) -> None:
    ids = IdMap(2, 4, {"value": np.zeros((2, 1), np.float32)})
    keys = np.arange(9) * 7
    ids.put(keys, {"value": np.arange(9, dtype=np.float32)[:, None]})
    ids.remove(np.arange(left, 9))
    cells, size = len(ids.index), ids.nbytes
    ids.shrink()
    assert len(ids.columns["value"]) == rows and len(ids) == left
    assert ids.find(keys).tolist() == [*range(left), *[-1] * (9 - left)]
    assert ids.columns["value"][:left, 0].tolist() == list(range(left))
    assert (len(ids.index) < cells) == (rows == 4) and (ids.nbytes < size) == (rows == 4)
