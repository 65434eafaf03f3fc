"""Pooled rows and their interactions as layers: compiled loops on the CPU, torch's operations on a GPU.

Both give the same numbers up to the last bits, which differ between a CPU and a GPU in any case.

Legend: U unique keys, B batch, S slots, R a row's numbers, D = R - 1 of them an embedding, P pairs of slots.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from recsys.model import row_kernels


def pooled(rows_UR: Tensor, index: Tensor, lengths: Tensor, batch: int) -> Tensor:
    """The mean row of each bag (B, S, R), zeros for an empty one; places of the last row don't count.

    ``index``: the row of each place; ``lengths`` (S · B,): the number of places of each bag, slot by slot.
    """
    if rows_UR.is_cuda:
        return pooled_by_torch(rows_UR, index, lengths, batch)
    out: Tensor = _Pooled.apply(rows_UR, index, lengths, batch)  # type: ignore[no-untyped-call]
    return out


def interacted(rows_BSR: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and dot products of slots (B, S · D + P); the sum of all terms (B,)."""
    if rows_BSR.is_cuda:
        return interacted_by_torch(rows_BSR)
    out: tuple[Tensor, Tensor] = _Interacted.apply(rows_BSR)  # type: ignore[no-untyped-call]
    return out


def pooled_by_torch(rows_UR: Tensor, index: Tensor, lengths: Tensor, batch: int) -> Tensor:
    """``pooled`` on any device."""
    index, lengths = index.to(rows_UR.device), lengths.to(rows_UR.device)
    offsets, none = torch.cumsum(lengths, 0) - lengths, len(rows_UR) - 1
    flat = F.embedding_bag(index, rows_UR, offsets, mode="mean", padding_idx=none)
    return flat.view(-1, batch, rows_UR.shape[1]).transpose(0, 1)


def interacted_by_torch(rows_BSR: Tensor) -> tuple[Tensor, Tensor]:
    """``interacted`` on any device."""
    slots, dim = rows_BSR.shape[1], rows_BSR.shape[2] - 1
    rows_BSD = rows_BSR[..., :dim]
    left, right = torch.triu_indices(slots, slots, offset=1, device=rows_BSR.device)
    pairs_BP = torch.bmm(rows_BSD, rows_BSD.transpose(1, 2))[:, left, right]
    wide = torch.cat([rows_BSD.flatten(1), pairs_BP], 1)
    return wide, rows_BSR[..., dim].sum(1) + pairs_BP.sum(1)


class _Pooled(Function):
    @staticmethod
    def forward(ctx: Any, rows_UR: Tensor, index: Tensor, lengths: Tensor, batch: int) -> Tensor:
        out = rows_UR.new_empty((batch, len(lengths) // batch, rows_UR.shape[1]))
        rows = rows_UR.detach().contiguous()
        row_kernels.pool(rows.numpy(), index.numpy(), lengths.numpy(), out.numpy())
        ctx.index, ctx.lengths, ctx.rows = index, lengths, len(rows)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        out = gradient.new_zeros((ctx.rows, gradient.shape[2]))
        each = gradient.contiguous().numpy()
        row_kernels.spread(each, ctx.index.numpy(), ctx.lengths.numpy(), out.numpy())
        return out, None, None, None


class _Interacted(Function):
    """Computes the products by one matrix product per example. Rows are aligned to cache lines: the last bits
    of a product depend on alignment."""

    @staticmethod
    def forward(ctx: Any, rows_BSR: Tensor) -> tuple[Tensor, Tensor]:
        size, slots, width = rows_BSR.shape
        padding = -(width - 1) % 16
        allocate = rows_BSR.new_zeros if padding else rows_BSR.new_empty
        aligned = allocate((size, slots, width - 1 + padding))
        wide = rows_BSR.new_empty((size, slots * (width - 1) + slots * (slots - 1) // 2))
        main = rows_BSR.new_empty(size)
        rows = rows_BSR.detach().contiguous().numpy()
        row_kernels.lay_out(rows, aligned.numpy(), wide.numpy(), main.numpy())
        dots = torch.bmm(aligned, aligned.transpose(1, 2))
        row_kernels.take_pairs(dots.numpy(), wide.numpy(), main.numpy())
        ctx.save_for_backward(aligned)
        ctx.width = width
        return wide, main

    @staticmethod
    def backward(ctx: Any, wide: Tensor, main: Tensor) -> Tensor:
        (aligned,) = ctx.saved_tensors
        size, slots, _ = aligned.shape
        pairs, out = wide.new_empty((size, slots, slots)), wide.new_empty((size, slots, ctx.width))
        wide_, main_ = wide.contiguous().numpy(), main.contiguous().numpy()
        row_kernels.lay_pairs(wide_, main_, pairs.numpy())
        row_kernels.add_up(torch.bmm(pairs, aligned).numpy(), wide_, main_, out.numpy())
        return out
