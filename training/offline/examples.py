"""Examples as columns, which offline training reads, shuffles and cuts into lanes without objects.

Each example is here once, with its final labels. The bytes of its features are as served.

Legend: N examples, K labels, L outputs (labels, then watch time).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.hashing import splitmix64
from recsys.events.records import TrainingExample
from recsys.features.feature_set import FeatureSet
from recsys.model.batch import Batch
from training.continual.learner import batch_of
from training.lines.line import MAIN

BLOCKS: Final = ("user_keys", "item_keys", "history", "outcomes", "dense")
Bytes = NDArray[np.uint8]
_LIVE: Final = f"{MAIN}/"  # prefix of ``served_by`` for any epoch of the live line


class OfflineExample(TrainingExample, kw_only=True, gc=False):
    """An example with its predictions at serving time."""

    predicted: bytes = b""  # float32 (L,); empty if no ranker answered


@dataclass(frozen=True)
class Examples:
    """N examples in order. The five columns of features are bytes (N, width), as in a ``FeatureBlock``.

    ``time_ms``: event time, non-decreasing within a partition; ``ids``: a hash of the example's id;
    ``sampling_rate``; ``arrived``: see ``TrainingExample``, 1 where a label is final; ``taught``: a teacher's
    probabilities (N, L), NaN without a prediction.
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
    sampling_rate: NDArray[np.float32]
    arrived: NDArray[np.float32]
    taught: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, which: NDArray[np.int64] | slice) -> "Examples":
        """Selects examples, in the order given."""
        return Examples(*(getattr(self, f.name)[which] for f in fields(self)))

    def cut(self, size: int) -> Iterator["Examples"]:
        """Parts of at most ``size`` examples, in order."""
        return (self.take(slice(at, at + size)) for at in range(0, len(self), size))

    def batch(self, features: FeatureSet) -> Batch:
        """The features, ready to be looked up."""
        width = self.dense.shape[1] // 4
        return batch_of(features, len(self), width, lambda name: np.ascontiguousarray(getattr(self, name)))


def examples_of(
    examples: Sequence[TrainingExample], time_ms: NDArray[np.int64], labels: int, final: NDArray[np.bool_]
) -> Examples:
    """Columns of decoded examples that passed ``ExampleCheck``. ``final`` (N,): whether labels are final."""
    blocks = [example.features for example in examples]
    all_arrived = [1.0] * labels
    arrived = np.array([e.arrived or all_arrived for e in examples], np.float32)
    ids = np.array([(e.partition, e.offset, e.index) for e in examples], np.int64)
    return Examples(
        time_ms=np.asarray(time_ms, np.int64),
        ids=id_hash(ids.reshape(-1, 3)),
        labels=np.array([e.labels for e in examples], np.float32).reshape(-1, labels),
        watch_ms=np.array([e.watch_ms for e in examples], np.float32),
        sampling_rate=np.array([e.sampling_rate for e in examples], np.float32),
        arrived=np.where(final[:, None], np.float32(1), arrived.reshape(-1, labels)),
        taught=served_predictions(examples, labels + 1),
        **{name: _packed([getattr(block, name) for block in blocks]) for name in BLOCKS},
    )


def served_predictions(examples: Sequence[TrainingExample], outputs: int) -> NDArray[np.float32]:
    """The live line's predictions of examples when it served them (N, outputs). NaN without a prediction, for
    another line, which is unproven (a canary), and for anything but that many probabilities."""
    missing = np.full(outputs, np.nan, np.float32).tobytes()
    values = []
    for example in examples:  # an ``OfflineExample`` or ``Example`` has predictions
        value = getattr(example, "predicted", b"") if example.served_by.startswith(_LIVE) else b""
        values.append(value if len(value) == len(missing) else missing)
    out = np.frombuffer(b"".join(values), np.float32).reshape(-1, outputs).copy()
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


def concatenated(parts: Sequence[Examples]) -> Examples:
    """Concatenates one or more blocks of examples."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Examples))
    return Examples(*map(np.concatenate, columns))


def _packed(values: Sequence[bytes]) -> Bytes:
    joined_bytes = np.frombuffer(bytearray().join(values), np.uint8)
    return joined_bytes.reshape(len(values), -1) if len(values) else np.zeros((0, 0), np.uint8)
