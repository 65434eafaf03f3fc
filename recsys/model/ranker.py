"""The ranker: from rows, history and counters to the probability of each engagement.

It sees only rows, of the parameter server online and of torchrec tables offline. Parts: a linear term per
row, dot products between slots (a factorisation machine, Rendle 2010), attention of the candidate over the
recent history with outcomes (dot products), and an MLP over all of it and the running counters. Where the
features compare the items of a list, counters and other numbers enter each output directly, too (Cheng et al.
2016, "Wide & deep learning for recommender systems").

Legend: B batch, S slots, D embedding, T history, O outcomes, F dense, L outputs (labels, then watch time).
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from msgspec import UnsetType
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.model.linear_layer import apart, linear
from recsys.model.row_layers import interacted
from recsys.plugins import MODELS, load_version

WATCH_SCALE: Final = 6.4  # log1p(600 s): the watch output is a fraction of it
DIRECT: Final = 4.0  # factor on direct inputs: their weights move as if their rate were as many times higher
LINE: Final = 16  # float32 numbers in a cache line
_PRIOR_LOGIT: Final = -1.5  # initial bias of every output: most items get no engagement


@dataclass(frozen=True)
class RankerShape:
    """Sizes of a ranker, from the feature set and the configuration."""

    slots: int
    dim: int
    item_slot: int  # index of the item's slot, which attends over the history
    history: int  # T; 0 for no history
    outcomes: int
    dense: int
    labels: int
    hidden: tuple[int, ...] = (128, 64)
    direct: bool = False  # whether the dense inputs enter each output directly, too

    @property
    def outputs(self) -> int:
        return self.labels + 1


class RankerModule(nn.Module):
    """Interface of rankers: ``forward(pooled_BSR, history_BTR, outcomes_BTO, dense_BF)`` returns logits (B,
    L).

    R = D + 1: a row's last number is its linear term. ``history_BTR`` holds the pooled row of each entry,
    newest first, zeros without one; ``outcomes_BTO`` its labels, watch time, and recency, 1 / (1 + its age in
    hours), which is 0 without an entry. Both may have one row for all examples. ``dense_BF``: counters and
    other numbers. An example's logits must not depend on its position in the batch
    (serving/scorers/probabilities.py), and a seed must give the same parameters in every process.

    A plug-in's ``version`` changes with anything that changes its numbers. Name and version are part of the
    model's configuration, and so of its digest, of each candidate and, where one became live, of the log: no
    process continues a line with another model.
    """

    version: ClassVar[str]

    def __init__(self, shape: RankerShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape


class Ranker(RankerModule):
    """The built-in ranker."""

    def __init__(self, shape: RankerShape, seed: int = 0) -> None:
        super().__init__(shape, seed)
        pairs = shape.slots * (shape.slots - 1) // 2
        width = shape.slots * shape.dim + pairs + shape.dense
        if shape.history:
            width += 2 * shape.dim + 3 * shape.outcomes
        sizes = [width, *shape.hidden, shape.outputs]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        width = -(-shape.dense // LINE) * LINE if shape.direct else 0
        self.direct_LF = nn.Parameter(torch.zeros(shape.outputs, width))  # the last ones of zeros
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        _reset(layers, seed)

    def forward(
        self, pooled_BSR: Tensor, history_BTR: Tensor, outcomes_BTO: Tensor, dense_BF: Tensor
    ) -> Tensor:
        dim = self.shape.dim
        wide, main_B = interacted(pooled_BSR)
        parts = [wide, dense_BF] if self.shape.dense else [wide]
        if self.shape.history:
            item_BD = pooled_BSR[:, self.shape.item_slot, :dim]
            parts += self._attend(item_BD, history_BTR[..., :dim], outcomes_BTO)
        x = torch.cat(parts, 1) if len(parts) > 1 else wide
        *hidden, last = self.layers
        assert isinstance(last, nn.Linear)
        for layer in hidden:
            assert isinstance(layer, nn.Linear)
            x = F.relu(linear(x, layer.weight, layer.bias))
        logits_BL = linear(x, last.weight, last.bias, by_torch=True)
        if self.shape.direct:
            x = F.pad(DIRECT * dense_BF, (0, self.direct_LF.shape[-1] - self.shape.dense))
            none = torch.zeros_like(self.direct_LF[..., 0])
            logits_BL = logits_BL + linear(x, self.direct_LF, none, by_torch=True)
        return torch.cat([logits_BL[:, :1] + main_B[:, None], logits_BL[:, 1:]], 1)

    def _attend(self, item_BD: Tensor, history_BTD: Tensor, outcomes_BTO: Tensor) -> list[Tensor]:
        """Outcomes of similar and of all recent items.

        Sums of products instead of matrix products: faster at this size, and independent of alignment.
        Softmax instead of exp, which uses other instructions for the last elements of an array.
        """
        real_BT = (outcomes_BTO[..., -1] > 0).float()  # recency is positive for a real entry
        count_B1 = real_BT.sum(1, keepdim=True).clamp(min=1.0)
        similar_NBT = apart((item_BD[:, None] * history_BTD).sum(2), self.sharpness.shape)
        similar_BT = (similar_NBT * self.sharpness[..., None, None]).flatten(0, -2)
        similar_BT = similar_BT.clamp(-8.0, 8.0).masked_fill(real_BT == 0, -1e9)
        weight_BT1 = (torch.softmax(similar_BT, 1) * real_BT)[..., None]  # 0 without any entry
        liked_BT1 = (real_BT * outcomes_BTO[..., 0])[..., None]
        liked_BD = (liked_BT1 * history_BTD).sum(1) / count_B1
        mean_BO = outcomes_BTO.sum(1) / count_B1
        newest_BO = outcomes_BTO[:, 0]
        attended_BD = (weight_BT1 * history_BTD).sum(1)
        outcome_BO = (weight_BT1 * outcomes_BTO).sum(1)
        parts = (attended_BD, liked_BD, outcome_BO, mean_BO, newest_BO)
        return [part.expand(len(item_BD), -1) for part in parts]


def dense_start(shape: RankerShape) -> int:
    """The first of the dense inputs among those of the built-in ranker's first layer."""
    return shape.slots * shape.dim + shape.slots * (shape.slots - 1) // 2


