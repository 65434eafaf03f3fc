"""A line with its shard and learner in this process: for nightly training, candidates and studies.

It uses no log and no clock. Its shard contains what it learned, so its export is that of a snapshot, and any
shard of the same tables can continue from it. Lines of one shape may share a learner, which has no state.

Legend: N items that are scored, B examples of a lane, L outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.publish.rounding import round_dense, round_rows
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import Shard, ShardSpec
from recsys.arrays.id_map import Arrays
from recsys.model.list_ranker import Lists, list_logits
from recsys.model.model import with_missing_row
from training.continual.learner import Lane, Learner

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]
Export = tuple[Arrays, dict[str, Any]]


class LocalLine:
    """Scores with the weights of replicas (rounded, running average), and learns like a worker."""

    def __init__(self, learner: Learner, spec: ShardSpec, dense: Floats) -> None:
        """Creates an untrained line in one shard. ``dense`` (P,): initial dense parameters."""
        if spec.parts != 1:
            raise ValueError(f"parts is {spec.parts}, expected 1: a local line has one shard")
        self.learner, self.spec = learner, spec
        self.shard = Shard(spec, dense)

    @classmethod
    def loaded(cls, learner: Learner, spec: ShardSpec, *parts: Export) -> "LocalLine":
        """Loads a line from an export of its tables, or from the exports of all its shards."""
        line = cls(learner, spec, parts[0][0]["dense/values"])
        line.shard.load([arrays for arrays, _ in parts], parts[0][1])
        return line

    @property
    def step(self) -> int:
        return self.shard.applied

    def score(self, lists: Lists) -> Floats:
        """Probabilities (N, L) of all items of some requests."""
        rows = self._served(lists.keys)
        with torch.inference_mode():
            logits = list_logits(self.learner.model, lists, with_missing_row(rows).numpy())
        with np.errstate(over="ignore"):
            out: Floats = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits))
        return out

    def predict(self, lane: Lane) -> Floats:
        """Probabilities (B, L) of a lane's examples, equal to those of ``score`` but for the last bits."""
        rows, model = self._served(lane.lookup.keys["features"]), self.learner.model
        with torch.inference_mode():
            logits = model.rank(lane.batch, lane.lookup, with_missing_row(rows))
        out: Floats = torch.sigmoid(logits).numpy()
        return out

    def _served(self, keys: Keys) -> Floats:
        """Sets the model's dense parameters to those of replicas; returns the rows of replicas."""
        assert self.shard.dense is not None
        form = self.spec.delta_format
        self.learner.model.write_dense(round_dense(self.shard.dense.averaged, form)[1])
        rows = self.shard.lookup(self.step, {"features": keys})["features"]
        return round_rows(rows, form).rows

    def learn(
        self, time_ms: int, lanes: Sequence[Lane], forget: Mapping[str, Keys] | None = None
    ) -> list[Floats]:
        """Learns one step; returns the prior probabilities (B, L) of each lane. ``forget``: row keys to
        remove."""
        step, dense = self.step + 1, self.shard.dense_after(self.step)
        assert dense is not None
        gradients, before = [], []
        for number, lane in enumerate(lanes):
            rows = self.shard.lookup(self.step, lane.lookup.keys)
            learned = self.learner.learn(lane, rows, dense)
            removed = forget or {} if number == 0 else {}
            gradients.append(
                LaneGradients(number, learned.gradients, learned.dense, learned.metrics, removed)
            )
            before.append(learned.probabilities_BL)
        gradients += [LaneGradients(n) for n in range(len(lanes), self.spec.lanes)]
        self.shard.learn(step, time_ms, gradients)
        return before

    def export(self) -> Export:
        """The state, as of ``Shard.export``."""
        return self.shard.export()
