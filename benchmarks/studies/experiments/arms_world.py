"""A small feed whose arms learn: the estimate of an experiment beside the true effect, with everybody in one
arm.

In rounds, everybody is shown a few of some candidates, ranked by their line's predictions, and the lines
learn the outcomes. Lines, learners and weights are those of the live parts. Only rows carry an item's worth
(feature set ``ids``: no history, no counters), so one arm influences the other through lines alone. Random
draws are the same in every run of a seed.
"""

# U users, C candidates of each, K shown to each, I items, B examples, F features that tell arms apart

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.local_line import LocalLine
from examples.short_video.world import World
from experiments.assignment.arm_line import DIVERTED, WEIGHTED
from experiments.statistics.arm_weights import ArmWeights, arm_features
from recsys.config.system_config import Config, ModelConfig
from recsys.events.hashing import key_of
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.model.batch import Batch, assemble
from recsys.model.model import build_model
from training.candidates.arm_learner import without_rows
from training.continual.learner import Lane, Learned, Learner
from training.continual.open_labels import LabelTargets, single_pass_targets
from training.lines.line import whole_spec

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
TREATED: Final = "everybody treated"
CONTROL: Final = "nobody treated"
SHARED: Final = "shared"  # one line answers both arms
ALONE: Final = "alone"  # a line of each arm learns from its own examples, unweighted
ESTIMATES: Final = (SHARED, ALONE, DIVERTED, WEIGHTED)
_SHOWN: Final = 4  # K
_NEW: Final = 10  # items published in a round
_STEP: Final = 128  # examples
_ROUND_MS: Final = 1_800_000
_YOUNG: Final = 2  # rounds for which an item is fresh
_EXPLORE: Final = 0.02


@dataclass(frozen=True)
class Setting:
    """``share`` of the users are treated: fresh items gain ``boost`` for them, in P(long view). The first
    ``warm`` rounds treat nobody."""

    share: float
    boost: float
    users: int = 300
    candidates: int = 24
    living: int = 150  # the newest items are candidates
    warm: int = 12
    rounds: int = 16


@dataclass(frozen=True)
class Shown:
    """Shown items of a round, users first: predictions of their line, worth (P(long view)) and long-view
    labels, all (U·K,)."""

    users_B: Numbers
    items_B: Numbers
    predicted_B: Floats
    worth_B: Floats
    labels_B: Floats


class _Weighing(Learner):
    """Learner that skips rows which an arm's line leaves out."""

    def learn(self, lane: Lane, rows: Mapping[str, Any], dense: Any) -> Learned:
        learned, weigh_B = super().learn(lane, rows, dense), lane.label_targets.weights_BL[:, 0] > 0
        return learned if weigh_B.all() else without_rows(learned, lane, weigh_B)


