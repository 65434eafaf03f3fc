"""The linear layer against torch's own, whatever else is in the batch."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from recsys.linear_layer import linear

DRAW = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs"), [(1, 7, 16), (33, 660, 128), (5, 3, 2), (0, 4, 16)]
)
def test_outputs_and_gradients_are_those_of_torch(batch: int, inputs: int, outputs: int) -> None:
    found = []
    its = [
        torch.randn(*s, generator=DRAW) for s in ((batch, inputs), (outputs, inputs), (outputs,))
    ]
    pull = torch.randn(batch, outputs, generator=DRAW)
    for layer in (linear, F.linear):
        leaves = [tensor.clone().requires_grad_() for tensor in its]
        out = layer(*leaves)
        (out * pull).sum().backward()  # type: ignore[no-untyped-call]
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_block_of_rows_is_the_same_in_any_batch() -> None:
    x, weight = torch.randn(320, 900, generator=DRAW), torch.randn(128, 900, generator=DRAW)
    bias = torch.randn(128, generator=DRAW)
    with torch.inference_mode():
        whole = linear(x, weight, bias)
        for start, count in ((0, 16), (5, 48), (64, 256)):
            some = linear(x[start : start + count].clone(), weight, bias)
            assert torch.equal(some, whole[start : start + count])
