"""What a replica knows of one item, or of one user, for a person who looks. Pure reads of its state."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys.events.field_schema import values_of
from recsys.events.hashing import Id
from recsys.features.counters import SPEEDS
from recsys.features.session import Session
from serving.replica.replica import Replica
from serving.sessions.session_view import view_of

NEAR: Final = 8
SHOWN: Final = 10
_MET: Final = 12


def item(replica: Replica, item_id: Id, now_ms: int) -> dict[str, Any] | None:
    """None where it was never published. ``vector.moved_at``: the step that moved it last; 0: none has since
    the snapshot that the replica began with. ``near`` is None where shards of retrieval have the index."""
    index = replica.catalogue.index_of(item_id)
    if index is None:
        return None
    key = replica.catalogue.keys[index, :1].copy()
    vector_V = replica.vectors_of(np.array([index], np.int64))[0]
    moved = int(replica.moved_at[index]) if index < len(replica.moved_at) else 0
    return {
        "item_id": replica.catalogue.ids[index],
        "alive": bool(replica.catalogue.alive[index]),
        "fields": replica.catalogue.fields[index],
        "counters": _counters(replica, replica.counters.read(key, now_ms)[0]),
        "popularity": float(replica.popularity.values[index]),
        "shown": float(replica.popularity.shown[index]),
        "vector": {
            "norm": float(np.linalg.norm(vector_V)),
            "moved_at": moved,
            "dim": len(vector_V),
        },
        "near": _near(replica, index, vector_V) if replica.indexed else None,
        "version": dict(zip(("line", "epoch", "step"), replica.version, strict=True)),
    }


def user(replica: Replica, session: Session, policy: Policy) -> dict[str, Any]:
    """The session as its viewer may see it, what they met most, and the arms that they are given."""
    found = view_of(session, replica.catalogue, policy.config.weights)
    return found | {
        "met": _met(replica, session),
        "arms": dict(policy.arms),
        "policy": policy.digest,
    }


def _counters(replica: Replica, row_C: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    kinds = replica.features.kinds
    speeds = row_C.reshape(SPEEDS, len(kinds))
    return {
        name: {kind: round(float(value), 2) for kind, value in zip(kinds, row_K, strict=True)}
        for name, row_K in zip(("fast", "slow"), speeds, strict=True)
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
    """Authors and tags of the history by how often they were met, most first (slow counters)."""
    features, keys = replica.features, dict[tuple[str, Any], int]()
    for entry in session.history:
        index = replica.catalogue.index_of_key(entry.keys[0])
        if index is None:
            continue
        for name in features.schema.groups:
            slot = features.slot(f"item.{name}")
            row = replica.catalogue.keys[index, slot.start : slot.stop].tolist()
            values = values_of(replica.catalogue.fields[index].get(name))
            keys |= {(name, value): key for value, key in zip(values, row, strict=False)}
    if not keys:
        return []
    read = session.counters.read(np.array(list(keys.values()), np.int64), session.last_ms)
    slow_NK = read.reshape(len(keys), SPEEDS, len(features.kinds))[:, 1]
    found = [
        {"feature": name, "value": value}
        | {kind: round(float(n), 2) for kind, n in zip(features.kinds, row, strict=True) if n}
        for (name, value), row in zip(keys, slow_NK, strict=True)
    ]
    return sorted(found, key=lambda one: -float(one.get("shown", 0.0)))[:_MET]
