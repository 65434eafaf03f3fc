"""Contracts of operators (``recsys.operators``) and readers (``recsys.readers``)."""

import pickle
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plugins.plugin_contracts.determinism import Contract, deterministic, require, version
from replay.datasets.table_rows import ROWS, Block


def _columns(plugin: Any) -> NDArray[np.float32]:
    """Numbers as in columns, the first ones equal."""
    require(hasattr(plugin, "columns"), "it has no attribute columns, the number of those it reads")
    draw = np.random.default_rng(0)
    columns = draw.normal(0, 3, (int(plugin.columns), 500)).astype(np.float32)
    columns[:, :4], columns[:, 4:8] = 0, 100
    return columns


def _call(plugin: Any, columns: NDArray[np.float32]) -> bytes:
    result = np.asarray(plugin(*columns.copy()), np.float32)
    require(result.shape == columns[0].shape, f"{result.shape} isn't {columns[0].shape}")
    require(np.isfinite(result).all(), "the result isn't finite")
    return result.tobytes()


def _operator_calls(plugin: Any) -> list[partial[bytes]]:
    return [partial(_call, plugin, some) for some in np.split(_columns(plugin), 10, axis=1)]


def _rows_alone(plugin: Any) -> None:
    columns = _columns(plugin)
    alone = b"".join(_call(plugin, row) for row in np.split(columns, columns.shape[1], axis=1))
    require(_call(plugin, columns) == alone, "a row's result depends on the other rows")


def _read(plugin: Any) -> bytes:
    """Rows of the plug-in's sample."""
    require(hasattr(plugin, "sample"), "it has no attribute sample, the bytes of a small file")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sample"
        file.write_bytes(plugin.sample)
        blocks: list[Block] = list(plugin(file))
    for lines, columns, bad in blocks:
        require(len(lines) + len(bad) <= ROWS, f"a block has more than {ROWS} rows")
        require(lines == sorted(set(lines)), f"lines don't ascend: {lines[:5]}")
        lengths = {name: len(values) for name, values in columns.items()}
        equal = set(lengths.values()) == {len(lines)}
        require(equal, f"columns have {lengths} values, expected {len(lines)}")
    return pickle.dumps(blocks)


OPERATORS: Final[dict[str, Contract]] = {
    "version": version,
    **deterministic(_operator_calls),
    "rows alone": _rows_alone,
}
READERS: Final = deterministic(lambda plugin: [partial(_read, plugin)])
