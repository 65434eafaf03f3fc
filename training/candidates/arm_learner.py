"""Learner of an arm's line: learns from all users' examples, each weighted for the arm.

Weights are computed from what came before a lane. Each example is learned a whole number of times, drawn by a
hash of its id.
"""

# B examples of a lane, F features that tell arms apart, L outputs

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.arm_line import ALL, arm_line_name
from experiments.statistics.arm_weights import ArmWeights, arm_features
from recsys.events.control_records import ArmLine
from recsys.events.hashed_random import draws
from recsys.events.hashing import key_of
from recsys.events.records import TrainingExample
from recsys.model.model import Model
from training.continual.learner import Floats, Lane, Learned, Learner
from training.continual.row_usage import rows_in_examples
from training.steps.step_reader import ServedExample

Keys = NDArray[np.int64]
PREFIX: Final = "arm/"  # of its arrays in a snapshot
_SEEDS: Final = 2**31 - 1


@dataclass(frozen=True)
class ArmLane(Lane):
    """A lane with the features that tell arms apart."""

    features_BF: Keys
    own_B: NDArray[np.bool_]
    draws_B: NDArray[np.float64]  # in [0, 1)


class ArmLearner(Learner):
    """Learns for one arm. ``weights``: its state between steps; see ``export``."""

    reads = ServedExample

    def __init__(self, model: Model, arm: ArmLine) -> None:
        super().__init__(model)
        self._arm, self.weights = arm, ArmWeights()
        self._seed = key_of("line", arm_line_name(arm.experiment, arm.arm)) & _SEEDS

    def prepare(self, examples: Sequence[TrainingExample]) -> Lane:
        """As ``Learner.prepare``; ``examples`` are ``ServedExample``s."""
        lane = super().prepare(examples)
        fields = {name: getattr(lane, name) for name in Lane.__dataclass_fields__}
        ids_B = np.array([e.partition << 48 ^ e.offset << 8 ^ e.index for e in examples], np.int64)
        return ArmLane(
            **fields,
            features_BF=self._features(examples),
            own_B=np.array([self._is_own(e) for e in examples], np.bool_),
            draws_B=draws(self._seed, ids_B),
        )

    def learn(self, lane: Lane, rows: Mapping[str, Floats], dense: Floats) -> Learned:
        assert isinstance(lane, ArmLane), "prepared here"
        weights_B, targets = self.example_weights(lane), lane.label_targets
        weights_BL, liked_B = targets.weights_BL * weights_B[:, None], targets.liked_B * weights_B
        weighted = replace(targets, weights_BL=weights_BL, liked_B=liked_B)
        learned = super().learn(replace(lane, label_targets=weighted), rows, dense)
        if not weights_B.all():
            learned = without_rows(learned, lane, weights_B > 0)
        if self._arm.trains != ALL:
            first_B = targets.fresh_B  # each was shown once
            self.weights.learn(lane.features_BF[first_B], lane.own_B[first_B])
        return learned

    def example_weights(self, lane: ArmLane) -> Floats:
        """Weight of each example (B,)."""
        columns = lane.features_BF, lane.own_B, lane.draws_B
        return self.weights.repeats(self._arm.trains, *columns).astype(np.float32)

    def export(self) -> dict[str, NDArray[Any]]:
        return {f"{PREFIX}{name}": array for name, array in self.weights.export().items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restores a snapshot of an arm's line; another snapshot starts a new line."""
        weights = {k.removeprefix(PREFIX): v for k, v in arrays.items() if k.startswith(PREFIX)}
        if weights:
            self.weights.load(weights)

    def _is_own(self, example: TrainingExample) -> bool:
        stamp = example.stamp if isinstance(example, ServedExample) else None
        return stamp is not None and stamp.arms.get(self._arm.experiment) == self._arm.arm

    def _features(self, examples: Sequence[TrainingExample]) -> Keys:
        keys = b"".join(e.features.item_keys for e in examples if e.features is not None)
        items_BI = np.frombuffer(keys, np.int64).reshape(len(examples), self.features.item_columns)
        scores_B = np.array([_served_score(e) for e in examples], np.float64)
        # A correction weighs as much as the example it corrects, but for what was learned in between.
        labels = [(e.previous if e.correction else e.labels)[0] for e in examples]
        return arm_features(items_BI, scores_B, np.array(labels, np.float32) > 0)


def without_rows(learned: Learned, lane: Lane, weigh_B: NDArray[np.bool_]) -> Learned:
    """Drops rows with zero gradients that only examples of weight 0 have: a line whose rows are copied once
    they are touched needn't hold these. As negatives of retrieval they may have gradients."""
    behind = rows_in_examples(lane.batch, lane.lookup, weigh_B)
    gradients = {
        table: rows.take(np.flatnonzero(behind[table] | rows.gradients.any(1)))
        for table, rows in learned.gradients.items()
    }
    return replace(learned, gradients=gradients)


def _served_score(example: TrainingExample) -> float:
    """Probability of the first label, as predicted by the line that served the example."""
    predicted = example.predicted if isinstance(example, ServedExample) else b""
    return float(np.frombuffer(predicted, np.float32, 1)[0]) if predicted else 0.0
