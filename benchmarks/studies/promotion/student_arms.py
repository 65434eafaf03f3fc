"""What the study of students compares: models trained as an offline job does, and judged on what came later.

Nothing is on disk: blocks and checkpoints are in memory, all else is the job's own. The teacher is a line of
the system's model that learns along: it says what it thinks of each example before, as what is live would.

Legend: N judged examples, L outputs (labels, then watch time).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.rounding import round_dense, round_rows
from recsys.config.system_config import ModelConfig, tables_of
from recsys.features.feature_set import FeatureSet, RequestFeatures
from recsys.model.model import Model, build_model
from serving.ranking.scoring import probabilities
from serving.replica.int8_rows import Int8Rows
from serving.replica.row_store import RowStore
from training.continual.learner import Learner
from training.offline.examples import Examples
from training.offline.loop import OfflineLoop, Plan
from training.offline.setup import build_trainer, count_vocabularies
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
    """The newest of each kind: nobody is killed here."""

    saved: dict[str, tuple[dict[str, NDArray[Any]], bytes]] = field(default_factory=dict)

    def save(self, kind: str, step: int, arrays: Arrays, state: bytes) -> None:
        self.saved[kind] = dict(arrays), state

    def newest(self, kind: str) -> tuple[dict[str, NDArray[Any]], bytes] | None:
        return self.saved.get(kind)


@dataclass(frozen=True)
class ArmScores:
    """What an arm said of the judged examples' first label (N,): as it stood when they began, the same with
    its rows as int8, and while it learned on from their labels."""

    frozen: Floats
    int8: Floats
    learning: Floats


@dataclass(frozen=True)
class Cost:
    """``row_bytes``: of a feature's row with its place in the map; ``bytes``: of all rows and dense
    parameters; ``rank_us``: of the processor, to rank 300 items of one request, the median."""

    row_bytes: float
    bytes: int
    rank_us: float


class Arms:
    """Trains on what came before the judged examples; all arms have rows for the same keys."""

    def __init__(
        self,
        features: FeatureSet,
        system: ModelConfig,
        every: Examples,
        first: int,
        plan: Plan,
        lanes: int,
    ) -> None:
        """``every``: examples in event time, those from number ``first`` on are judged. ``plan.last``
        is decided here: the last fifth of what is trained on says when to stop."""
        self._features, self._lanes = features, lanes
        self._before, self._judged = (
            blocks_of(every.take(slice(first))),
            every.take(slice(first, None)),
        )
        self._plan = replace_last(plan, len(self._before))
        blocks = blocks_of(every)
        learner = Learner(build_model(features, system))
        self._vocabularies = count_vocabularies(blocks, learner, tables_of(system))
        said = online_teacher(blocks, features, system, lanes, plan.step_examples)
        self.teacher_NL: Floats = np.concatenate(list(said))  # of all examples, in order

    def train(self, model: ModelConfig, share: float | None = None) -> Arrays:
        """A model as an offline job leaves it. ``share``: the teacher's in what it learns; None: it has no
        teacher."""
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
        """What a trained model says of what came later."""
        trainer = self._trainer(model)
        trainer.load(arrays)
        frozen = self._said(trainer, learns=False)
        trainer.load(as_int8(arrays))
        int8 = self._said(trainer, learns=False)
        trainer.load(arrays)
        return ArmScores(frozen, int8, self._said(trainer, learns=True))

    def cost(self, model: ModelConfig, arrays: Arrays, kind: type[RowStore], repeats: int) -> Cost:
        """Of serving a trained model from stores of a kind: ``RowStore``, or ``Int8Rows``."""
        arrays = as_int8(arrays) if kind is Int8Rows else arrays
        stores = {
            table.name: kind.filled(
                table, model.seed, arrays[f"table/{table.name}/keys"], arrays[f"table/{table.name}/values"]
            )
            for table in tables_of(model)
        }  # fmt: skip
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
        return build_trainer(self._features, model, self._lanes, vocabularies, OwnTable, share=share)

    def _said(self, trainer: OfflineTrainer, learns: bool) -> Floats:
        size = self._plan.step_examples if learns else BLOCK
        parts = []
        for start in range(0, len(self._judged), size):
            some = self._judged.take(slice(start, start + size))
            parts.append(trainer.predict(some)[:, 0])
            if learns:
                trainer.learn(some)
        return np.concatenate(parts)


def replace_last(plan: Plan, blocks: int) -> Plan:
    """The plan, with the last fifth of so many blocks held out. Raises ValueError where none is left."""
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
    """What replicas have of a model whose rows are published as int8."""
    out = dict(arrays)
    for name, array in arrays.items():
        if name.endswith("/values") and name.startswith("table/"):
            out[name] = round_rows(array, "int8").rows
    out["dense/averaged"] = round_dense(arrays["dense/averaged"], "int8")[1]
    return out


def requests_of(features: FeatureSet, examples: Examples, count: int) -> list[RequestFeatures]:
    """Requests of 300 items: each an example's user and history, with items of the examples from there on,
    round to the first."""
    user = examples.user_keys.view(np.int64)
    items = np.ascontiguousarray(examples.item_keys).view(np.int64)
    history = examples.history.view(np.int64).reshape(len(user), -1, features.history_keys)
    outcomes = examples.outcomes.view(np.float32).reshape(len(user), -1, features.outcomes)
    dense = examples.dense.view(np.float32)
    found = []
    for n in range(count):
        at = n * len(user) // count
        its = (at + np.arange(CANDIDATES)) % len(user)
        found.append(
            RequestFeatures(features.digest, user[at], items[its], history[at], outcomes[at], dense[its])
        )  # fmt: skip
    return found


def rank_us(
    model: Model, stores: Mapping[str, RowStore], requests: Sequence[RequestFeatures]
) -> float:
    """Microseconds of this thread to look up and rank a request, the median of all but the first few."""
    taken = []
    for request in requests:
        began = time.thread_time_ns()
        probabilities(model, stores, [request])
        taken.append((time.thread_time_ns() - began) / 1_000)
    return float(np.median(taken[3:] or taken))
