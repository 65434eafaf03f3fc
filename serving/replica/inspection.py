"""State of one item or one user in a replica, for inspection by a person. Read-only."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys.events.hashing import Id
from recsys.features.session import Session
from serving.replica.replica import Replica
from serving.sessions.session_view import history_groups, view_of

NEAR: Final = 8
SHOWN: Final = 10
_MET: Final = 12


def item(replica: Replica, item_id: Id, now_ms: int) -> dict[str, Any] | None:
    """State of an item; None for an unknown one. ``vector.moved_at``: the last step that moved it, 0 for none
    since the replica's snapshot. ``near`` is None where retrieval shards hold the index."""
    index = replica.catalogue.index_of(item_id)
    if index is None:
        return None
    key = replica.catalogue.keys[index, :1].copy()
    vector_V = replica.vectors_of(np.array([index], np.int64))[0]
    norm = float(np.linalg.norm(vector_V))
    moved = int(replica.moved_at[index]) if index < len(replica.moved_at) else 0
    return {
        "item_id": replica.catalogue.ids[index],
        "alive": bool(replica.catalogue.alive[index]),
        "fields": replica.catalogue.fields[index],
        "counters": _counters(replica, replica.counters.read(key, now_ms)[0]),
        "popularity": float(replica.popularity.values[index]),
        "shown": float(replica.popularity.shown[index]),
        "vector": {"norm": norm, "moved_at": moved, "dim": len(vector_V)},
        "near": _near(replica, index, vector_V) if replica.indexed else None,
        "version": replica.version._asdict(),
    }


def user(replica: Replica, session: Session, policy: Policy) -> dict[str, Any]:
    """The session as its viewer may see it, its most frequent authors and tags, and the policy's arms."""
    view = view_of(session, replica.catalogue, policy.config.weights)
    details = {"met": _met(replica, session), "arms": dict(policy.arms), "policy": policy.digest}
    return view | details


def _counters(replica: Replica, row_C: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    kinds = replica.features.kinds
    speeds = row_C.reshape(-1, len(kinds))
    return {
        name: {kind: round(float(value), 2) for kind, value in zip(kinds, row_K, strict=True)}
        for name, row_K in zip(replica.features.speeds, speeds, strict=True)
    }


def _near(replica: Replica, index: int, vector_V: NDArray[np.float32]) -> list[dict[str, Any]]:
    wanted = replica.catalogue.living.copy()
    wanted.take(np.array([index], np.int64))
    indices, products = replica.index.search(vector_V, NEAR, wanted, rough=True)
    ids, fields = replica.catalogue.ids, replica.catalogue.fields
    return [
        {"item_id": ids[i], "product": float(product), "fields": fields[i]}
        for i, product in zip(indices.tolist(), products.tolist(), strict=True)
    ]


def _met(replica: Replica, session: Session) -> list[dict[str, Any]]:
    """Authors and tags of the history with their slow counters, most shown first."""
    features = replica.features
    keys = history_groups(session, replica.catalogue, features.schema.groups)
    read = session.counters.read(np.array(list(keys.values()), np.int64), session.last_ms)
    slow_NK = read[:, -len(features.kinds) :]
    entries = [
        {"feature": name, "value": value}
        | {kind: round(float(n), 2) for kind, n in zip(features.kinds, row, strict=True) if n}
        for (name, value), row in zip(keys, slow_NK, strict=True)
    ]
    return sorted(entries, key=lambda entry: -float(entry.get("shown", 0.0)))[:_MET]
