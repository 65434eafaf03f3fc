"""Examples as columns: what offline training reads, shuffles and cuts into lanes, without an object for each.

Each example is here once, with the labels that it had in the end. The bytes of its features are those that
were served; ``widths`` says how many there are of each.

Legend: N examples, U user columns, I item columns, T history, H keys of an entry, O outcomes, F dense,
K labels, L outputs (labels, then watch time).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import FeatureBlock
from recsys.events.hashing import splitmix64
from recsys.events.records import TrainingExample
from recsys.features.feature_set import FeatureSet
from recsys.model.batch import Batch, assemble
from training.lines.line import MAIN

BLOCKS: Final = ("user_keys", "item_keys", "history", "outcomes", "dense")
Bytes = NDArray[np.uint8]
_LIVE: Final = f"{MAIN}/"  # what ``served_by`` begins with, whichever epoch it was


class TaughtLesson(TrainingExample, kw_only=True, gc=False):
    """A lesson with what was predicted of it when it was served: as much as an offline job reads."""

    predicted: bytes = b""  # float32 (L,); empty where no ranker answered


@dataclass(frozen=True)
class Examples:
    """N examples in order. The five columns of features are bytes (N, width), as in a ``FeatureBlock``.

    ``time_ms``: event time, which doesn't go back within a partition; ``ids``: a hash of the example's id;
    ``kept``: the rate at which examples like it were kept; ``arrived``: see ``recsys.events.records.TrainingExample``, 1
    where a label is final; ``taught``: the probabilities that a teacher gives (N, L), NaN where it says
    nothing.
    """

    time_ms: NDArray[np.int64]
    ids: NDArray[np.uint64]
    user_keys: Bytes
    item_keys: Bytes
    history: Bytes
    outcomes: Bytes
    dense: Bytes
    labels: NDArray[np.float32]
    watch_ms: NDArray[np.float32]
    kept: NDArray[np.float32]
    arrived: NDArray[np.float32]
    taught: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, which: NDArray[np.int64] | slice) -> "Examples":
        """Some of them, in the order given."""
        return Examples(*(getattr(self, f.name)[which] for f in fields(self)))

    def batch(self, features: FeatureSet) -> Batch:
        """The features, ready to be looked up."""
        size, length = len(self), features.history_length

        def column(name: str, kind: type[np.generic], *shape: int) -> NDArray[Any]:
            packed: Bytes = np.ascontiguousarray(getattr(self, name))
            return (
                packed.view(kind).reshape(size, *shape)
                if packed.size
                else np.zeros((size, *shape), kind)
            )

        return assemble(
            features,
            column("user_keys", np.int64, features.user_columns),
            column("item_keys", np.int64, features.item_columns),
            column("history", np.int64, length, features.history_keys),
            column("outcomes", np.float32, length, features.outcomes),
            column("dense", np.float32, self.dense.shape[1] // 4),
        )


def widths(features: FeatureSet, dense_width: int) -> dict[str, int]:
    """Bytes of an example in each column of features."""
    length = features.history_length
    return {
        "user_keys": 8 * features.user_columns,
        "item_keys": 8 * features.item_columns,
        "history": 8 * length * features.history_keys,
        "outcomes": 4 * length * features.outcomes,
        "dense": 4 * dense_width,
    }


def examples_of(
    lessons: Sequence[TrainingExample], time_ms: NDArray[np.int64], labels: int, final: NDArray[np.bool_]
) -> Examples:
    """Columns of decoded examples that were checked (``ExampleCheck``). ``final`` (N,): whose labels are."""
    blocks = [_block(lesson) for lesson in lessons]
    ones = [1.0] * labels
    arrived = np.array([its.arrived or ones for its in lessons], np.float32)
    ids = np.array([(its.partition, its.offset, its.index) for its in lessons], np.int64)
    packed = {name: _packed([getattr(block, name) for block in blocks]) for name in BLOCKS}
    return Examples(
        time_ms=np.asarray(time_ms, np.int64),
        ids=id_hash(ids.reshape(-1, 3)),
        labels=np.array([its.labels for its in lessons], np.float32).reshape(-1, labels),
        watch_ms=np.array([its.watch_ms for its in lessons], np.float32),
        kept=np.array([its.kept for its in lessons], np.float32),
        arrived=np.where(final[:, None], np.float32(1), arrived.reshape(-1, labels)),
        taught=predictions(lessons, labels + 1),
        **packed,
    )


def predictions(lessons: Sequence[TrainingExample], outputs: int) -> NDArray[np.float32]:
    """What the live line predicted of examples when it served them (N, outputs).

    NaN where they don't say, where another line served, which has proved nothing yet (a canary), and where
    what is said isn't so many probabilities.
    """
    said = [  # of a ``TaughtLesson``, or an ``Example``
        getattr(its, "predicted", b"") if its.served_by.startswith(_LIVE) else b""
        for its in lessons
    ]
    nothing = np.full(outputs, np.nan, np.float32).tobytes()
    joined_bytes = b"".join([its if len(its) == len(nothing) else nothing for its in said])
    out = np.frombuffer(joined_bytes, np.float32).reshape(-1, outputs).copy()
    out[~((out >= 0) & (out <= 1)).all(1)] = np.nan
    return out


def id_hash(ids_N3: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of (partition, offset, index), (N,)."""
    out = np.zeros(len(ids_N3), np.uint64)
    for column in ids_N3.T:
        out = splitmix64(out ^ column.astype(np.int64).view(np.uint64))
    return out


def shuffled(seed: int, epoch: int, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """An order of examples: a pure function of (seed, epoch, ids)."""
    salt = splitmix64(np.array([seed, epoch], np.int64).view(np.uint64))
    return np.argsort(splitmix64(ids ^ salt[0] ^ (salt[1] << np.uint64(1))), kind="stable")


def joined(parts: Sequence[Examples]) -> Examples:
    """All of some examples, in order; of one at least."""
    return Examples(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Examples))
    )


def _block(lesson: TrainingExample) -> FeatureBlock:
    assert lesson.features is not None, "it was checked"
    return lesson.features


def _packed(values: Sequence[bytes]) -> Bytes:
    joined_bytes = np.frombuffer(bytearray().join(values), np.uint8)
    return joined_bytes.reshape(len(values), -1) if len(values) else np.zeros((0, 0), np.uint8)
