"""Linear layer through oneDNN, if torch has it: half the time of torch's own.

Weights with a copy for each lane (``Model.by_lane``) belong to as many equal parts of a batch. The copies are
equal; their gradients are those of the parts alone.

Torch multiplies float32 matrices by MKL, which on some processors uses half of their vector width. With both,
the rows of a whole block are bit for bit independent of the rest of the batch, but not in a batch of one.
oneDNN compiles a kernel for each shape, in half a millisecond, and keeps 0.6 MB with it: so batches
get rows of zeros up to a whole block, which change no bit of the other rows or of the gradients.

Legend: B batch, I inputs, O outputs; [N] lanes, if the parameters have them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
NARROW: Final = 16  # with fewer outputs the call isn't worth it
BLOCK: Final = 16  # rows


def _onednn_linear() -> Any:
    try:
        available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return torch.ops.mkldnn._linear_pointwise if available else None
    except AttributeError:  # built without it
        return None


_multiply: Final = _onednn_linear()


def linear(x_BI: Tensor, weight_NOI: Tensor, bias_NO: Tensor, by_torch: bool = False) -> Tensor:
    """x Wᵀ + b (B, O). ``by_torch``: always by torch's own product."""
    narrow = _multiply is None or x_BI.is_cuda or weight_NOI.shape[-2] < NARROW or not len(x_BI)
    product: Product = F.linear if narrow or by_torch else _product
    if weight_NOI.dim() == 2:
        if product is F.linear or not torch.is_grad_enabled():
            return _by_row(product, x_BI, weight_NOI, bias_NO)
        weight_NOI, bias_NO = weight_NOI[None], bias_NO[None]
    out: Tensor = _Linear.apply(x_BI, weight_NOI, bias_NO, product)  # type: ignore[no-untyped-call]
    return out


def apart(x_BI: Tensor, lanes: Sequence[int]) -> Tensor:
    """A batch's parts, one for each lane ([N], B, I). ``lanes``: their number, or none."""
    return x_BI.view(*lanes, -1, x_BI.shape[1])


class _Linear(Function):
    """With the parameters of each lane."""

    @staticmethod
    def forward(ctx: Any, x_BI: Tensor, weight_NOI: Tensor, bias_NO: Tensor, product: Product) -> Tensor:
        ctx.save_for_backward(x_BI, weight_NOI)
        ctx.product = product
        return _by_row(product, x_BI, weight_NOI[0], bias_NO[0])

    @staticmethod
    def backward(ctx: Any, gradient_BO: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (x_BI, weight_NOI), product = ctx.saved_tensors, ctx.product
        gradient_BO = gradient_BO.contiguous()
        # oneDNN transposes faster than torch.
        x = _by_row(product, gradient_BO, weight_NOI[0].t(), None)
        own_NBO, x_NBI = (apart(tensor, weight_NOI.shape[:1]) for tensor in (gradient_BO, x_BI))
        lanes = [*zip(own_NBO, x_NBI, strict=True)]
        if product is _product:
            lanes = [(_whole_blocks(own), _whole_blocks(x)) for own, x in lanes]
        weights = [product(own.t(), x.t(), None) for own, x in lanes]
        return x, torch.stack(weights), own_NBO.sum(1), None


def _by_row(product: Product, x_BK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x Wᵀ + b for each row of a batch."""
    rows_BK = x_BK.contiguous()
    if product is not _product:
        return product(rows_BK, weight_NK, bias_N)
    return _product(_whole_blocks(rows_BK), weight_NK, bias_N)[: len(x_BK)]


def _whole_blocks(rows_BK: Tensor) -> Tensor:
    """Pads with rows of zeros to whole blocks. A single row, whose kernel is another one, stays alone."""
    missing = -len(rows_BK) % BLOCK if len(rows_BK) > 1 else 0
    return F.pad(rows_BK, (0, 0, 0, missing)) if missing else rows_BK


def _product(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    out: Tensor = _multiply(a_MK, b_NK, bias_N, "none", [], "")
    return out
