"""What the simulator learns: a counting table.

An example adds 1 to a row of its own, and 1 to a row for each label that became true. One use of a row with
rate 1 and gradient -1 makes it exactly 1, a second one 1.7, so a row says how often it was learned. Beside
it, rows that expire, and rows that depend on each other and on the order of sums.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from parameter_server.shard.lanes import RowGradients
from recsys.events.hashing import key_of, uniforms
from recsys.events.records import Example
from tests.support.training.small_feed import DENSE as DENSE_WIDTH
from tests.support.training.small_feed import FEATURES
from training.continual.row_usage import examples_per_row


def counted(example: Example) -> list[int]:
    """The rows that an example adds 1 to: its own, and those of labels that have become true."""
    its = f"{example.request_id}/{example.index}"
    before = example.previous if example.correction else [0.0] * len(example.labels)
    new = [n for n, label in enumerate(example.labels) if label > before[n]]
    own = [] if example.correction else [key_of("example", its)]
    return own + [key_of("label", f"{its}/{n}") for n in new]


class CountingLearner:
    """In the place of the learner: its gradients count, and depend on rows and order where they can."""

    features, reads = FEATURES, Example
    model = SimpleNamespace(ranker=SimpleNamespace(shape=SimpleNamespace(dense=DENSE_WIDTH)))

    def prepare(self, examples: Sequence[Example]) -> SimpleNamespace:
        places = {
            "features": [key for e in examples for key in counted(e)],
            "items": [key_of("item", e.item_id) for e in examples],
            "users": [key_of("user", e.user_id) for e in examples],
        }
        index, keys = {}, {}
        for table, its in places.items():
            keys[table], index[table] = np.unique(np.array(its, np.int64), return_inverse=True)
        lookup = SimpleNamespace(
            keys=keys,
            slot_index=torch.from_numpy(index["features"]),
            item_index=torch.from_numpy(index["items"]),
            user_index=torch.from_numpy(index["users"]),
        )
        return SimpleNamespace(batch=examples, lookup=lookup, index=index)

    def learn(self, lane: SimpleNamespace, rows: Mapping[str, np.ndarray], dense: np.ndarray) -> Any:
        gradients, counts = {}, examples_per_row(lane.lookup)
        for table, keys in lane.lookup.keys.items():
            seen = np.bincount(lane.index[table], minlength=len(keys)).astype(np.float32)
            wanted = -np.repeat(seen[:, None], rows[table].shape[1], axis=1)
            if table == "items":  # sums of these differ with their order, and with what the rows are
                noise = uniforms(len(lane.batch), keys, 3).astype(np.float32) * np.float32(3)
                wanted = wanted * noise + rows[table] * np.float32(0.3) + dense[0]
            gradients[table] = RowGradients(keys, wanted.astype(np.float32), counts[table])
        mean = rows["items"].mean() if len(rows["items"]) else 0
        metrics = {"examples": float(len(lane.batch))}
        return SimpleNamespace(
            gradients=gradients, dense=(dense * np.float32(0.7) + mean).astype(np.float32), metrics=metrics
        )

    def learn_lanes(
        self, lanes: Sequence[SimpleNamespace], rows: Sequence[Mapping[str, np.ndarray]], dense: np.ndarray
    ) -> list[Any]:
        return [self.learn(lane, own, dense) for lane, own in zip(lanes, rows, strict=True)]
