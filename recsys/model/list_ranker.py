"""Ranks whole lists for answering and replay: the logits of ``Model.rank``, up to the last bits.

``logits_by_torch`` serves any ranker module through its forward, best one request at a time: then all items
share one history. ``logits_compiled`` is an optimisation of the built-in ``Ranker``, which computes once what
the items of a request share: its first layer is split into shared input columns (the user's rows, summaries
of the history), multiplied once per request, and an item's own. An item's logits don't depend on the items
ranked beside it (``serving/scorers/probabilities.py``).

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
from torch.nn import functional as F

from recsys.events.field_keys import Slot
from recsys.features.request_features import RequestFeatures
from recsys.model.linear_layer import linear
from recsys.model.model import Model, unique_keys
from recsys.model.ranker import DIRECT, LINE, Ranker, RankerShape, dense_start
from recsys.model.tile_kernels import LANES, add_shared, lay_items, lay_shared, pool_columns, times

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Lists:
    """Requests ready to be ranked: unique keys (U,), and the row index of each place among them.

    A place without a key has the index of the row of zeros after the last.
    """

    keys: Keys
    user_RC: Keys
    history_RTH: Keys
    items_NC: Keys
    owner_N: Keys  # the request of each item
    outcomes_RTO: Floats
    dense_NF: Floats
    total: int  # requested items; the rest pad the last tile


def lists_of(requests: Sequence[RequestFeatures]) -> Lists:
    """All items of the requests, in order; at least one request."""
    counts = [len(request.items_NI) for request in requests]
    total = sum(counts)
    fill = -total % LANES
    first = requests[0]
    columns, fields = first.items_NI.shape[1], first.dense_NF.shape[1]
    users = [request.user_U for request in requests]
    histories = [request.history_TH.reshape(-1) for request in requests]
    items = [request.items_NI.reshape(-1) for request in requests]
    keys, at = unique_keys(*users, *histories, *items, np.zeros(fill * columns, np.int64))
    size, t, h = len(requests), *first.history_TH.shape
    end_user = size * len(first.user_U)
    end_history = end_user + size * t * h
    dense = np.zeros((total + fill, fields), np.float32)
    np.concatenate([request.dense_NF for request in requests], out=dense[:total])
    owner = np.repeat(np.arange(size), counts)
    return Lists(
        keys, at[:end_user].reshape(size, -1), at[end_user:end_history].reshape(size, t, h),
        at[end_history:].reshape(total + fill, columns), np.concatenate([owner, np.full(fill, size - 1)]),
        np.stack([request.outcomes_TO for request in requests]), dense, total,
    )  # fmt: skip


def list_logits(model: Model, lists: Lists, rows_UW: Floats) -> Floats:
    """The logits (total, L). ``rows_UW``: rows of the keys, then the row of zeros."""
    return (logits_compiled if is_compiled(model) else logits_by_torch)(model, lists, rows_UW)


def is_compiled(model: Model) -> bool:
    """Whether compiled loops rank lists, several together as fast as apart."""
    return type(model.ranker) is Ranker


def logits_by_torch(model: Model, lists: Lists, rows_UW: Floats) -> Floats:
    """``list_logits`` for any ranker module, by its forward; a single request's history has one row."""
    features, rows = model.features, torch.from_numpy(rows_UW)
    owner_N = torch.from_numpy(lists.owner_N)
    user_RSW = _pooled_by_torch(rows, lists.user_RC, features.user_slots)
    items_NSW = _pooled_by_torch(rows, lists.items_NC, features.item_slots)
    size, t, h = lists.history_RTH.shape
    entries = lists.history_RTH.reshape(size * t, h)
    history_RTW = _pooled_by_torch(rows, entries, (Slot("entry", 0, h),))
    history_RTW = history_RTW.view(size, t, rows.shape[1])
    of_history = owner_N if size > 1 else torch.zeros(1, dtype=torch.int64)
    logits: Floats = model.ranker(
        torch.cat([user_RSW[owner_N], items_NSW], 1),
        history_RTW[of_history],
        torch.from_numpy(lists.outcomes_RTO)[of_history],
        torch.from_numpy(lists.dense_NF),
    ).numpy()
    return logits[: lists.total]


def _pooled_by_torch(rows: Tensor, index: Keys, slots: Sequence[Slot]) -> Tensor:
    bags = torch.from_numpy(index)
    pooled = [
        F.embedding_bag(bags[:, slot.start : slot.stop], rows, mode="mean", padding_idx=len(rows) - 1)
        for slot in slots
    ]
    return torch.stack(pooled, 1)


