"""Standardises the dense inputs of a ranker by their running mean and deviation.

Log counts stand beside log odds and ages: without a common scale a step of the optimizer changes what the
large ones say much more than the small ones (LeCun et al. 1998, "Efficient BackProp", section 4.3). The
statistics move slowly, since some columns drift for hours: a quick mean would hide that, a deviation of the
moment enlarge it.

Legend: B batch, F dense inputs; [N] lanes, if the parameters have them (``Model.by_lane``).
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd import Function

from recsys.model.input_statistics import FARTHEST, HEADER, UNIT, statistics_size

_LEAST: Final = 0.3  # deviation: columns that hardly differ aren't made large
_CONSTANT: Final = 1e-5  # variance, below which a column is 0


class InputScale(nn.Module):
    """Statistics of ``width`` inputs; see recsys/model/input_statistics.py. In the backward pass their
    gradient is the sums of the batch; no gradient passes to the inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        place = torch.zeros(statistics_size(width))
        place[0] = HEADER + width
        self.place = nn.Parameter(place)

    def forward(self, dense_BF: Tensor) -> Tensor:
        out: Tensor = _Standardised.apply(dense_BF, self.place)  # type: ignore[no-untyped-call]
        return out


class _Standardised(Function):
    @staticmethod
    def forward(ctx: Any, dense_BF: Tensor, place_NP: Tensor) -> Tensor:
        mean_F, less_1_F, count_F = _read(place_NP)
        ctx.save_for_backward(dense_BF, place_NP)
        deviation_F = torch.sqrt((less_1_F + 1).clamp(min=_LEAST**2))
        # Its weights were never learned, so they must say nothing where it differs for the first time.
        is_constant_F = (count_F > 0) & (less_1_F + 1 < _CONSTANT)
        return (dense_BF - mean_F) / deviation_F.masked_fill(is_constant_F, torch.inf)

    @staticmethod
    def backward(ctx: Any, gradient_BF: Tensor) -> tuple[None, Tensor]:
        dense_BF, place_NP = ctx.saved_tensors
        size = len(dense_BF) // (1 if place_NP.dim() == 1 else len(place_NP))
        # An example that isn't learned from tells nothing, as a correction of another label.
        learned_B1 = gradient_BF.any(1, keepdim=True).float()
        d_BF = (dense_BF - _read(place_NP)[0]).clamp(-FARTHEST, FARTHEST) * learned_B1
        pairs = zip(torch.split(d_BF, size), torch.split(learned_B1, size), strict=True)
        parts = []
        for d, learned in pairs:  # lane by lane: a sum over all of them may add in another order
            count_F = learned.sum().expand(d.shape[1])
            sums = torch.cat([-d.sum(0), (d * d).sum(0), count_F]) * UNIT
            parts.append(torch.cat([sums.new_zeros(1), sums]))
        return None, torch.stack(parts).view(place_NP.shape)


def _read(place_NP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, the variance less 1 and the number of examples of each input (F,)."""
    place_P = place_NP if place_NP.dim() == 1 else place_NP[0]  # those of all lanes are equal
    rows_3F = place_P[1:].view(3, -1) if len(place_P) > 1 else place_P.new_zeros(3, 0)
    return rows_3F[0], rows_3F[1], rows_3F[2]
