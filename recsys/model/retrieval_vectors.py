"""Item vectors and user vectors for retrieval.

An item's vector is its own row plus a projection of its content: each author and tag, and each component of
the item's own vector fields, has a fixed random direction, by hash. So a new item starts near similar ones on
every replica. The item side has no dense parameters, so a step moves only the vectors whose rows it touched.

The last component of an item is its bias, since that of a user is 1: how often it is liked by anybody.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import types
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys.arrays.compiled import GAMMA, kernel, mix, read_only, unit
from recsys.events.hashing import key_of, uniforms
from recsys.model.linear_layer import apart

Fields = tuple[tuple[str, int], ...]  # names and lengths, as in ``Schema.vectors``
_CONTENT_SEED = 7
_CONTENT_NORM = 0.8


def content_vectors(groups_NG: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    """The projection of items' content (N, dim) from their group keys (N, G), 0 for no key.

    It sums each key's direction (uniform, norm about 1), scaled so that any number of keys gives about the
    same norm; zeros for an item without groups, and in the place of the bias.
    """
    keys = np.ascontiguousarray(groups_NG, np.int64)
    out = np.empty((*keys.shape[:-1], dim), np.float32)
    rows = out.size // dim
    project(keys.reshape(rows, keys.shape[-1]), out.reshape(rows, dim))
    return out


_int, _float = types.int64, types.float32


@kernel(types.void(read_only(_int, 2), _float[:, ::1]))
def project(groups: Any, out: Any) -> None:
    """Writes ``content_vectors`` into ``out``, with the draws of ``recsys.events.hashing.uniforms``."""
    dim, seed = out.shape[1], mix(np.uint64(_CONTENT_SEED))
    one, two, bound = np.float32(1), np.float32(2), np.float32(np.sqrt(3.0 / max(dim - 1, 1)))
    for n in range(groups.shape[0]):
        own, count = out[n], 0
        own[:] = np.float32(0)
        for g in range(groups.shape[1]):
            if groups[n, g] == 0:
                continue
            count += 1
            cell = mix(np.uint64(groups[n, g]) ^ seed)
            for j in range(dim):
                cell += GAMMA
                draw = np.float32(unit(cell))
                own[j] += (two * draw - one) * bound
        scale = _CONTENT_NORM / np.sqrt(np.float64(max(count, 1)))
        for j in range(dim):
            own[j] = np.float32(np.float64(own[j]) * scale)
        own[dim - 1] = np.float32(0)


def field_vectors(numbers_NM: NDArray[np.float32], fields: Fields, dim: int) -> NDArray[np.float32]:
    """The projection of items' vector fields (N, dim), to be added to that of their groups.

    ``numbers_NM`` holds the fields side by side. Each is normalised to length 1 and projected by a fixed
    random matrix, which preserves distances (Johnson and Lindenstrauss 1984); any number of fields gives
    about the norm of one group projection. Zeros for an item without any.
    """
    total = np.zeros((len(numbers_NM), dim), np.float32)
    present = np.zeros((len(numbers_NM), 1), np.float32)
    start = 0
    for name, length in fields:
        own = numbers_NM[:, start : start + length]
        norm = np.sqrt((own * own).sum(1, keepdims=True))
        units = own / np.maximum(norm, np.float32(1e-12))
        # Component by component: a matrix product's last bits depend on the number of items.
        for place, direction in enumerate(_directions(name, length, dim)):
            total += units[:, place, None] * direction
        present += norm > 0
        start += length
    scale = np.float32(_CONTENT_NORM) / np.sqrt(np.maximum(present, np.float32(1)))
    out: NDArray[np.float32] = (total * scale).astype(np.float32)
    return out


@lru_cache(maxsize=64)
def _directions(name: str, length: int, dim: int) -> NDArray[np.float32]:
    """The direction of each component (length, dim), of norm about 1, from hashes of field and position."""
    keys = np.array([key_of(f"vector.{name}", place) for place in range(length)], np.int64)
    draws = uniforms(_CONTENT_SEED, keys, dim).astype(np.float32)
    bound = np.float32(np.sqrt(3.0 / max(dim - 1, 1)))
    directions: NDArray[np.float32] = (2.0 * draws - 1.0) * bound
    directions[:, -1] = 0
    return directions


class UserSide(nn.Module):
    """Makes user vectors from the user's row and recently liked and seen items."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.liked = nn.Parameter(torch.eye(dim))
        self.seen = nn.Parameter(-0.3 * torch.eye(dim))
        self.start = nn.Parameter(torch.zeros(dim))
        self.sharpness = nn.Parameter(torch.tensor(3.0))

    def forward(self, user_BV: Tensor, history_BTV: Tensor, outcomes_BTO: Tensor) -> Tensor:
        """Vectors (B, V). The first outcome is the most important label, the last one recency."""
        real_BT = (outcomes_BTO[..., -1] > 0).float()
        liked_BT = real_BT * outcomes_BTO[..., 0]
        liked_BV = torch.einsum("bt,btv->bv", liked_BT, history_BTV)
        liked_BV = liked_BV / liked_BT.sum(1, keepdim=True).clamp(min=1.0)
        passed_BT = real_BT - liked_BT
        passed_BV = torch.einsum("bt,btv->bv", passed_BT, history_BTV)
        passed_BV = passed_BV / passed_BT.sum(1, keepdim=True).clamp(min=1.0)
        user, liked, passed = (apart(x, self.sharpness.shape) for x in (user_BV, liked_BV, passed_BV))
        vector_NBV = user + liked @ self.liked + passed @ self.seen + self.start.unsqueeze(-2)
        vector_BV = vector_NBV.flatten(0, -2)
        return torch.cat([vector_BV[:, :-1], torch.ones_like(vector_BV[:, -1:])], 1)


def retrieval_loss(
    user_BV: Tensor, item_BV: Tensor, items_B: Tensor, liked_B: Tensor, sharpness: Tensor, log_q_B: Tensor
) -> Tensor:
    """Softmax of each liked item against the other items of the batch (in-batch negatives), summed: of its
    lane, if ``sharpness`` has one for each.

    An item is a negative as often as it is in batches. ``log_q_B``, the logarithm of that up to a constant,
    is subtracted, so that logits are those of a choice among all items (Yi et al. 2019). The same item
    elsewhere in the batch is no negative. 0 if nothing was liked or there is no other item.
    """
    lanes = sharpness.shape
    items_NB, liked_NB, log_q_NB = (x.view(*lanes, -1) for x in (items_B, liked_B, log_q_B))
    products_NBB = apart(user_BV, lanes) @ apart(item_BV, lanes).mT
    logits_NBB = sharpness[..., None, None] * products_NBB - log_q_NB.unsqueeze(-2)
    same_NBB = (items_NB.unsqueeze(-1) == items_NB.unsqueeze(-2)) & ~torch.eye(
        items_NB.shape[-1], dtype=torch.bool, device=items_B.device
    )
    logits_NBB = logits_NBB.masked_fill(same_NBB, -1e9)
    log_p_NB = logits_NBB.diagonal(dim1=-2, dim2=-1) - torch.logsumexp(logits_NBB, -1)
    return -(log_p_NB * liked_NB).sum()
