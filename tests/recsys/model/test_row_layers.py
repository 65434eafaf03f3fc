"""Pooled rows and their products: compiled loops against torch's own, whatever else is in the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recsys.model.row_kernels import distinct, jag
from recsys.model.row_layers import interacted, interacted_by_torch, pooled, pooled_by_torch


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "slots", "width"), [(1, 1, 2), (5, 3, 17), (16, 24, 17), (3, 4, 9)])
def test_products_and_their_gradients_are_those_of_torch(batch: int, slots: int, width: int) -> None:
    rows = numbers(batch, slots, width).requires_grad_()
    wide, main = interacted(rows)
    pull, push = numbers(*wide.shape, seed=1), numbers(*main.shape, seed=2)
    ((wide * pull).sum() + (main * push).sum()).backward()  # type: ignore[no-untyped-call]
    plain = rows.detach().clone().requires_grad_()
    left, right = torch.triu_indices(slots, slots, offset=1)
    embedded = plain[..., :-1]
    pairs = (embedded @ embedded.transpose(1, 2))[:, left, right]
    expected, total = (torch.cat([embedded.flatten(1), pairs], 1), plain[..., -1].sum(1) + pairs.sum(1))
    ((expected * pull).sum() + (total * push).sum()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(wide, expected)
    torch.testing.assert_close(main, total)
    torch.testing.assert_close(rows.grad, plain.grad)


def test_an_example_has_the_same_products_in_any_batch() -> None:
    rows = numbers(48, 24, 17)
    wide, main = interacted(rows)
    for start in (0, 1, 7, 40):
        some, its_main = interacted(rows[start : start + 8].clone())
        assert torch.equal(some, wide[start : start + 8])
        assert torch.equal(its_main, main[start : start + 8])


bags = st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=4, max_size=24)


@given(bags=bags)
@settings(max_examples=60, deadline=None)
def test_pooled_rows_are_the_means_of_their_bags(bags: list[list[int]]) -> None:
    bags = bags[: len(bags) // 2 * 2]  # two examples
    index = torch.tensor([row for bag in bags for row in bag], dtype=torch.int64)
    lengths = torch.tensor([len(bag) for bag in bags])
    rows = torch.cat([numbers(6, 3), torch.zeros(1, 3)]).requires_grad_()
    out = pooled(rows, index, lengths, 2)
    pull = numbers(*out.shape, seed=1)
    (out * pull).sum().backward()  # type: ignore[no-untyped-call]
    plain = rows.detach().clone().requires_grad_()
    flat = F.embedding_bag(index, plain, lengths.cumsum(0) - lengths, mode="mean", padding_idx=6)
    expected = flat.view(-1, 2, 3).transpose(0, 1)
    (expected * pull).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(rows.grad, plain.grad)


@given(st.lists(st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1)))
@settings(max_examples=60, deadline=None)
def test_keys_are_found_once_in_the_order_first_seen(keys: list[int]) -> None:
    array, cells = (np.array(keys, np.int64), np.full(1 << (2 * len(keys)).bit_length(), -1, np.int32))
    found, at = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    count = distinct(array, cells, found, at)
    assert found[:count].tolist() == list(dict.fromkeys(key for key in keys if key))
    assert [[*found[:count].tolist(), 0][place] for place in at] == keys


@given(st.integers(0, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6),
                                                    min_size=n, max_size=n)))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_columns_become_jagged_slot_by_slot(rows: list[list[int]]) -> None:
    matrix = np.array(rows, np.int64).reshape(-1, 6)
    starts, stops = np.array([0, 1, 4]), np.array([1, 4, 6])
    values, lengths = np.zeros(matrix.size + 1, np.int64), np.empty(3 * len(matrix), np.int64)
    values[0] = -1
    count = jag(matrix, starts, stops, values, lengths, 1)
    parts = [[k for k in row[a:b] if k] for a, b in zip(starts, stops, strict=True) for row in rows]
    assert values[:count].tolist() == [-1, *(key for part in parts for key in part)]
    assert lengths.tolist() == [len(part) for part in parts]


def test_what_a_gpu_computes_is_what_the_loops_do() -> None:
    rows, index = numbers(7, 5), torch.tensor([0, 6, 2, 2, 1, 6, 5])
    rows[6] = 0
    lengths = torch.tensor([2, 1, 0, 3, 0, 1])
    torch.testing.assert_close(pooled_by_torch(rows, index, lengths, 2), pooled(rows, index, lengths, 2))
    some = numbers(4, 6, 17)
    for a, b in zip(interacted_by_torch(some), interacted(some), strict=True):
        torch.testing.assert_close(a, b)
