"""The ranker: from rows, history and counters to the probability of each engagement.

It never sees ids, only rows: the same module runs on parameter-server rows online and on torchrec tables
offline. Its parts: a linear term per row, dot products between slots (a factorisation machine, Rendle 2010),
attention of the candidate over the recent history with outcomes (dot products, no network per pair), and a
network over all of it with running counters.

Legend: B batch, S slots, D embedding, T history, O outcomes, F dense, L outputs (labels, then watch time).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WATCH_SCALE: Final = 6.4  # log1p(600 s): the watch output is a fraction of it
_PRIOR_LOGIT: Final = -1.5  # where every output starts: engagements are rarer than not


@dataclass(frozen=True)
class RankerShape:
    """The sizes that the ranker is made for, all from the feature set and the configuration."""

    slots: int
    dim: int
    item_slot: int  # which slot is the item: it attends over the history
    history: int  # T; 0 for no history
    outcomes: int
    dense: int
    labels: int
    hidden: tuple[int, ...] = (128, 64)

    @property
    def outputs(self) -> int:
        return self.labels + 1


class Ranker(nn.Module):
    """Predicts L logits per example; ``forward`` gives logits, not probabilities."""

    def __init__(self, shape: RankerShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        pairs = shape.slots * (shape.slots - 1) // 2
        width = shape.slots * shape.dim + pairs + shape.dense
        if shape.history:
            width += 2 * shape.dim + 3 * shape.outcomes
        sizes = [width, *shape.hidden, shape.outputs]
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        upper = torch.triu_indices(shape.slots, shape.slots, offset=1)
        self.register_buffer("left", upper[0], persistent=False)
        self.register_buffer("right", upper[1], persistent=False)
        self._reset(seed)

    def _reset(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            bound = (6.0 / (layer.in_features + layer.out_features)) ** 0.5
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=draw)
                layer.bias.zero_()
        with torch.no_grad():
            self.layers[-1].weight.mul_(0.1)
            self.layers[-1].bias.fill_(_PRIOR_LOGIT)

    def forward(
        self, pooled_BSR: Tensor, history_BTR: Tensor, outcomes_BTO: Tensor, dense_BF: Tensor
    ) -> Tensor:
        """Logits (B, L). R = D + 1: a row's last number is its linear term.

        ``history_BTR``: the pooled row of each entry, zeros where there is none.
        """
        dim = self.shape.dim
        rows_BSD, linear_BS = pooled_BSR[..., :dim], pooled_BSR[..., dim]
        dots_BSS = torch.bmm(rows_BSD, rows_BSD.transpose(1, 2))
        pairs = dots_BSS[:, self.left, self.right]
        parts = [rows_BSD.flatten(1), pairs, dense_BF]
        if self.shape.history:
            item_BD = rows_BSD[:, self.shape.item_slot]
            parts.append(self._attend(item_BD, history_BTR[..., :dim], outcomes_BTO))
        x = torch.cat(parts, 1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        logits_BL: Tensor = self.layers[-1](x)
        main = linear_BS.sum(1) + pairs.sum(1)
        return torch.cat([logits_BL[:, :1] + main[:, None], logits_BL[:, 1:]], 1)

    def _attend(self, item_BD: Tensor, history_BTD: Tensor, outcomes_BTO: Tensor) -> Tensor:
        """What the viewer did with items like this one, and with all of the recent ones."""
        there_BT = (outcomes_BTO[..., -1] > 0).float()  # recency is positive for a real entry
        count_B1 = there_BT.sum(1, keepdim=True).clamp(min=1.0)
        similar_BT = torch.einsum("bd,btd->bt", item_BD, history_BTD) * self.sharpness
        similar_BT = similar_BT.clamp(-8.0, 8.0)
        weight_BT = torch.exp(similar_BT) * there_BT
        weight_BT = weight_BT / weight_BT.sum(1, keepdim=True).clamp(min=1e-6)
        attended_BD = torch.einsum("bt,btd->bd", weight_BT, history_BTD)
        liked_BT = there_BT * outcomes_BTO[..., 0]
        liked_BD = torch.einsum("bt,btd->bd", liked_BT, history_BTD) / count_B1
        outcome_BO = torch.einsum("bt,bto->bo", weight_BT, outcomes_BTO)
        mean_BO = outcomes_BTO.sum(1) / count_B1
        newest_BO = outcomes_BTO[:, 0]
        return torch.cat([attended_BD, liked_BD, outcome_BO, mean_BO, newest_BO], 1)


def targets(labels_BK: Tensor, watch_ms_B: Tensor) -> Tensor:
    """What the outputs are held against (B, L): the labels, and watch time as a fraction of ten minutes'
    logarithm."""
    watch = (torch.log1p(watch_ms_B / 1000.0) / WATCH_SCALE).clamp(0.0, 1.0)
    return torch.cat([labels_BK, watch[:, None]], 1)


def watch_seconds(output: Tensor) -> Tensor:
    """Predicted watch time from the last output's probability."""
    return torch.expm1(output * WATCH_SCALE)


def loss_per_output(logits_BL: Tensor, targets_BL: Tensor) -> Tensor:
    """Log loss (B, L); for watch time the target is a fraction, and the minimum its mean."""
    return F.binary_cross_entropy_with_logits(logits_BL, targets_BL, reduction="none")