class ArmsWorld:
    """One world. ``run`` plays it from the beginning; only the treatment differs between runs."""

    def __init__(self, seed: int, setting: Setting) -> None:
        self.seed, self.setting = seed, setting
        self._world = World(seed, setting.users, 300, publish_every_s=_ROUND_MS / 1000 / _NEW)
        self._features = FeatureSet(FEED_SCHEMA, "ids")
        model = ModelConfig(dim=8, vector_dim=8, hidden=(16,), features="ids", retrieval_weight=0.0)
        self._config = Config(model=model)
        self._learner = _Weighing(build_model(self._features, model))
        self._first_dense = self._learner.model.read_dense()
        self._dense = FeatureBuilder(self._features).dense_width
        self._labels = len(FEED_SCHEMA.labels)
        self._user_keys = np.zeros((setting.users, self._features.user_columns), np.int64)
        self._user_keys[:, self._features.slot("user").start] = [
            key_of("user", f"u{user}") for user in range(setting.users)
        ]
        last = 300 + _NEW * (setting.warm + setting.rounds)
        items = [self._world.item(index) for index in range(last)]
        self._item_keys = np.array([self._features.item_keys(i.item_id, i.fields) for i in items])
        self._born = np.maximum(0, (np.arange(last) - 300) // _NEW + 1)
        draw = np.random.default_rng((seed, 1))
        self.treated_U = draw.permutation(setting.users) < round(setting.share * setting.users)

    def run(self, how: str) -> Floats:
        """Mean worth of each user's slots (U,) during the experiment. ``how``: TREATED, CONTROL, or one of
        ESTIMATES."""
        main = LocalLine(self._learner, whole_spec(self._config), self._first_dense)
        lines, of_arm_U = [main], np.zeros(self.setting.users, np.int64)
        boosts_U = np.zeros(self.setting.users)
        weights = [ArmWeights(), ArmWeights()]  # of the control's line, and of the treatment's
        worth: list[Floats] = []
        for number in range(self.setting.warm + self.setting.rounds):
            if number == self.setting.warm:
                treated = {TREATED: True, CONTROL: False}.get(how, self.treated_U)
                boosts_U = np.where(treated, self.setting.boost, 0.0) * np.ones(self.setting.users)
                if how in (ALONE, DIVERTED, WEIGHTED):
                    spec, export = whole_spec(self._config), main.export()
                    lines = [LocalLine.loaded(self._learner, spec, export) for _ in range(2)]
                    of_arm_U = self.treated_U.astype(np.int64)
            shown = self._round(number, lines, of_arm_U, boosts_U)
            if number >= self.setting.warm:
                worth.append(shown.worth_B.reshape(-1, _SHOWN).mean(1))
            for arm, line in enumerate(lines):
                own_B = of_arm_U[shown.users_B] == arm
                self._learn(line, number, shown, own_B, weights[arm], how if len(lines) > 1 else "")
        mean_U: Floats = np.mean(worth, 0)
        return mean_U

    def _round(
        self, number: int, lines: list[LocalLine], of_arm_U: Numbers, boosts_U: Floats
    ) -> Shown:
        setting, draw = self.setting, np.random.default_rng((self.seed, 2, number))
        num_items = 300 + _NEW * number
        candidates_UC = (
            num_items - 1 - draw.integers(0, setting.living, (setting.users, setting.candidates))
        )
        predicted_UC = np.zeros(candidates_UC.shape)
        for arm, line in enumerate(lines):
            users_of_arm = np.flatnonzero(of_arm_U == arm)
            users_B, items_B = (
                users_of_arm.repeat(setting.candidates),
                candidates_UC[users_of_arm].ravel(),
            )
            if len(users_of_arm):
                lane = self._lane(users_B, items_B, np.zeros(len(users_B)), np.ones(len(users_B)))
                predicted_UC[users_of_arm] = line.predict(lane)[:, 0].reshape(len(users_of_arm), -1)
        ages_UC = number - self._born[candidates_UC]
        scores_UC = predicted_UC + boosts_U[:, None] * (ages_UC <= _YOUNG)
        places_UK = np.argsort(-scores_UC, axis=1, kind="stable")[:, :_SHOWN]
        explored_UK = draw.random(places_UK.shape) < _EXPLORE
        any_UK = draw.integers(0, setting.candidates, places_UK.shape)
        places_UK = np.where(explored_UK, any_UK, places_UK)
        rows = np.arange(setting.users)[:, None]
        users_B, items_B = (
            np.arange(setting.users).repeat(_SHOWN),
            candidates_UC[rows, places_UK].ravel(),
        )
        now_ms = self._world.start_ms + number * _ROUND_MS
        worth_B = np.array(
            [
                self._world.true_long_view(f"u{user}", f"w{item}", now_ms)
                for user, item in zip(users_B, items_B, strict=True)
            ]
        )
        labels_B = (draw.random(len(worth_B)) < worth_B).astype(np.float64)
        return Shown(users_B, items_B, predicted_UC[rows, places_UK].ravel(), worth_B, labels_B)

    def _learn(
        self, line: LocalLine, number: int, shown: Shown, own_B: NDArray[np.bool_],
        weights: ArmWeights, how: str,
    ) -> None:  # fmt: skip
        draw = np.random.default_rng((self.seed, 3, number))
        order_B, draws_B = draw.permutation(len(own_B)), draw.random(len(own_B))
        for start in range(0, len(order_B), _STEP):
            at = order_B[start : start + _STEP]
            labels_B, mine_B = shown.labels_B[at], own_B[at]
            items_BI = self._item_keys[shown.items_B[at]]
            telling_BF = arm_features(items_BI, shown.predicted_B[at], labels_B > 0)
            if how == ALONE:
                weights_B = mine_B.astype(np.float64)
            else:
                weights_B = weights.repeats(how, telling_BF, mine_B, draws_B[at])
            weights.learn(telling_BF, mine_B)
            lane = self._lane(shown.users_B[at], shown.items_B[at], labels_B, weights_B)
            line.learn(self._world.start_ms + number * _ROUND_MS, [lane])

    def _lane(self, users_B: Numbers, items_B: Numbers, first_B: Floats, weights_B: Floats) -> Lane:
        size = len(users_B)
        labels_BK = np.zeros((size, self._labels), np.float32)
        labels_BK[:, 0] = first_B
        ones_B = np.ones(size, np.float32)
        told_labels: LabelTargets = single_pass_targets(labels_BK, ones_B, np.ones_like(labels_BK))
        told_labels = replace(
            told_labels, weights_BL=told_labels.weights_BL * weights_B[:, None].astype(np.float32)
        )
        return self._learner.lane_of(
            self._batch(users_B, items_B), labels_BK, np.zeros(size, np.float32), told_labels
        )

    def _batch(self, users_B: Numbers, items_B: Numbers) -> Batch:
        size, features = len(users_B), self._features
        return assemble(
            features,
            self._user_keys[users_B],
            self._item_keys[items_B],
            np.zeros((size, 0, features.history_keys), np.int64),
            np.zeros((size, 0, features.outcomes), np.float32),
            np.zeros((size, self._dense), np.float32),
        )


def biases(world: ArmsWorld) -> dict[str, Any]:
    """True effect on the worth of a slot, and the bias of each estimate. Each arm is compared with the same
    users in the world where everybody is in it, so the assignment adds no noise."""
    truth_T, truth_C = world.run(TREATED), world.run(CONTROL)
    treated = world.treated_U
    estimates: dict[str, Any] = {"true": float(truth_T.mean() - truth_C.mean())}
    for how in ESTIMATES:
        seen_U = world.run(how)
        of_treatment = (seen_U - truth_T)[treated].mean()
        of_control = (seen_U - truth_C)[~treated].mean()
        estimates[how] = float(of_treatment - of_control)
    return estimates
