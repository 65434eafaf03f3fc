"""How the line of an arm learns: from everybody's examples, each weighted for the arm.

Weights are taken when a lane is learned, by what came before it, so a snapshot after a step holds all that
the next step's hang on.

How often each is learned is a whole number, by chance: a hash of the example's id.
"""

# B examples of a lane (of what is rehearsed, too, where told), F features that tell arms apart, L outputs

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.arm_line import ALL, ArmWeights, arm_features, arm_line_name
from recsys.events.control_records import ArmLine
from recsys.events.event_types import Stamp
from recsys.events.hashed_random import draws
from recsys.events.hashing import key_of
from recsys.events.records import TrainingExample
from recsys.model.model import Model
from training.continual.learner import Floats, Lane, Learned, Learner
from training.continual.row_usage import rows_in_examples

Keys = NDArray[np.int64]
_PREFIX: Final = "arm/"
_SEEDS: Final = 2**31 - 1


class ArmExample(TrainingExample, kw_only=True):
    """What the line of an arm reads of an example: also which arm was answered, and what was said of it."""

    predicted: bytes = b""
    stamp: Stamp | None = None


@dataclass(frozen=True)
class ArmLane(Lane):
    """With what tells arms apart, and which examples the arm's users gave."""

    telling_BF: Keys
    own_B: NDArray[np.bool_]
    draws_B: NDArray[np.float64]  # in [0, 1)
    # Examples behind these are rehearsed, and keep the weight that they have.


class ArmLearner(Learner):
    """Learns for one arm. ``weights`` is the state that it has between steps; see ``export``."""

    def __init__(self, model: Model, arm: ArmLine) -> None:
        super().__init__(model)
        self._arm, self.weights = arm, ArmWeights()
        self._seed = key_of("line", arm_line_name(arm.experiment, arm.arm)) & _SEEDS

    def prepare(
        self, examples: Sequence[TrainingExample], rehearsed: Sequence[TrainingExample] = (), weight: float = 1.0
    ) -> Lane:
        """As a learner's; ``examples`` are ``ArmExample``s."""
        lane = super().prepare(examples, rehearsed, weight)
        own_B = np.array([self._is_own(e) for e in examples], np.bool_)
        telling_BF = self._telling(examples, len(own_B))
        fields = {name: getattr(lane, name) for name in Lane.__dataclass_fields__}
        ids_B = np.array([e.partition << 48 ^ e.offset << 8 ^ e.index for e in examples], np.int64)
        draws_B = draws(self._seed, ids_B)
        return ArmLane(**fields, telling_BF=telling_BF, own_B=own_B, draws_B=draws_B)

    def learn(self, lane: Lane, rows: Mapping[str, Floats], dense: Floats) -> Learned:
        assert isinstance(lane, ArmLane), "prepared here"
        weights_B = self._weights(lane)
        targets = lane.label_targets
        weighted = replace(
            targets,
            weights_BL=targets.weights_BL * weights_B[:, None],
            liked_B=targets.liked_B * weights_B,
        )
        learned = super().learn(replace(lane, label_targets=weighted), rows, dense)
        if not weights_B.all():
            learned = without_rows(learned, lane, weights_B > 0)
        if self._arm.trains != ALL:
            first_B = lane.label_targets.fresh_B[: len(lane.own_B)]  # each was shown once
            self.weights.learn(lane.telling_BF[first_B], lane.own_B[first_B])
        return learned

    def export(self) -> dict[str, NDArray[Any]]:
        """What belongs into a snapshot of the line, beside its rows."""
        return {f"{_PREFIX}{name}": array for name, array in self.weights.export().items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Goes on from a snapshot; one that isn't of an arm's line begins it."""
        its = {k.removeprefix(_PREFIX): v for k, v in arrays.items() if k.startswith(_PREFIX)}
        if its:
            self.weights.load(its)

    def _weights(self, lane: ArmLane) -> Floats:
        weights_B, trains = np.ones(len(lane.batch), np.float32), self._arm.trains
        weights_B[: len(lane.own_B)] = self.weights.repeats(
            trains, lane.telling_BF, lane.own_B, lane.draws_B
        )
        return weights_B

    def _is_own(self, example: TrainingExample) -> bool:
        stamp = example.stamp if isinstance(example, ArmExample) else None
        return stamp is not None and stamp.arms.get(self._arm.experiment) == self._arm.arm

    def _telling(self, examples: Sequence[TrainingExample], size: int) -> Keys:
        columns = self.features.item_columns
        keys = b"".join(e.features.item_keys for e in examples if e.features is not None)
        items_BI = np.frombuffer(keys, np.int64).reshape(size, columns)
        worth_B = np.array([_worth(e) for e in examples], np.float64)
        # A correction weighs what the example weighed that it corrects, but for what was learned between.
        labels = [(e.previous if e.correction else e.labels)[0] for e in examples]
        return arm_features(items_BI, worth_B, np.array(labels, np.float32) > 0)


def without_rows(learned: Learned, lane: Lane, weigh_B: NDArray[np.bool_]) -> Learned:
    """Without the rows that only examples of no weight have, and that they teach nothing: a line whose rows
    are copied once they are touched needn't hold these. As negatives of retrieval they may teach something.
    """
    behind = rows_in_examples(lane.batch, lane.lookup, weigh_B)
    gradients = {
        table: its.take(np.flatnonzero(behind[table] | its.gradients.any(1)))
        for table, its in learned.gradients.items()
    }
    return replace(learned, gradients=gradients)


def _worth(example: TrainingExample) -> float:
    """What the line that answered thought of it: the first label's probability."""
    predicted = example.predicted if isinstance(example, ArmExample) else b""
    return float(np.frombuffer(predicted, np.float32, 1)[0]) if predicted else 0.0