def logits_compiled(model: Model, lists: Lists, rows_UW: Floats) -> Floats:
    """``list_logits`` for the built-in ``Ranker``, by compiled loops."""
    ranker, features = model.ranker, model.features
    assert isinstance(ranker, Ranker)
    user = _pooled(rows_UW, lists.user_RC, features.user_slots)
    items = _pooled(rows_UW, lists.items_NC, features.item_slots)
    size, t, h = lists.history_RTH.shape
    entries = _pooled(rows_UW, lists.history_RTH.reshape(size * t, h), (Slot("entry", 0, h),))
    history = entries.reshape(size, t, rows_UW.shape[1])
    split = _split_of(ranker, len(features.user_slots))
    shared = np.empty((size, split.shared_IJ.shape[0]), np.float32)
    lay_shared(user, history, lists.outcomes_RTO, shared)
    begun = np.repeat(split.bias_J[None], size, 0)
    times(shared, split.shared_IJ, begun)
    # Torch aligns its memory to cache lines; the last bits of some products depend on that.
    own: Floats = torch.empty((len(items), split.own_JI.shape[1])).numpy()
    main = np.empty(len(items), np.float32)
    lay_items(user, items, lists.owner_N, history, lists.outcomes_RTO, ranker.shape.item_slot,
              split.sharpness, lists.dense_NF, own, main)  # fmt: skip
    logits = _layers(ranker, split, own, begun, lists.owner_N)
    if ranker.shape.direct:
        times(lists.dense_NF, split.direct_FL, logits)
    logits[:, 0] += main
    return logits[: lists.total]


def _pooled(rows: Floats, index: Keys, slots: Sequence[Slot]) -> Floats:
    out = np.empty((len(index), len(slots), rows.shape[1]), np.float32)
    starts = np.array([slot.start for slot in slots], np.int64)
    stops = np.array([slot.stop for slot in slots], np.int64)
    pool_columns(rows, index, starts, stops, out)
    return out


def _layers(ranker: Ranker, split: "_Split", own: Floats, begun: Floats, owner: Keys) -> Floats:
    """The network (N, L), from own inputs (N, I) and the partial sums of the shared inputs (R, J)."""
    _, *rest = ranker.layers
    x = linear(torch.from_numpy(own), split.own_JI, split.zeros_J)
    hidden: Floats = x.numpy()
    add_shared(hidden, begun, owner, bool(rest))
    for layer in rest[:-1]:
        assert isinstance(layer, nn.Linear)
        x = F.relu(linear(x, layer.weight, layer.bias))
    return _last(x, rest[-1]) if rest else hidden


def _last(x: Tensor, layer: nn.Module) -> Floats:
    """The narrow last layer. Unless its inputs are whole cache lines, torch's product of a row depends on the
    row's position, so it is multiplied row by row."""
    assert isinstance(layer, nn.Linear)
    if layer.in_features % LINE == 0:
        logits: Floats = F.linear(x, layer.weight, layer.bias).numpy()
        return logits
    out = np.repeat(layer.bias.detach().numpy()[None], len(x), 0)
    times(x.numpy(), layer.weight.detach().t().contiguous().numpy(), out)
    return out


@dataclass(frozen=True)
class _Split:
    """The first layer's weights, split by input: shared by a request's items, and an item's own."""

    version: int
    shared_IJ: Floats
    own_JI: Tensor
    bias_J: Floats
    zeros_J: Tensor
    direct_FL: Floats
    sharpness: np.float32


_splits: Final[WeakKeyDictionary[Ranker, _Split]] = WeakKeyDictionary()


def _split_of(ranker: Ranker, user_slots: int) -> _Split:
    """Splits once per change of the parameters, by torch's version counters."""
    first = ranker.layers[0]
    assert isinstance(first, nn.Linear)
    parts = first.weight, first.bias, ranker.sharpness, ranker.direct_LF
    version = sum(part._version for part in parts)
    split = _splits.get(ranker)
    if split is None or split.version != version:
        weight = first.weight.detach()
        shared, own = _columns(ranker.shape, user_slots)
        split = _Split(
            version,
            torch.cat([weight[:, part] for part in shared], 1).t().contiguous().numpy(),
            torch.cat([weight[:, part] for part in own], 1).contiguous(),
            first.bias.detach().numpy().copy(),
            torch.zeros_like(first.bias.detach()),
            _direct(ranker),
            np.float32(ranker.sharpness.item()),
        )
        _splits[ranker] = split
    return split


def _direct(ranker: Ranker) -> Floats:
    """The weights of direct inputs, scaled."""
    if not ranker.shape.direct:
        return np.empty((0, ranker.shape.outputs), np.float32)
    weight = DIRECT * ranker.direct_LF.detach()[:, : ranker.shape.dense]
    direct_FL: Floats = weight.t().contiguous().numpy()
    return direct_FL


def _columns(shape: RankerShape, user_slots: int) -> tuple[list[slice], list[slice]]:
    """Shared and own inputs of the first layer, in ``Ranker``'s order."""
    user = user_slots * shape.dim
    wide = dense_start(shape) + shape.dense
    if not shape.history:
        return [slice(0, user)], [slice(user, wide)]
    attended = wide + shape.dim
    liked = attended + shape.dim
    outcome = liked + shape.outcomes
    end = outcome + 2 * shape.outcomes
    shared = [slice(0, user), slice(attended, liked), slice(outcome, end)]
    return shared, [slice(user, attended), slice(liked, outcome)]
