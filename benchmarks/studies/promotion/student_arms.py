"""Arms of the student study: models trained as by an offline job, and judged on later examples.

Nothing is on disk: blocks and checkpoints are in memory, the rest is the job's own code. The teacher is a
line of the system's model that learns along: it predicts each example before it learns it, as a live line
would.

Legend: N judged examples, L outputs (labels, then watch time).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.rounding import round_dense, round_rows
from recsys.config.system_config import ModelConfig, tables_of
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from recsys.model.model import Model, build_model
from serving.replica.row_store import RowStore
from serving.scorers.probabilities import probabilities
from training.continual.learner import Learner
from training.offline.examples import Examples
from training.offline.initial_state import build_trainer, count_vocabularies
from training.offline.loop import OfflineLoop, Plan
from training.offline.sharding import Sharding
from training.offline.tables import OwnTable
from training.offline.teacher_labels import online_teacher
from training.offline.trainer import OfflineTrainer
from training.offline.vocabulary import Vocabulary

BLOCK: Final = 1_024  # examples
CANDIDATES: Final = 300
Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MemoryBlocks:
    """Blocks of examples in event time."""

    blocks: Sequence[Examples]

    def __len__(self) -> int:
        return len(self.blocks)

    def read(self, number: int) -> Examples:
        return self.blocks[number]


def blocks_of(examples: Examples) -> MemoryBlocks:
    starts = range(0, len(examples), BLOCK)
    return MemoryBlocks([examples.take(slice(start, start + BLOCK)) for start in starts])


@dataclass
class _Checkpoints:
    """Newest checkpoint of each kind, in memory."""

    saved: dict[str, tuple[Iterable[Any], bytes]] = field(default_factory=dict)

    def save(self, kind: str, number: int, parts: Iterable[tuple[int, Any]], state: bytes) -> None:
        self.saved[kind] = [arrays for _, arrays in parts], state

    def newest(self, kind: str) -> tuple[Iterable[Any], bytes] | None:
        return self.saved.get(kind)


@dataclass(frozen=True)
class ArmScores:
    """An arm's predictions (N,) of the judged examples' first label: frozen at their begin, the same with
    int8 rows, and while learning on from their labels."""

    frozen: Floats
    int8: Floats
    learning: Floats


@dataclass(frozen=True)
class Cost:
    """``row_bytes``: of a feature's row with its place in the map; ``bytes``: of all rows and dense
    parameters; ``rank_us``: median processor time to rank 300 items of one request."""

    row_bytes: float
    bytes: int
    rank_us: float


class Arms:
    """Trains on examples before the judged ones; all arms have rows for the same keys."""

    def __init__(
        self, features: FeatureSet, system: ModelConfig, every: Examples, first: int, plan: Plan, lanes: int
    ) -> None:
        """``every``: examples in event time, judged from number ``first`` on. ``plan.last`` is set here: the
        last fifth of the training examples decides when to stop."""
        self._features, self._sharding = features, Sharding(lanes)
        self._before, self._judged = (blocks_of(every.take(slice(first))), every.take(slice(first, None)))
        self._plan = replace_last(plan, len(self._before))
        blocks = blocks_of(every)
        learner = Learner(build_model(features, system))
        self._vocabularies = count_vocabularies(blocks, learner, tables_of(system))
        teacher_parts = online_teacher(blocks, features, system, self._sharding, plan.step_examples)
        self.teacher_NL: Floats = np.concatenate(list(teacher_parts))  # of all examples, in order

    def train(self, model: ModelConfig, share: float | None = None) -> Arrays:
        """A model after an offline job. ``share``: weight of the teacher's labels; None: no teacher."""
        blocks = self._before
        if share:
            said_NL, starts = self.teacher_NL, range(0, BLOCK * len(blocks), BLOCK)
            taught = [
                replace(block, taught=said_NL[start : start + len(block)])
                for start, block in zip(starts, blocks.blocks, strict=True)
            ]
            blocks = MemoryBlocks(taught)
        trainer = self._trainer(model, share)
        OfflineLoop(blocks, trainer, _Checkpoints(), self._plan).run()
        return trainer.export()

    def judge(self, model: ModelConfig, arrays: Arrays) -> ArmScores:
        """Predictions of a trained model for later examples."""
        frozen, int8 = self.frozen(model, arrays), self.frozen(model, as_int8(arrays))
        trainer = self._trainer(model)
        trainer.load(arrays)
        return ArmScores(frozen, int8, self._predictions(trainer, learns=True))

    def frozen(self, model: ModelConfig, arrays: Arrays) -> Floats:
        """Predictions (N,) of a trained model that learns no more."""
        trainer = self._trainer(model)
        trainer.load(arrays)
        return self._predictions(trainer, learns=False)

    def cost(self, model: ModelConfig, arrays: Arrays, repeats: int) -> Cost:
        """Cost of serving a trained model."""
        stores = {
            table.name: RowStore.filled(
                table, model.seed, arrays[f"table/{table.name}/keys"], arrays[f"table/{table.name}/values"]
            )
            for table in tables_of(model)
        }
        network = build_model(self._features, model)
        network.write_dense(arrays["dense/averaged"])
        rows, dense = stores["features"], 4 * network.dense_size()
        return Cost(
            rows.nbytes / max(1, len(rows)),
            sum(store.nbytes for store in stores.values()) + dense,
            rank_us(network, stores, requests_of(self._features, self._judged, repeats)),
        )

    def _trainer(self, model: ModelConfig, share: float | None = None) -> OfflineTrainer:
        vocabularies: Mapping[str, Vocabulary] = self._vocabularies
        return build_trainer(self._features, model, self._sharding, vocabularies, OwnTable, share=share)

    def _predictions(self, trainer: OfflineTrainer, learns: bool) -> Floats:
        size = self._plan.step_examples if learns else BLOCK
        parts = []
        for start in range(0, len(self._judged), size):
            some = self._judged.take(slice(start, start + size))
            parts.append(trainer.predict(some)[:, 0])
            if learns:
                trainer.learn(some)
        return np.concatenate(parts)


