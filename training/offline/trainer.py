"""Learns steps of examples offline, with the learner, loss and optimizers of a line, and tables of its own.

A step is cut into the same lanes whatever the number of workers, and a worker computes its own. It asks the
others for their rows and sends each the gradients of these, by lane; each adds the lanes of its own rows in
lane order. Dense parameters are the same in all. So the number of workers changes no bit.

Legend: B examples, L outputs (labels, then watch time), R rows of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.shard.lanes import LaneGradients, add_lanes
from parameter_server.table.dense import DENSE_COLUMNS, Dense
from parameter_server.table.routing import shard_of
from training.continual.learner import Lane, Learner
from training.continual.open_labels import single_pass_targets
from training.offline.distill import Distiller, with_teacher
from training.offline.examples import Examples
from training.offline.sharding import Sharding
from training.offline.tables import COLUMNS, RowTable
from training.offline.vocabulary import Vocabulary

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class LaneResult:
    """Gradients (none after a mere prediction) and predictions of a lane."""

    gradients: LaneGradients
    probabilities_BL: Floats


@dataclass(frozen=True)
class StepResult:
    """Predictions of a step from before it was learned, and its prequential sums."""

    probabilities_BL: Floats
    metrics: Mapping[str, float]


@dataclass
class RejectedGradients:
    """Numbers of gradients that weren't finite or exceeded the bound; rows: of one worker's, or of all."""

    rows: int = 0
    dense: int = 0


class OfflineTrainer:
    """One worker, with its part of the rows and all dense parameters."""

    def __init__(
        self, learner: Learner, tables: Mapping[str, RowTable],
        vocabularies: Mapping[str, Vocabulary], dense: Dense, sharding: Sharding,
    ) -> None:  # fmt: skip
        """``tables``: in the order of a line, with the worker's rows, those of their vocabularies."""
        torch.set_num_threads(1)  # the order of a sum must not depend on the number of cores
        self._learner, self._tables, self._vocabularies = learner, tables, vocabularies
        self._dense, self.sharding = dense, sharding
        no_keys = np.empty(0, np.int64)
        self._dims = {name: table.lookup(no_keys).shape[1] for name, table in tables.items()}
        self.refused = RejectedGradients()

    def learn(self, examples: Examples) -> StepResult:
        """Predicts a step's examples, then learns from them."""
        own = self._cut(examples)
        rows = self._rows(list(own.values()))
        learned = map(self._learned, own.keys(), own.values(), rows)
        results = self._spread(list(learned))
        lanes = [result.gradients for result in results]
        total = add_lanes(0, int(examples.time_ms.max()), lanes, self._dims)
        for name, gradients in total.tables.items():
            self.refused.rows += self._tables[name].learn(gradients)
        if total.dense is not None:
            self.refused.dense += not self._dense.apply(total.dense)
        return StepResult(np.concatenate([r.probabilities_BL for r in results]), total.metrics)

    def predict(self, examples: Examples) -> Floats:
        """Probabilities (B, L) as replicas give them: with the averaged dense parameters."""
        own, results = self._cut(examples), []
        for (number, lane), rows in zip(own.items(), self._rows(list(own.values())), strict=True):
            probabilities = self._learner.predict(lane, rows, self._dense.averaged)
            results.append(LaneResult(LaneGradients(number), probabilities))
        return np.concatenate([r.probabilities_BL for r in self._spread(results)])

    def export(self, part: int | None = None) -> Arrays:
        """Parameters and optimizer state of one part (None: of all own ones), named as in a shard's export:
        rows by key, ascending."""
        arrays: Arrays = {}
        for name, table in self._tables.items():
            keys, used_ms = self._vocabularies[name].keys, self._vocabularies[name].used_ms
            if part is not None:
                is_in_part = shard_of(keys, self.sharding.parts) == part
                keys, used_ms = keys[is_in_part], used_ms[is_in_part]
            columns = {"keys": keys, "used_ms": used_ms} | table.export(keys)
            arrays |= {f"table/{name}/{column}": array for column, array in columns.items()}
        if part:  # the dense parameters are in part 0, as of shards
            return arrays
        return arrays | {f"dense/{column}": array for column, array in self._dense.export().items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restores an export, or what is in it of one. Rows must be of the vocabulary."""
        for name, table in self._tables.items():
            keys = arrays.get(f"table/{name}/keys")
            if keys is None:
                continue
            if (self._vocabularies[name].find(keys) < 0).any():
                raise ValueError(f"table {name}: the rows are of another vocabulary; begin anew")
            table.load(keys, {c: arrays[f"table/{name}/{c}"] for c in COLUMNS})
        if "dense/values" in arrays:
            self._dense.load({column: arrays[f"dense/{column}"] for column in DENSE_COLUMNS})

    def all_refused(self) -> RejectedGradients:
        """Rejected gradients of all workers, which call it together."""
        return replace(self.refused, rows=sum(self.sharding.gather(self.refused.rows)))

    def _cut(self, examples: Examples) -> dict[int, Lane]:
        """The own lanes of a step that have examples, by number."""
        size, lanes = len(examples), self.sharding.parts
        cut = {}
        for lane in self.sharding.own:
            start, stop = size * lane // lanes, size * (lane + 1) // lanes
            if start < stop:
                cut[lane] = lane_of(self._learner, examples.take(slice(start, stop)))
        return cut

    def _rows(self, lanes: Sequence[Lane]) -> list[dict[str, Floats]]:
        """Rows of own lanes by table, each from the worker that has it."""
        sharding, tables = self.sharding, self._tables
        keys = {(n, t): k for n, lane in enumerate(lanes) for t, k in lane.lookup.keys.items()}
        splits = {at: sharding.split(own) for at, own in keys.items()}
        workers = range(sharding.workers)
        asks = [{at: keys[at][s.of(worker)] for at, s in splits.items()} for worker in workers]
        by_lane = dict[tuple[int, str], np.ndarray]
        asked = sharding.exchange(asks, by_lane)
        own_rows = [{at: tables[at[1]].lookup(k) for at, k in part.items()} for part in asked]
        answers = sharding.exchange(own_rows, by_lane)
        rows: list[dict[str, Floats]] = [{} for _ in lanes]
        for (n, table), split in splits.items():
            parts = [answer[n, table] for answer in answers]
            rows[n][table] = split.merge(parts, self._dims[table])
        return rows

    def _spread(self, own: Sequence[LaneResult]) -> list[LaneResult]:
        """Results of all lanes in lane order, with the gradients of this worker's rows."""
        sent: list[list[LaneResult]] = [[] for _ in range(self.sharding.workers)]
        for result in own:
            tables = result.gradients.tables
            splits = {name: self.sharding.split(rows.keys) for name, rows in tables.items()}
            for worker, results in enumerate(sent):
                part = {name: rows.take(splits[name].of(worker)) for name, rows in tables.items()}
                gradients = replace(result.gradients, tables=part)
                results.append(replace(result, gradients=gradients))
        received = self.sharding.exchange(sent, list[LaneResult])
        return sorted(chain.from_iterable(received), key=lambda result: result.gradients.lane)

    def _learned(self, number: int, lane: Lane, rows: Mapping[str, Floats]) -> LaneResult:
        learned = self._learner.learn(lane, rows, self._dense.values)
        gradients = LaneGradients(number, learned.gradients, learned.dense, learned.metrics)
        return LaneResult(gradients, learned.probabilities_BL)


def lane_of(learner: Learner, examples: Examples) -> Lane:
    """A lane of examples with their final labels, and for a distiller their teacher's probabilities."""
    targets = single_pass_targets(examples.labels, examples.sampling_rate, examples.arrived)
    batch = examples.batch(learner.features)
    lane = learner.lane_of(batch, examples.labels, examples.watch_ms, targets)
    return with_teacher(lane, examples.taught) if isinstance(learner, Distiller) else lane