def ranker_of(plugin: str | UnsetType) -> type[RankerModule]:
    """The class that ``model.ranker`` names. Raises ValueError for a plug-in that can't be loaded, is no
    ranker or has another version."""
    if not plugin:
        return Ranker
    ranker = load_version(MODELS, plugin)
    if not (isinstance(ranker, type) and issubclass(ranker, RankerModule)):
        raise ValueError(
            f"model.ranker is {plugin!r}, which is {ranker!r}, expected a subclass of {__name__}.RankerModule"
        )
    return ranker


@torch.no_grad()
def _reset(layers: list[nn.Linear], seed: int) -> None:
    """Initialises the layers uniformly (Glorot and Bengio 2010), the last one near the prior."""
    draw = torch.Generator().manual_seed(seed)
    for layer in layers:
        bound = (6.0 / (layer.in_features + layer.out_features)) ** 0.5
        layer.weight.uniform_(-bound, bound, generator=draw)
        layer.bias.zero_()
    layers[-1].weight.mul_(0.1)
    layers[-1].bias.fill_(_PRIOR_LOGIT)


def targets(labels_BK: Tensor, watch_ms_B: Tensor) -> Tensor:
    """Training targets (B, L): the labels, and log watch time as a fraction of that of ten minutes."""
    watch = (torch.log1p(watch_ms_B / 1000.0) / WATCH_SCALE).clamp(0.0, 1.0)
    return torch.cat([labels_BK, watch[:, None]], 1)


def watch_seconds(output: ArrayLike) -> NDArray[np.float64]:
    """Predicted watch time in seconds from the last output's probability; inverse of ``targets``."""
    seconds: NDArray[np.float64] = np.expm1(np.asarray(output, np.float64) * WATCH_SCALE)
    return seconds


def loss_per_output(logits_BL: Tensor, targets_BL: Tensor) -> Tensor:
    """Log loss (B, L). The watch target is a fraction; the loss is minimal at its mean."""
    return F.binary_cross_entropy_with_logits(logits_BL, targets_BL, reduction="none")
