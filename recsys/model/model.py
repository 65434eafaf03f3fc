"""The model: ranker and user side over the rows of three tables, and the choice model, which needs no rows.
All dense parameters are one flat vector.

Tables: ``features`` (a row per categorical value, D + 1 wide), ``items`` (item vectors) and ``users`` (user
vectors). The model takes rows and the flat vector; it does not know where they come from.

Legend: B batch, S slots, D embedding, T history, V vector, U unique keys of a table.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys.config.system_config import ModelConfig
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.model.batch import Batch
from recsys.model.choice_model import choice_size
from recsys.model.ranker import Ranker, RankerModule, RankerShape, dense_start, ranker_of
from recsys.model.retrieval_vectors import UserSide, content_vectors, field_vectors
from recsys.model.row_kernels import distinct
from recsys.model.row_layers import pooled

Keys = NDArray[np.int64]


@dataclass(frozen=True)
class Lookup:
    """Rows that a batch needs: unique keys by table, and the row index of each place of the batch.

    A place without a key (0) has the index of the row of zeros after the last.
    """

    keys: dict[str, Keys]
    slot_index: Tensor  # of sparse.values() into the unique feature keys
    history_index: Tensor  # (B or 1, T, H) into the unique feature keys
    item_index: Tensor  # (B,) into the unique item keys
    history_item_index: Tensor  # (B or 1, T) into the unique item keys
    user_index: Tensor  # (B,) into the unique user keys


def lookup_of(batch: Batch) -> Lookup:
    """De-duplicates the keys of a batch."""
    slots = batch.sparse.values().numpy()
    history_items = batch.history_BTH[..., 0]
    features, at = unique_keys(slots, batch.history_BTH.reshape(-1))
    items, at_items = unique_keys(batch.item_B, history_items.reshape(-1))
    users, at_users = unique_keys(batch.user_B)
    return Lookup(
        {"features": features, "items": items, "users": users},
        torch.from_numpy(at[: len(slots)]),
        torch.from_numpy(at[len(slots) :].reshape(batch.history_BTH.shape)),
        torch.from_numpy(at_items[: len(batch)]),
        torch.from_numpy(at_items[len(batch) :].reshape(history_items.shape)),
        torch.from_numpy(at_users),
    )


def unique_keys(*parts: Keys) -> tuple[Keys, Keys]:
    """Unique non-zero keys in order of occurrence, and each key's index (0: after the last)."""
    keys = np.concatenate(parts)
    cells = np.full(1 << (2 * len(keys)).bit_length(), -1, np.int32)
    unique, at = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    count = distinct(keys, cells, unique, at)
    return unique[:count], at


