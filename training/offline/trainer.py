"""Learns steps of examples offline, with the learner, loss and optimizers of a line, and tables of its own.

A step is cut into the same lanes whatever the number of workers; ``exchange`` gives every worker all lanes,
which it adds in lane order and applies to its own copy of all tables. So the number of workers changes no
bit.

Legend: B examples, L outputs (labels, then watch time), R rows of a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.shard.lanes import LaneGradients, add_lanes
from parameter_server.table.dense import DENSE_COLUMNS, Dense
from training.continual.learner import Lane, Learner
from training.continual.open_labels import single_pass_targets
from training.offline.distill import Distiller, with_teacher
from training.offline.examples import Examples
from training.offline.tables import COLUMNS, RowTable
from training.offline.vocabulary import Vocabulary

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class LaneResult:
    """Gradients (none after a mere prediction) and predictions of a lane."""

    gradients: LaneGradients
    probabilities_BL: Floats


# Own lanes in, all lanes out, in lane order.
Exchange = Callable[[Sequence[LaneResult]], Sequence[LaneResult]]


def no_exchange(own: Sequence[LaneResult]) -> Sequence[LaneResult]:
    """The exchange of a worker that computes all lanes."""
    return own


@dataclass(frozen=True)
class StepResult:
    """Predictions of a step from before it was learned, and its prequential sums."""

    probabilities_BL: Floats
    metrics: Mapping[str, float]


@dataclass
class RejectedGradients:
    """Numbers of gradients that weren't finite or exceeded the bound."""

    rows: int = 0
    dense: int = 0


class OfflineTrainer:
    """Worker ``rank`` of ``workers``, with a copy of all parameters."""

    def __init__(
        self,
        learner: Learner,
        tables: Mapping[str, RowTable],
        vocabularies: Mapping[str, Vocabulary],
        dense: Dense,
        lanes: int,
        rank: int = 0,
        workers: int = 1,
        exchange: Exchange = no_exchange,
    ) -> None:
        """``tables``: in the order of a line, with the rows of their vocabularies."""
        torch.set_num_threads(1)  # the order of a sum must not depend on the number of cores
        self._learner, self._tables, self._vocabularies = learner, tables, vocabularies
        self._dense, self._exchange = dense, exchange
        self._lanes, self._own = lanes, range(rank, lanes, workers)
        no_keys = np.empty(0, np.int64)
        self._dims = {name: table.lookup(no_keys).shape[1] for name, table in tables.items()}
        self.refused = RejectedGradients()

    def learn(self, examples: Examples) -> StepResult:
        """Predicts a step's examples, then learns from them."""
        own = [self._learned(number, lane) for number, lane in self._cut(examples)]
        results = self._exchange(own)
        lanes = [result.gradients for result in results]
        total = add_lanes(0, int(examples.time_ms.max()), lanes, self._dims)
        for name, rows in total.tables.items():
            self.refused.rows += self._tables[name].learn(rows)
        if total.dense is not None:
            self.refused.dense += not self._dense.apply(total.dense)
        return StepResult(np.concatenate([r.probabilities_BL for r in results]), total.metrics)

    def predict(self, examples: Examples) -> Floats:
        """Probabilities (B, L) as replicas give them: with the averaged dense parameters."""
        own = []
        for number, lane in self._cut(examples):
            probabilities = self._learner.predict(lane, self._rows(lane), self._dense.averaged)
            own.append(LaneResult(LaneGradients(number), probabilities))
        return np.concatenate([r.probabilities_BL for r in self._exchange(own)])

    def export(self) -> Arrays:
        """All parameters and optimizer state, named as in a shard's export: rows by key, ascending."""
        arrays: Arrays = {}
        for name, table in self._tables.items():
            vocabulary = self._vocabularies[name]
            columns = {"keys": vocabulary.keys, "used_ms": vocabulary.used_ms} | table.export()
            arrays |= {f"table/{name}/{column}": array for column, array in columns.items()}
        return arrays | {f"dense/{column}": array for column, array in self._dense.export().items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restores an export. Rows may be in any order, but must be those of the vocabulary."""
        for name, table in self._tables.items():
            keys = arrays[f"table/{name}/keys"]
            order = np.argsort(keys)
            if not np.array_equal(keys[order], self._vocabularies[name].keys):
                raise ValueError(f"table {name}: the rows are of another vocabulary; begin anew")
            table.load({c: arrays[f"table/{name}/{c}"][order] for c in COLUMNS})
        self._dense.load({column: arrays[f"dense/{column}"] for column in DENSE_COLUMNS})

    def _cut(self, examples: Examples) -> list[tuple[int, Lane]]:
        """The own lanes of a step that have examples."""
        size = len(examples)
        lanes = []
        for lane in self._own:
            start, stop = size * lane // self._lanes, size * (lane + 1) // self._lanes
            if start < stop:
                lanes.append((lane, lane_of(self._learner, examples.take(slice(start, stop)))))
        return lanes

    def _rows(self, lane: Lane) -> dict[str, Floats]:
        return {name: self._tables[name].lookup(keys) for name, keys in lane.lookup.keys.items()}

    def _learned(self, number: int, lane: Lane) -> LaneResult:
        learned = self._learner.learn(lane, self._rows(lane), self._dense.values)
        gradients = LaneGradients(number, learned.gradients, learned.dense, learned.metrics)
        return LaneResult(gradients, learned.probabilities_BL)


def lane_of(learner: Learner, examples: Examples) -> Lane:
    """A lane of examples with their final labels, and for a distiller their teacher's probabilities."""
    targets = single_pass_targets(examples.labels, examples.kept, examples.arrived)
    batch = examples.batch(learner.features)
    lane = learner.lane_of(batch, examples.labels, examples.watch_ms, targets)
    return with_teacher(lane, examples.taught) if isinstance(learner, Distiller) else lane
