"""The linear layer against torch's own, whatever else is in the batch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.model import linear_layer
from recsys.model.linear_layer import linear

DRAW = torch.Generator().manual_seed(0)
ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="torch was built without oneDNN",
)


@pytest.mark.parametrize(("batch", "inputs", "outputs"), [(1, 7, 16), (33, 660, 128), (5, 3, 2), (0, 4, 16)])
def test_outputs_and_gradients_are_those_of_torch(batch: int, inputs: int, outputs: int) -> None:
    found = []
    its = [torch.randn(*s, generator=DRAW) for s in ((batch, inputs), (outputs, inputs), (outputs,))]
    pull = torch.randn(batch, outputs, generator=DRAW)
    for layer in (linear, F.linear):
        leaves = [tensor.clone().requires_grad_() for tensor in its]
        out = layer(*leaves)
        (out * pull).sum().backward()  # type: ignore[no-untyped-call]
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@ONEDNN
@pytest.mark.parametrize("lanes", [1, 2])
def test_few_shapes_reach_onednn_and_what_fills_them_changes_no_bit(
    lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, and gradients of inputs, weights and biases, by batches of all sizes, that of one too."""
    sizes = range(lanes, 50 * lanes, lanes)
    x_BI, pull_BO = (torch.randn(sizes[-1], width, generator=DRAW) for width in (60, 32))
    weight_NOI = torch.randn(1, 32, 60, generator=DRAW).repeat(lanes, 1, 1)

    def all_sizes() -> list[Tensor]:
        results = []
        for size in sizes:
            leaves = [x_BI[:size].clone(), weight_NOI.clone(), torch.ones(lanes, 32)]
            leaves = [leaf.requires_grad_() for leaf in leaves]
            out = linear(*leaves)
            (out * pull_BO[:size]).sum().backward()  # type: ignore[no-untyped-call]
            results += [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
            with torch.no_grad():
                results.append(linear(x_BI[:size], weight_NOI[0], leaves[2][0]))
        return results

    with Called() as called:
        filled = all_sizes()
    few = set(called.shapes)
    monkeypatch.setattr(linear_layer, "BLOCK", 1)
    with Called() as called:
        exact = all_sizes()
    assert len(filled) == 5 * len(sizes) and all(map(torch.equal, filled, exact))
    assert len(few) <= 24 < 120 < len(set(called.shapes))


class Called(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of all operations, those of gradients too, and the shapes of oneDNN's operands."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.shapes: list[tuple[torch.Size, ...]] = []  # of the operands of products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func).rsplit(".", 1)[0])
        if self.names[-1].endswith("_linear_pointwise"):
            self.shapes.append((args[0].shape, args[1].shape))
        return func(*args, **(kwargs or {}))

    def products(self) -> list[str]:
        return [name for name in self.names if name.rsplit(".", 1)[-1] in PRODUCTS]


PRODUCTS = ("_linear_pointwise", "mm", "addmm", "linear", "matmul")


@ONEDNN
@pytest.mark.parametrize(("outputs", "through_onednn"), [(128, True), (16, True), (15, False)])
def test_layers_that_are_wide_enough_go_through_onednn_and_so_do_their_gradients(
    outputs: int, through_onednn: bool
) -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=DRAW).requires_grad_()

    its = leaf(33, 60), leaf(outputs, 60), leaf(outputs)
    with Called() as called:
        linear(*its).sum().backward()  # type: ignore[no-untyped-call]
    found = called.products()
    assert len(found) == 3  # forward, and the gradients of inputs and weights
    assert {name == "mkldnn._linear_pointwise" for name in found} == {through_onednn}, found


def test_a_block_of_rows_is_the_same_in_any_batch() -> None:
    x, weight = torch.randn(320, 900, generator=DRAW), torch.randn(128, 900, generator=DRAW)
    bias = torch.randn(128, generator=DRAW)
    with torch.inference_mode():
        whole = linear(x, weight, bias)
        for start, count in ((0, 16), (5, 48), (64, 256)):
            some = linear(x[start : start + count].clone(), weight, bias)
            assert torch.equal(some, whole[start : start + count])
