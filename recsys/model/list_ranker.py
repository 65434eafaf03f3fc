"""Ranks whole lists: what ``Model.rank`` gives, with what the items of a request share computed once.

For answering and replay; training has its own forward, whose numbers are the same but for the last bits. The
first layer is split into the columns that a request's items share (the user's rows, what the history says of
itself) and those that are an item's own: the former are multiplied once for each request. An item's logits
don't hang on what is ranked beside it (``serving/ranking/scoring.py``).

Legend: R requests, N items (whole tiles of ``LANES``), U unique keys, L outputs; as in ``tile_kernels``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from recsys.features.feature_set import RequestFeatures, Slot
from recsys.model.linear_layer import linear
from recsys.model.model import Model, unique_keys
from recsys.model.ranker import Ranker, RankerShape
from recsys.model.tile_kernels import LANES, add_shared, lay_items, lay_shared, pool_columns, times

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]
_LINE: Final = 16  # float32 numbers of a cache line


@dataclass(frozen=True)
class Lists:
    """Requests ready to be ranked: unique keys (U,), and where each place finds its row among them. A place
    without a key finds the row of zeros after the last."""

    keys: Keys
    user_RC: Keys
    history_RTH: Keys
    items_NC: Keys
    owner_N: Keys  # the request of each item
    outcomes_RTO: Floats
    dense_NF: Floats
    total: int  # items asked for; the rest fill the last tile


def lists_of(requests: Sequence[RequestFeatures]) -> Lists:
    """All items of the requests, in order; at least one request."""
    counts = [len(request.items_NI) for request in requests]
    total = sum(counts)
    fill = -total % LANES
    first = requests[0]
    columns, fields = first.items_NI.shape[1], first.dense_NF.shape[1]
    users = [request.user_U for request in requests]
    pasts = [request.history_TH.reshape(-1) for request in requests]
    items = [request.items_NI.reshape(-1) for request in requests]
    keys, at = unique_keys(*users, *pasts, *items, np.zeros(fill * columns, np.int64))
    size, t, h = len(requests), *first.history_TH.shape
    end_user = size * len(first.user_U)
    end_past = end_user + size * t * h
    dense = np.zeros((total + fill, fields), np.float32)
    np.concatenate([request.dense_NF for request in requests], out=dense[:total])
    owner = np.repeat(np.arange(size), counts)
    return Lists(
        keys,
        at[:end_user].reshape(size, -1),
        at[end_user:end_past].reshape(size, t, h),
        at[end_past:].reshape(total + fill, columns),
        np.concatenate([owner, np.full(fill, size - 1)]),
        np.stack([request.outcomes_TO for request in requests]),
        dense,
        total,
    )


def rank_lists(model: Model, lists: Lists, rows_UW: Floats) -> Floats:
    """The logits (total, L). ``rows_UW``: those of the keys, and the row of zeros after the last."""
    shape, features = model.ranker.shape, model.features
    user = _pooled(rows_UW, lists.user_RC, features.user_slots)
    items = _pooled(rows_UW, lists.items_NC, features.item_slots)
    size, t, h = lists.history_RTH.shape
    entry = (Slot("entry", 0, h),)
    past = _pooled(rows_UW, lists.history_RTH.reshape(size * t, h), entry)
    history = past.reshape(size, t, rows_UW.shape[1])
    split = _split_of(model.ranker, len(features.user_slots))
    shared = np.empty((size, split.shared_IJ.shape[0]), np.float32)
    lay_shared(user, history, lists.outcomes_RTO, shared)
    begun = np.repeat(split.bias_J[None], size, 0)
    times(shared, split.shared_IJ, begun)
    # Torch's own memory begins at a cache line: the last bits of some products hang on that.
    own: Floats = torch.empty((len(items), split.own_JI.shape[1])).numpy()
    main = np.empty(len(items), np.float32)
    lay_items(user, items, lists.owner_N, history, lists.outcomes_RTO, shape.item_slot,
              split.sharpness, lists.dense_NF, own, main)  # fmt: skip
    logits = _layers(model.ranker, split, own, begun, lists.owner_N)
    logits[:, 0] += main
    return logits[: lists.total]


def _pooled(rows: Floats, index: Keys, slots: Sequence[Slot]) -> Floats:
    out = np.empty((len(index), len(slots), rows.shape[1]), np.float32)
    starts = np.array([slot.start for slot in slots], np.int64)
    stops = np.array([slot.stop for slot in slots], np.int64)
    pool_columns(rows, index, starts, stops, out)
    return out


def _layers(ranker: Ranker, split: "_Split", own: Floats, begun: Floats, owner: Keys) -> Floats:
    """The network (N, L) from its own inputs (N, I) and what the request's part has come to (R, J)."""
    _, *others = ranker.layers
    x = linear(torch.from_numpy(own), split.own_JI, split.nothing_J)
    hidden: Floats = x.numpy()
    add_shared(hidden, begun, owner, bool(others))
    for layer in others[:-1]:
        assert isinstance(layer, nn.Linear)
        x = F.relu(linear(x, layer.weight, layer.bias))
    return _last(x, others[-1]) if others else hidden


def _last(x: Tensor, layer: nn.Module) -> Floats:
    """The narrow last layer. Where its inputs aren't whole cache lines, torch's product of a row hangs on the
    row's place; then it is multiplied row by row."""
    assert isinstance(layer, nn.Linear)
    if layer.in_features % _LINE == 0:
        found: Floats = F.linear(x, layer.weight, layer.bias).numpy()
        return found
    out = np.repeat(layer.bias.detach().numpy()[None], len(x), 0)
    times(x.numpy(), layer.weight.detach().t().contiguous().numpy(), out)
    return out


@dataclass(frozen=True)
class _Split:
    """The first layer's weights, apart: of what a request's items share, and of what is an item's own."""

    version: int
    shared_IJ: Floats
    own_JI: Tensor
    bias_J: Floats
    nothing_J: Tensor
    sharpness: np.float32


_splits: Final[WeakKeyDictionary[Ranker, _Split]] = WeakKeyDictionary()


def _split_of(ranker: Ranker, user_slots: int) -> _Split:
    """Cut once for each change of the parameters: torch counts what is written to each of them."""
    first = ranker.layers[0]
    assert isinstance(first, nn.Linear)
    version = first.weight._version + first.bias._version + ranker.sharpness._version
    known = _splits.get(ranker)
    if known is None or known.version != version:
        weight = first.weight.detach()
        shared, own = _columns(ranker.shape, user_slots)
        known = _Split(
            version,
            torch.cat([weight[:, part] for part in shared], 1).t().contiguous().numpy(),
            torch.cat([weight[:, part] for part in own], 1).contiguous(),
            first.bias.detach().numpy().copy(),
            torch.zeros_like(first.bias.detach()),
            np.float32(ranker.sharpness.item()),
        )
        _splits[ranker] = known
    return known


def _columns(shape: RankerShape, user_slots: int) -> tuple[list[slice], list[slice]]:
    """Which inputs of the first layer are shared, and which are an item's own, in ``Ranker``'s order."""
    user = user_slots * shape.dim
    wide = shape.slots * shape.dim + shape.slots * (shape.slots - 1) // 2 + shape.dense
    if not shape.history:
        return [slice(0, user)], [slice(user, wide)]
    attended = wide + shape.dim
    liked = attended + shape.dim
    outcome = liked + shape.outcomes
    end = outcome + 2 * shape.outcomes
    shared = [slice(0, user), slice(attended, liked), slice(outcome, end)]
    return shared, [slice(user, attended), slice(liked, outcome)]