class ChoiceWeights(nn.Module):
    """Weights of the choice model (recsys/model/choice_model.py). A module, since a module's own parameters
    precede those of its parts."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weights_W = nn.Parameter(torch.zeros(size))


class Model(nn.Module):
    """Ranker and user side. Rows are passed with a row of zeros after the last."""

    def __init__(
        self,
        features: FeatureSet,
        config: ModelConfig,
        dense_width: int,
        ranker: Callable[[RankerShape, int], RankerModule],
    ) -> None:
        """``ranker`` makes the ranker from its shape and a seed; any RankerModule will do."""
        super().__init__()
        self.lanes = 0  # copies of each dense parameter; 0: the parameters themselves
        self.features = features
        self.config = config
        slots = [*features.user_slots, *features.item_slots]
        shape = RankerShape(
            slots=len(slots), dim=config.dim, item_slot=[slot.name for slot in slots].index("item"),
            history=features.history_length, outcomes=features.outcomes, dense=dense_width,
            labels=len(features.schema.labels), hidden=config.hidden, direct=features.list_columns > 0,
        )  # fmt: skip
        self.ranker = ranker(shape, config.seed)
        if isinstance(self.ranker, Ranker) and features.list_columns:
            # A log of lists of one item teaches these columns nothing: then they must say nothing.
            end = dense_start(shape) + shape.dense
            with torch.no_grad():
                first = self.ranker.get_parameter("layers.0.weight")
                first[:, end - features.list_columns : end] = 0.0
        self.user_side = UserSide(config.vector_dim)
        # The last of the dense parameters, as shards expect.
        self.choice = ChoiceWeights(choice_size(features))

    def rank(self, batch: Batch, lookup: Lookup, rows_UR: Tensor) -> Tensor:
        """The ranker's logits (B, L), on the device of the rows."""
        logits: Tensor = self.ranker(*self.ranker_inputs(batch, lookup, rows_UR))
        return logits

    def ranker_inputs(self, batch: Batch, lookup: Lookup, rows_UR: Tensor) -> tuple[Tensor, ...]:
        size, device = len(batch), rows_UR.device
        pooled_BSR = pooled(rows_UR, lookup.slot_index, batch.sparse.lengths(), size)
        history_BTR = self._history(lookup, rows_UR)
        outcomes = torch.from_numpy(batch.outcomes_BTO).to(device)
        return pooled_BSR, history_BTR, outcomes, torch.from_numpy(batch.dense_BF).to(device)

    def _history(self, lookup: Lookup, rows_UR: Tensor) -> Tensor:
        """The mean row of each history entry's keys, (B or 1, T, R)."""
        b, t, h = lookup.history_index.shape
        if t == 0:
            return rows_UR.new_zeros((b, 0, rows_UR.shape[1]))
        lengths = torch.full((b * t,), h)
        return pooled(rows_UR, lookup.history_index.reshape(-1), lengths, b * t).view(b, t, -1)

    def user_vectors(self, batch: Batch, lookup: Lookup, users_UV: Tensor, items_UV: Tensor) -> Tensor:
        """User vectors (B, V)."""
        vectors: Tensor = self.user_side(*self.user_inputs(batch, lookup, users_UV, items_UV))
        return vectors

    def user_inputs(
        self, batch: Batch, lookup: Lookup, users_UV: Tensor, items_UV: Tensor
    ) -> tuple[Tensor, ...]:
        content = content_vectors(batch.history_BTH[..., 1:], self.config.vector_dim)
        device = items_UV.device
        history_BTV = items_UV[lookup.history_item_index.to(device)]
        history_BTV = history_BTV + torch.from_numpy(content).to(device)
        outcomes = torch.from_numpy(batch.outcomes_BTO).to(device)
        users_BV = users_UV[lookup.user_index.to(device)]
        size = len(users_BV)
        return users_BV, history_BTV.expand(size, -1, -1), outcomes.expand(size, -1, -1)

    def item_vectors(self, batch: Batch, lookup: Lookup, items_UV: Tensor) -> Tensor:
        """Item vectors (B, V)."""
        content = content_vectors(batch.item_groups_BG, self.config.vector_dim)
        if self.features.vector_fields:
            own = batch.dense_BF[:, self.features.span("vectors")]
            content += field_vectors(own, self.features.vector_fields, self.config.vector_dim)
        device = items_UV.device
        return items_UV[lookup.item_index.to(device)] + torch.from_numpy(content).to(device)

    @cached_property
    def dense_parameters(self) -> tuple[nn.Parameter, ...]:
        """``parameters()``, found once: that takes as long as a layer."""
        return tuple(self.parameters())

    def by_lane(self, lanes: int) -> "Model":
        """A copy with each dense parameter once for each lane, (lanes, ...): a batch of several lanes gives
        each lane's gradients. Needs the built-in ranker."""
        other = copy.deepcopy(self)
        other.__dict__.pop("dense_parameters", None)
        for module in other.modules():
            for name, p in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.stack([p.detach()] * lanes)))
        other.lanes = lanes
        return other

    def dense_size(self) -> int:
        return sum(p.numel() for p in self.dense_parameters) // max(1, self.lanes)

    def read_dense(self) -> NDArray[np.float32]:
        """All dense parameters as one flat vector, in the order of ``parameters()``."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.dense_parameters])
        out: NDArray[np.float32] = flat.cpu().numpy().copy()
        return out

    def write_dense(self, flat: NDArray[np.float32]) -> None:
        """Sets the dense parameters; raises ValueError for the length of another model."""
        if len(flat) != self.dense_size():
            raise ValueError(
                f"dense has {len(flat)} numbers, this model {self.dense_size()}: it was trained with "
                "another feature set or another model configuration"
            )
        at, values = 0, torch.from_numpy(flat.copy())
        with torch.no_grad():
            for p in self.dense_parameters:
                shape = p.shape[1:] if self.lanes else p.shape
                p.copy_(values[at : at + shape.numel()].view(shape))
                at += shape.numel()

    def dense_gradient(self) -> NDArray[np.float32]:
        """The gradients of all dense parameters, flat, by lane if they are; zeros for missing ones."""
        pairs = [(p, p.grad) for p in self.dense_parameters]
        parts = [torch.zeros_like(p) if grad is None else grad for p, grad in pairs]
        lanes = [self.lanes] if self.lanes else []
        out: NDArray[np.float32] = torch.cat([g.reshape(*lanes, -1) for g in parts], -1).cpu().numpy()
        return out


def joined(lanes: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """The columns of several lanes, lane after lane."""
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*lanes, strict=True)]


def with_missing_row(rows: NDArray[np.float32]) -> Tensor:
    """Rows (U, R), followed by the row of zeros that represents a missing key."""
    return torch.from_numpy(np.concatenate([rows, np.zeros((1, rows.shape[1]), np.float32)]))


def build_model(
    features: FeatureSet,
    config: ModelConfig,
    ranker: Callable[[RankerShape, int], RankerModule] | None = None,
) -> Model:
    """The model with its initial dense parameters, identical in every process that builds it. ``ranker``:
    instead of the configured one. Raises ValueError for a plug-in that is missing, has another version or
    can't be made for the features."""
    make, width = ranker or ranker_of(config.ranker), FeatureBuilder(features).dense_width
    try:
        return Model(features, config, width, make)
    except Exception as error:  # a plug-in may raise anything
        given = getattr(ranker, "__name__", repr(ranker)) if ranker else config.ranker
        name = f"model.ranker {given or 'built-in'!r}"
        raise ValueError(f"{name} can't be made for these features: {error!r}") from error
