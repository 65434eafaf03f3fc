"""Rows in torchrec's fused tables: FBGEMM's row-wise Adagrad, on one core.

Length-1 bags with SUM equal no pooling, and are thirty times faster. An id out of range silently means row 0,
so every id comes from the vocabulary. A dimension must be a multiple of 4, so a row is padded with zeros. As
the accumulator adds the *mean* of the squares over the padded row, of whose P columns D are in use, the table
is given

    g' = g · √(P/D)        rate' = rate · √(D/P)

which adds Σg² / D and takes the steps of the unpadded row.

Legend: N keys of a batch, R rows, D dimension, P dimension in the table.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

# First: it loads the operators that torchrec looks for.
import fbgemm_gpu  # noqa: F401
import numpy as np
import torch
from numpy.typing import NDArray
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from parameter_server.shard.lanes import RowGradients
from parameter_server.table import kernels
from parameter_server.table.kernels import EPSILON
from parameter_server.table.routing import Keys, Rows
from parameter_server.table.table import MAX_GRADIENT, initial_rows
from recsys.config.system_config import TableConfig
from training.offline.tables import Columns
from training.offline.vocabulary import Vocabulary

_MULTIPLE: Final = 4
_AT_ONCE: Final = 1 << 16  # rows whose initial values are drawn


class TorchrecTable:
    """One table in a ``FusedEmbeddingBagCollection``: a rate of its own needs an optimizer of its own."""

    def __init__(self, config: TableConfig, vocabulary: Vocabulary, seed: int) -> None:
        self._config, self._vocabulary, self._seed = config, vocabulary, seed
        self._width = -(-config.dim // _MULTIPLE) * _MULTIPLE
        self._name = name = f"table {config.name}"  # "items" alone is an attribute of modules
        self._scale = np.float32(math.sqrt(self._width / config.dim))
        bag = EmbeddingBagConfig(
            name=name,
            embedding_dim=self._width,
            num_embeddings=max(1, len(vocabulary)),
            feature_names=[name],
            pooling=PoolingType.SUM,
        )
        self._bags = FusedEmbeddingBagCollection(
            [bag],
            optimizer_type=RowWiseAdagrad,
            optimizer_kwargs={"lr": config.learning_rate / float(self._scale), "eps": EPSILON},
            device=torch.device("cpu"),
        )
        # Views of FBGEMM's own memory.
        self._weight = self._bags.state_dict()[f"embedding_bags.{name}.weight"]
        (state,) = self._bags.fused_optimizer().state_dict()["state"].values()
        (self._squares,) = state.values()
        self._weight.zero_()
        for keys in np.array_split(vocabulary.keys, len(vocabulary) // _AT_ONCE + 1):
            self._weight.numpy()[vocabulary.find(keys), : config.dim] = initial_rows(config, seed, keys)

    def lookup(self, keys: Keys) -> Rows:
        at = self._vocabulary.find(keys)
        has_row = at >= 0
        out: Rows = np.empty((len(keys), self._config.dim), np.float32)
        out[has_row] = self._weight.numpy()[at[has_row], : self._config.dim]
        if not has_row.all():
            out[~has_row] = initial_rows(self._config, self._seed, keys[~has_row])
        return out

    def learn(self, rows: RowGradients) -> int:
        at = self._vocabulary.find(rows.keys)
        valid = np.empty(len(at), np.bool_)
        refused = int(kernels.screen(rows.gradients, MAX_GRADIENT, valid))
        chosen = np.flatnonzero((at >= 0) & valid)
        if not len(chosen):
            return refused
        gradient = np.zeros((len(chosen), self._width), np.float32)
        gradient[:, : self._config.dim] = rows.gradients[chosen] * self._scale
        bags = KeyedJaggedTensor(
            keys=[self._name],
            values=torch.from_numpy(at[chosen]),
            lengths=torch.ones(len(chosen), dtype=torch.int64),
        )
        # The optimizer is fused: the backward pass updates the rows.
        self._bags(bags).values().backward(torch.from_numpy(gradient))
        return refused

    def export(self, keys: Keys) -> Columns:
        at = self._vocabulary.find(keys)
        values = self._weight.numpy()[at, : self._config.dim]
        return {"values": values, "accumulator": self._squares.numpy()[at]}

    def load(self, keys: Keys, columns: Mapping[str, NDArray[Any]]) -> None:
        at = self._vocabulary.find(keys)
        self._weight.numpy()[at, : self._config.dim] = columns["values"]
        self._squares.numpy()[at] = columns["accumulator"]
