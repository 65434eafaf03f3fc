"""Contracts of operators (``recsys.operators``) and readers (``recsys.readers``)."""

import pickle
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay.datasets.table_rows import ROWS, Block
from runtime.contracts.determinism import Contract, deterministic, require

_ROWS: Final = 500


def _columns(plugin: Any) -> NDArray[np.float32]:
    """Numbers such as columns have, with some that are equal and the largest."""
    draw = np.random.default_rng(0)
    columns = draw.normal(0, 3, (int(plugin.columns), _ROWS)).astype(np.float32)
    columns[:, :4], columns[:, 4:8], columns[:, 8] = 0, 1, 100
    return columns


def _call(plugin: Any, columns: NDArray[np.float32]) -> bytes:
    result, size = np.asarray(plugin(*columns.copy()), np.float32), columns.shape[1]
    require(result.shape == (size,), f"the result has the shape {result.shape}, not ({size},)")
    require(np.isfinite(result).all(), "the result isn't finite")
    return result.tobytes()


def _column_calls(plugin: Any) -> list[partial[bytes]]:
    columns = _columns(plugin)
    return [partial(_call, plugin, columns[:, n : n + 50]) for n in range(0, _ROWS, 50)]


def _rows_alone(plugin: Any) -> None:
    columns = _columns(plugin)
    alone = [_call(plugin, columns[:, n : n + 1]) for n in range(_ROWS)]
    require(_call(plugin, columns) == b"".join(alone), "a row's result depends on the other rows")


def _read(plugin: Any) -> bytes:
    """Rows of the plug-in's sample."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sample"
        file.write_bytes(plugin.sample)
        blocks: list[Block] = list(plugin(file))
    for lines, columns, bad in blocks:
        require(len(lines) + len(bad) <= ROWS, f"a block has more than {ROWS} rows")
        require(lines == sorted(set(lines)), f"lines don't ascend: {lines[:5]}")
        lengths = {name: len(values) for name, values in columns.items()}
        same = set(lengths.values()) == {len(lines)}
        require(same, f"columns have {lengths} values, expected {len(lines)}")
    return pickle.dumps(blocks)


OPERATORS: Final[dict[str, Contract]] = {
    **deterministic(_column_calls),
    "rows alone": _rows_alone,
}
READERS: Final = deterministic(lambda plugin: [partial(_read, plugin)])