def replace_last(plan: Plan, blocks: int) -> Plan:
    """The plan with the last fifth of the blocks held out. Raises ValueError when none is left."""
    if blocks < 2:
        raise ValueError(
            f"there are {blocks} blocks of {BLOCK} examples to train on, expected 2 or more: give a longer "
            "log"
        )
    return Plan(
        last=blocks - max(1, blocks // 5), epochs=plan.epochs, step_examples=plan.step_examples,
        checkpoint_every=1_000_000, seed=plan.seed,
    )  # fmt: skip


def as_int8(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Arrays of a model as replicas get them when rows are published as int8."""
    out = dict(arrays)
    for name, array in arrays.items():
        if name.endswith("/values") and name.startswith("table/"):
            out[name] = round_rows(array, "int8").rows
    out["dense/averaged"] = round_dense(arrays["dense/averaged"], "int8")[1]
    return out


def requests_of(features: FeatureSet, examples: Examples, count: int) -> list[RequestFeatures]:
    """Requests of 300 items: each an example's user and history, with items of the following examples,
    cyclically."""
    user = examples.user_keys.view(np.int64)
    items = np.ascontiguousarray(examples.item_keys).view(np.int64)
    history = examples.history.view(np.int64).reshape(len(user), -1, features.history_keys)
    outcomes = examples.outcomes.view(np.float32).reshape(len(user), -1, features.outcomes)
    dense = examples.dense.view(np.float32)
    requests = []
    for n in range(count):
        at = n * len(user) // count
        places = (at + np.arange(CANDIDATES)) % len(user)
        requests.append(
            RequestFeatures(
                features.digest, user[at], items[places], history[at], outcomes[at], dense[places]
            )
        )
    return requests


def rank_us(model: Model, stores: Mapping[str, RowStore], requests: Sequence[RequestFeatures]) -> float:
    """Median processor microseconds to look up and rank a request, without the first few."""
    taken = []
    for request in requests:
        began = time.thread_time_ns()
        probabilities(model, stores, [request])
        taken.append((time.thread_time_ns() - began) / 1_000)
    return float(np.median(taken[3:] or taken))
