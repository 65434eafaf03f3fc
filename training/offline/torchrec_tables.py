"""Rows in torchrec's fused tables: FBGEMM's row-wise Adagrad, on one core.

Three things about FBGEMM on CPU decide how it is used here. Length-1 bags with SUM do what no pooling does,
thirty times faster. An id out of range is silently row 0, so every id comes from the vocabulary. And a
dimension must be a multiple of 4: a row is padded with zeros that stay zeros. As the accumulator adds the
*mean* of the squares over the padded row, of whose P columns D are in use, the table is given

    g' = g · √(P/D)        rate' = rate · √(D/P)

which adds Σg² / D and takes the steps of the unpadded row. An export needs no scaling, and loads bit for bit.

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
from parameter_server.table.routing import Keys, Rows
from parameter_server.table.table import EPSILON, MAX_GRADIENT, initial_rows
from recsys.config.system_config import TableConfig
from training.offline.tables import Columns, initial_columns
from training.offline.vocabulary import Vocabulary

_MULTIPLE: Final = 4


class TorchrecTable:
    """One table in a ``FusedEmbeddingBagCollection``: a rate of its own needs an optimizer of its own."""

    def __init__(self, config: TableConfig, vocabulary: Vocabulary, seed: int) -> None:
        self._config, self._vocabulary, self._seed = config, vocabulary, seed
        self._width = -(-config.dim // _MULTIPLE) * _MULTIPLE
        self._name = name = (
            f"table {config.name}"  # what modules have as attributes ("items") is no name of a table
        )
        self._scale = np.float32(math.sqrt(self._width / config.dim))
        self._bags = FusedEmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    name=name, embedding_dim=self._width,
                    num_embeddings=max(1, len(vocabulary)), feature_names=[name],
                    pooling=PoolingType.SUM,
                )
            ],
            optimizer_type=RowWiseAdagrad,
            optimizer_kwargs={"lr": config.learning_rate / float(self._scale), "eps": EPSILON},
            device=torch.device("cpu"),
        )  # fmt: skip
        # Views of what FBGEMM itself reads and writes.
        self._weight = self._bags.state_dict()[f"embedding_bags.{name}.weight"]
        (state,) = self._bags.fused_optimizer().state_dict()["state"].values()
        (self._squares,) = state.values()
        self.load(initial_columns(config, vocabulary, seed))

    def lookup(self, keys: Keys) -> Rows:
        at = self._vocabulary.find(keys)
        known = at >= 0
        out: Rows = np.empty((len(keys), self._config.dim), np.float32)
        out[known] = self._weight.numpy()[at[known], : self._config.dim]
        if not known.all():
            out[~known] = initial_rows(self._config, self._seed, keys[~known])
        return out

    def learn(self, rows: RowGradients) -> int:
        at = self._vocabulary.find(rows.keys)
        sound = np.empty(len(at), np.bool_)
        refused = int(kernels.screen(rows.gradients, MAX_GRADIENT, sound))
        chosen = np.flatnonzero((at >= 0) & sound)
        if not len(chosen):
            return refused
        gradient = np.zeros((len(chosen), self._width), np.float32)
        gradient[:, : self._config.dim] = rows.gradients[chosen] * self._scale
        bags = KeyedJaggedTensor(
            keys=[self._name],
            values=torch.from_numpy(at[chosen]),
            lengths=torch.ones(len(chosen), dtype=torch.int64),
        )
        # The optimizer is fused: to go backward is to learn.
        self._bags(bags).values().backward(torch.from_numpy(gradient))
        return refused

    def export(self) -> Columns:
        size, dim = len(self._vocabulary), self._config.dim
        values, squares = self._weight.numpy()[:size, :dim], self._squares.numpy()[:size]
        return {"values": values.copy(), "accumulator": squares.copy()}

    def load(self, columns: Mapping[str, NDArray[Any]]) -> None:
        size, dim = len(self._vocabulary), self._config.dim
        weight, squares = self._weight.numpy(), self._squares.numpy()
        weight[:] = 0.0
        weight[:size, :dim] = columns["values"]
        squares[:] = 0.0
        squares[:size] = columns["accumulator"]
