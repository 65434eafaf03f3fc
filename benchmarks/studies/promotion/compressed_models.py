"""Smaller forms of a trained ranker: factored or pruned, of its first layer or of its rows.

Each form gives the arrays that a model of full size would have (its AUC), and the parts that a replica would
keep and compute with (its bytes and time).

Legend: R rows, D embedding, W = D + 1 a row's numbers, J hidden, I inputs, r rank.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numba import types
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recsys.arrays.compiled import kernel, read_only
from recsys.arrays.id_map import IdMap
from recsys.config.system_config import TableConfig
from recsys.model import list_ranker
from recsys.model.linear_layer import linear
from recsys.model.model import Model
from recsys.model.ranker import Ranker
from recsys.model.tile_kernels import add_shared
from serving.replica.row_store import RowStore

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]
Product = Callable[[Tensor], Tensor]
_FLOAT, _COLUMN = 4, 2  # bytes of a number, and of a column's number in a sparse matrix


def low_rank(matrix: Floats, rank: int) -> tuple[Floats, Floats]:
    """The nearest factors (R, r) and (r, W), by the singular values (Eckart and Young 1936)."""
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]).astype(np.float32), v[:rank].astype(np.float32)


def pruned(matrix: Floats, share: float) -> Floats:
    """The matrix without the smallest of its numbers (Han et al. 2015)."""
    least = np.quantile(np.abs(matrix), share)
    return np.where(np.abs(matrix) >= least, matrix, np.float32(0)).astype(np.float32)


@dataclass(frozen=True)
class DenseForm:
    """A first layer in another form: its weight (J, I) written out, its bytes, and the product with an item's
    own inputs by their part of the weight."""

    weight: Floats
    nbytes: int
    product: Callable[[Floats], Product]


def dense_low_rank(weight: Floats, rank: int) -> DenseForm:
    a, b = low_rank(weight, rank)

    def product(own_JI: Floats) -> Product:
        # The factor of outputs is of the whole weight, so that of the own inputs is by least squares.
        inputs = torch.from_numpy(np.linalg.lstsq(a, own_JI, rcond=None)[0].astype(np.float32))
        outputs, no_r, no_j = torch.from_numpy(a), torch.zeros(rank), torch.zeros(len(a))
        return lambda x: linear(linear(x, inputs, no_r), outputs, no_j)

    return DenseForm(a @ b, a.nbytes + b.nbytes, product)


def dense_pruned(weight: Floats, share: float) -> DenseForm:
    remaining = pruned(weight, share)
    nbytes = int(np.count_nonzero(remaining)) * (_FLOAT + _COLUMN) + _FLOAT * (len(remaining) + 1)

    def product(own_JI: Floats) -> Product:
        sparse = torch.from_numpy(own_JI.copy()).to_sparse_csr()
        return lambda x: torch.sparse.mm(sparse, x.t()).t().contiguous()

    return DenseForm(remaining, nbytes, product)


@contextmanager
def first_layer_by(model: Model, form: DenseForm) -> Iterator[None]:
    """Ranks by the form's product instead of the dense one. The model must have the form's weight."""
    ranker = model.ranker
    assert isinstance(ranker, Ranker)
    own = list_ranker._split_of(ranker, len(model.features.user_slots)).own_JI.numpy()
    product, before = form.product(own), list_ranker._layers

    def layers(ranker: Ranker, split: Any, own: Floats, begun: Floats, owner: Keys) -> Floats:
        _, *rest = ranker.layers
        hidden: Floats = product(torch.from_numpy(own)).numpy()
        add_shared(hidden, begun, owner, bool(rest))
        x = torch.from_numpy(hidden)
        for layer in rest[:-1]:
            x = F.relu(linear(x, layer.weight, layer.bias))  # type: ignore[arg-type]
        return list_ranker._last(x, rest[-1])

    list_ranker._layers = layers
    try:
        yield
    finally:
        list_ranker._layers = before


class LowRankRows:
    """Rows as codes (R, r) times a basis (r, D), each with its linear term."""

    def __init__(
        self, table: TableConfig, seed: int, keys: Keys, values: Floats, rank: int
    ) -> None:
        codes, self._basis = low_rank(values[:, :-1], rank)
        codes = np.concatenate([codes, values[:, -1:]], 1)
        self._codes = RowStore.filled(replace(table, dim=rank + 1), seed, keys, codes)

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._basis.nbytes

    def __len__(self) -> int:
        return len(self._codes)

    def lookup(self, keys: Keys) -> Floats:
        codes = self._codes.lookup(keys)
        return np.concatenate([codes[:, :-1] @ self._basis, codes[:, -1:]], 1)


class PrunedRows:
    """Rows without their smallest numbers: a mask of 16 bits, the numbers left, and the linear term."""

    def __init__(self, keys: Keys, values: Floats, share: float) -> None:
        remaining = pruned(values[:, :-1], share)
        mask = remaining != 0
        self._ids = IdMap(len(keys))
        self._ids.insert(keys)
        self._masks = (mask << np.arange(mask.shape[1])).sum(1).astype(np.uint32)
        self._starts = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.uint32)
        self._numbers, self._linear = remaining[mask], values[:, -1].copy()
        self._width = values.shape[1]

    @property
    def nbytes(self) -> int:
        rows = len(self._linear) * (_COLUMN + 2 * _FLOAT)  # mask, start, linear term
        return rows + int(self._numbers.nbytes) + self._ids.nbytes

    def __len__(self) -> int:
        return len(self._linear)

    def lookup(self, keys: Keys) -> Floats:
        out = np.zeros((len(keys), self._width), np.float32)
        arrays = self._masks, self._starts, self._numbers, self._linear
        _unpruned(self._ids.find(keys), *arrays, out)
        return out


_UINTS, _FLOATS = read_only(types.uint32, 1), read_only(types.float32, 1)


@kernel(
    types.void(read_only(types.int64, 1), _UINTS, _UINTS, _FLOATS, _FLOATS, types.float32[:, ::1])
)
def _unpruned(slots: Any, masks: Any, starts: Any, numbers: Any, linear: Any, out: Any) -> None:
    """Writes the rows of slots; those without a slot stay zeros."""
    dim = out.shape[1] - 1
    for i in range(slots.shape[0]):
        slot = slots[i]
        if slot < 0:
            continue
        at, mask, to = starts[slot], masks[slot], out[i]
        for d in range(dim):
            if (mask >> d) & 1:
                to[d] = numbers[at]
                at += 1
        to[dim] = linear[slot]


def with_rows(arrays: Mapping[str, NDArray[Any]], change: Callable[[Floats], Floats]) -> Any:
    """The arrays with changed rows of the ranker's table; linear terms stay."""
    values = arrays[_ROWS]
    return {**arrays, _ROWS: np.concatenate([change(values[:, :-1]), values[:, -1:]], 1)}


_ROWS: Final = "table/features/values"
