"""Examples for ``recsys bench train``: 24 one-hot fields with ids from Zipf's law, seeded.

They are on a log as the joiner writes them, so every variant reads and decodes the same records. The labels
follow a planted effect of each id, so there is something to learn. Keys are mixed 64-bit numbers, as hashed
ids are.

Legend: N examples, F fields, K labels.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import FeatureBlock
from recsys.events.field_schema import CATEGORICAL, Schema
from recsys.events.hashing import splitmix64
from recsys.events.records import EXAMPLES, Example, TrainingExample, pack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append, Log

START_MS: Final = 1_700_000_000_000
EXPONENT: Final = 1.05  # of Zipf's law: few ids are frequent, most are rare
GROUPS: Final = tuple(f"field_{number:02}" for number in range(17))
SCHEMA: Final = Schema(
    item=tuple((name, CATEGORICAL) for name in GROUPS), groups=GROUPS, labels=("long_view", "click")
)
FEATURES: Final = FeatureSet(SCHEMA, "ids")  # four slots of the user, twenty of the item
FIELDS: Final = len(FEATURES.user_slots) + len(FEATURES.item_slots)
_PARTITIONS: Final = 4
_AT_ONCE: Final = 10_000


@dataclass(frozen=True)
class DrawnExamples:
    """``keys_NF``: one 64-bit key for each field; ``labels_NK`` 0 or 1; ``watch_ms_N``."""

    keys_NF: NDArray[np.int64]
    labels_NK: NDArray[np.float32]
    watch_ms_N: NDArray[np.int64]


def draw_examples(count: int, ids: int, seed: int) -> DrawnExamples:
    """``count`` examples with ``ids`` ids in each field, determined by the seed."""
    draw = np.random.default_rng(seed)
    below = np.cumsum(np.arange(1, ids + 1, dtype=np.float64) ** -EXPONENT)
    ids_NF = np.searchsorted(below, draw.random((count, FIELDS)) * below[-1])
    effects_FI = draw.normal(scale=0.3, size=(FIELDS, ids)).astype(np.float32)
    logit_N = effects_FI[np.arange(FIELDS), ids_NF].sum(1) - 1.0
    chance_NK = 1 / (1 + np.exp(-np.stack([logit_N, logit_N - 1.0], 1)))
    labels = (draw.random(chance_NK.shape) < chance_NK).astype(np.float32)
    watch = (draw.random(count) * 20_000 * (1 + labels[:, 0])).astype(np.int64)
    plain = ids_NF.astype(np.uint64) + (np.arange(1, FIELDS + 1, dtype=np.uint64) << np.uint64(40))
    return DrawnExamples(splitmix64(plain).view(np.int64), labels, watch)


def append_examples(log: Log, drawn: DrawnExamples) -> None:
    """Appends them to ``examples`` in the order of their numbers, to the partitions in turn."""
    places = {partition: 0 for partition in range(_PARTITIONS)}
    slots = [slot.start for slot in FEATURES.user_slots]
    slots += [FEATURES.user_columns + slot.start for slot in FEATURES.item_slots]
    for start in range(0, len(drawn.keys_NF), _AT_ONCE):
        keys_NF = drawn.keys_NF[start : start + _AT_ONCE]
        wide = np.zeros((len(keys_NF), FEATURES.user_columns + FEATURES.item_columns), np.int64)
        wide[:, slots] = keys_NF
        appends = []
        for n, row in enumerate(wide, start):
            partition = n % _PARTITIONS
            example = _example(drawn, n, partition, places[partition], row)
            places[partition] += 1
            appends.append(Append(partition, str(example.user_id).encode(), pack(example)))
        log.append(EXAMPLES, appends)


def _example(drawn: DrawnExamples, n: int, partition: int, offset: int, row: NDArray[np.int64]) -> Example:
    return Example(
        partition=partition,
        offset=offset,
        index=0,
        sequence=offset + 1,
        request_id=f"r{n}",
        user_id=int(drawn.keys_NF[n, 0]),
        item_id=int(drawn.keys_NF[n, len(FEATURES.user_slots)]),
        surface="feed",
        shown_ms=START_MS + n,
        closed_ms=START_MS + n,
        labels=drawn.labels_NK[n].tolist(),
        watch_ms=int(drawn.watch_ms_N[n]),
        features=FeatureBlock(
            feature_set=FEATURES.digest,
            user_keys=row[: FEATURES.user_columns].tobytes(),
            item_keys=row[FEATURES.user_columns :].tobytes(),
        ),
    )


def one_hot(examples: list[TrainingExample]) -> DrawnExamples:
    """Arrays of decoded examples: a key for each field, without empty columns."""
    blocks = [example.features for example in examples]
    user = np.frombuffer(b"".join([b.user_keys for b in blocks if b]), np.int64)
    item = np.frombuffer(b"".join([b.item_keys for b in blocks if b]), np.int64)
    first = [slot.start for slot in FEATURES.user_slots]
    others = [slot.start for slot in FEATURES.item_slots]
    parts = (
        user.reshape(-1, FEATURES.user_columns)[:, first],
        item.reshape(-1, FEATURES.item_columns)[:, others],
    )
    return DrawnExamples(
        np.concatenate(parts, 1),
        np.array([example.labels for example in examples], np.float32),
        np.array([example.watch_ms for example in examples], np.int64),
    )
