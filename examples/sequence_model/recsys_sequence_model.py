"""A ranker that reads the history in order: a causal transformer with the candidate as query.

The newest entries of a viewer's history, oldest first, are the tokens of a decoder (Vaswani et al. 2017), and
the candidate is the last one (Kang and McAuley 2018; Chen et al. 2019). No entry attends to a newer one or to
the candidate, so keys and values of the history are computed once for all candidates of a list. What the
candidate reads becomes a term of each logit, beside those of the built-in ranker. That term begins with 0, so
the model begins as the built-in one.

Legend: B examples, H histories (B, or 1 for all), Q = B / H candidates of each, T tokens, W width, N heads.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.model.ranker import Ranker, RankerModule, RankerShape

WIDTH: Final = 32
HEADS: Final = 2
BLOCKS: Final = 2
# Scale of the term: Adam moves each parameter alike, ten times as far at the beginning of a line; at 1 the
# first day on the log of the news page lost 0.014 of AUC.
SCALE: Final = 0.1


class SequenceRanker(RankerModule):
    """The built-in ranker with a transformer over the history. Raises ValueError for a shape without one."""

    version = "1"

    def __init__(self, shape: RankerShape, seed: int = 0) -> None:
        super().__init__(shape)
        if not shape.history:
            raise ValueError(
                "the sequence model reads the history, and this feature set has none: set model.features "
                "to ids+history or all"
            )
        self.built_in = Ranker(shape, seed)
        self.entry = nn.Linear(shape.dim + shape.outcomes, WIDTH)
        self.candidate = nn.Linear(shape.dim, WIDTH)
        self.place_TW = nn.Parameter(torch.zeros(shape.history, WIDTH))
        self.start_W = nn.Parameter(torch.zeros(WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.last = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, shape.outputs)
        self._reset(seed)

    def forward(
        self, pooled_BSR: Tensor, history_HTR: Tensor, outcomes_HTO: Tensor, dense_BF: Tensor
    ) -> Tensor:
        """Logits (B, L)."""
        dim = self.shape.dim
        tokens_HTW, present_HT = self._tokens(history_HTR[..., :dim], outcomes_HTO)
        # The row of an entry is the mean of its item's keys, and so is that of the candidate.
        item_BD = pooled_BSR[:, self.shape.item_slot :, :dim].mean(1)
        x_HQW = self.candidate(item_BD).view(len(tokens_HTW), -1, WIDTH)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            keys_values = block.keys_values(tokens_HTW)
            x_HQW = block(x_HQW, keys_values, present_HT[:, None, None])
            if number + 1 < BLOCKS:  # nothing reads what the last block makes of the history
                causal_TT = torch.ones_like(present_HT[0]).expand(tokens_HTW.shape[1], -1).tril()
                tokens_HTW = block(tokens_HTW, keys_values, causal_TT & present_HT[:, None, None])
        term_BL = SCALE * self.head(self.last(x_HQW)).view(len(item_BD), -1)
        logits_BL: Tensor = self.built_in(pooled_BSR, history_HTR, outcomes_HTO, dense_BF) + term_BL
        return logits_BL

    def _tokens(self, history_HTD: Tensor, outcomes_HTO: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, oldest first, after one that starts each history; which are present (H, T)."""
        entries_HTW = self.entry(torch.cat([history_HTD, outcomes_HTO], 2)) + self.place_TW
        present_HT = outcomes_HTO[..., -1] > 0  # recency
        start_H1W = self.start_W.expand(len(entries_HTW), 1, -1)
        tokens_HTW = torch.cat([start_H1W, entries_HTW.flip(1)], 1)
        return tokens_HTW, F.pad(present_HT.flip(1), (1, 0), value=True)

    @torch.no_grad()
    def _reset(self, seed: int) -> None:
        """The same parameters in every process: uniform (Glorot and Bengio 2010), the head 0."""
        draw = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and layer not in self.built_in.layers:
                bound = (6.0 / (layer.in_features + layer.out_features)) ** 0.5
                layer.weight.uniform_(-bound, bound, generator=draw)
                layer.bias.zero_()
        self.place_TW.uniform_(-0.1, 0.1, generator=draw)
        self.head.weight.zero_()


class Block(nn.Module):
    """Attention and a network, each added to its input, which is normalised before."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)
        self.joined = nn.Linear(WIDTH, WIDTH)
        self.after = nn.LayerNorm(WIDTH)
        self.network = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))

    def keys_values(self, tokens_HTW: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens, each (H, N, T, W / N)."""
        keys, values = self.key_value(self.before(tokens_HTW)).chunk(2, 2)
        return _heads(keys), _heads(values)

    def forward(self, x_HQW: Tensor, keys_values: tuple[Tensor, Tensor], reads: Tensor) -> Tensor:
        """``reads``: the tokens that each query attends to (H or 1, 1, Q or 1, T)."""
        keys, values = keys_values
        near = _heads(self.query(self.before(x_HQW))) @ keys.transpose(2, 3)
        near = (near / keys.shape[3] ** 0.5).masked_fill(~reads, -1e9)
        read_HQW = (torch.softmax(near, 3) @ values).transpose(1, 2).flatten(2)
        x_HQW = x_HQW + self.joined(read_HQW)
        out: Tensor = x_HQW + self.network(self.after(x_HQW))
        return out


def _heads(x_HTW: Tensor) -> Tensor:
    return x_HTW.view(*x_HTW.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)
