"""Linear layer through oneDNN, if torch has it: half the time of torch's own.

Torch multiplies float32 matrices by MKL, which on some processors uses half of their vector width. With both,
the rows of a whole block are bit for bit independent of the rest of the batch, but not in a batch of one.

Legend: B batch, I inputs, O outputs.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812

NARROW: Final = 16  # with fewer outputs the call isn't worth it


def _onednn_linear() -> Any:
    try:
        available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return torch.ops.mkldnn._linear_pointwise if available else None
    except AttributeError:  # built without it
        return None


_multiply: Final = _onednn_linear()


def linear(x_BI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """x Wᵀ + b (B, O)."""
    if _multiply is None or x_BI.is_cuda or len(weight_OI) < NARROW or not len(x_BI):
        return F.linear(x_BI, weight_OI, bias_O)
    if not torch.is_grad_enabled():
        return _product(x_BI.contiguous(), weight_OI, bias_O)
    out: Tensor = _Linear.apply(x_BI, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return out


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x_BI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(x_BI, weight_OI)
        return _product(x_BI.contiguous(), weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, gradient_BO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BI, weight_OI = ctx.saved_tensors
        gradient_BO = gradient_BO.contiguous()
        x = _product(gradient_BO, weight_OI.t(), None)  # oneDNN transposes faster than torch
        return x, _product(gradient_BO.t(), x_BI.t(), None), gradient_BO.sum(0)


def _product(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    out: Tensor = _multiply(a_MK, b_NK, bias_N, "none", [], "")
    return out
