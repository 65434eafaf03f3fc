"""Epochs over the blocks of a job, with checkpoints: a place, and how to go on from any.

1. Epochs over all but the last day: the first in event time, so that its prequential sums are honest; later
   ones by blocks and examples in an order that is a hash of (seed, epoch, ids).
2. After each, the last day is scored, frozen, as replicas would: when its log loss no longer falls, the epoch
   before was the best one, and its state is taken again.
3. From there the last day is learned as often as the others were: once in event time, each step scored before
   it is learned, then in hashed order. So the result has seen all examples equally often, the newest last.

Nothing depends on when or how often a checkpoint was taken, or on being killed between any two instructions:
whoever starts again from the newest checkpoint makes the same steps.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.model.prediction_metrics import auc
from training.offline.examples import Examples, shuffled
from training.offline.trainer import OfflineTrainer, Refusals

TRAIN: Final = "train"
LAST: Final = "last day"
DONE: Final = "done"
WORK: Final = "work"  # the checkpoint to go on from
BEST: Final = "best"  # that of the best epoch
_LAST_SALT: Final = 1_000  # so that epochs over the last day have orders of their own
_SMALLEST: Final = 1e-7
Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


class Blocks(Protocol):
    """Examples by block, in event time."""

    def __len__(self) -> int: ...
    def read(self, number: int) -> Examples: ...


class Checkpoints(Protocol):
    """Where state outlives a kill. ``save`` is atomic."""

    def save(self, kind: str, step: int, arrays: Mapping[str, Any], state: bytes) -> None: ...
    def newest(self, kind: str) -> tuple[Arrays, bytes] | None: ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to learn. ``last``: the first block of the last day."""

    last: int
    epochs: int = 3
    step_examples: int = 64
    checkpoint_every: int = 500  # steps
    seed: int = 0


class Place(msgspec.Struct, kw_only=True):
    """Where a job is: ``at`` counts blocks of the epoch's order, ``row`` examples of that block."""

    stage: str = TRAIN
    epoch: int = 1
    at: int = 0
    row: int = 0
    steps: int = 0
    learned: int = 0
    best: int = 0  # the epoch
    judged: list[dict[str, float]] = []  # by epoch
    sums: dict[str, dict[str, float]] = {}  # prequential, of the first epoch of each stage


Tell = Callable[[Place, Mapping[str, float]], None]


class OfflineLoop:
    """Learns all there is to learn. ``tell`` is given the place and the newest step's sums, at each step."""

    def __init__(
        self,
        blocks: Blocks,
        trainer: OfflineTrainer,
        checkpoints: Checkpoints,
        plan: Plan,
        tell: Tell = lambda place, sums: None,
    ) -> None:
        """Raises ValueError where nothing is before the last day, or nothing on it."""
        if not 0 < plan.last < len(blocks):
            which = "before the last day" if plan.last == 0 else "on the last day"
            raise ValueError(
                f"there are no examples {which}: what is held out says when to stop; move --from or --until"
            )
        self._blocks, self._trainer, self._checkpoints = blocks, trainer, checkpoints
        self._plan, self._tell = plan, tell
        self.place = Place()
        self._seen: list[tuple[Floats, Floats, Floats]] = []  # of the last day, as it is learned

    def run(self) -> dict[str, float]:
        """Goes on from the newest checkpoint, to the end; returns the metrics."""
        self._resume()
        last, end = self._plan.last, len(self._blocks)
        while self.place.stage == TRAIN:
            self._pass(0, last, self.place.epoch)
            self._judge()
        while self.place.stage == LAST:
            self._pass(last, end, _LAST_SALT + self.place.epoch)
            done = self.place.epoch == self.place.best
            self._turn(DONE if done else LAST, 1 if done else self.place.epoch + 1)
        return self._metrics()

    def _pass(self, first: int, stop: int, salt: int) -> None:
        """One epoch over some blocks, from the place on."""
        place, size, in_time = self.place, self._plan.step_examples, self.place.epoch == 1
        numbers = np.arange(first, stop)
        if not in_time:
            numbers = numbers[shuffled(self._plan.seed, salt, numbers.astype(np.uint64))]
        for number in numbers[place.at :]:
            block = self._blocks.read(int(number))
            if not in_time:
                block = block.take(shuffled(self._plan.seed, salt, block.ids))
            while place.row < len(block):
                self._learn(block.take(slice(place.row, place.row + size)), in_time)
                if place.steps % self._plan.checkpoint_every == 0:
                    self._save()
            place.at, place.row = place.at + 1, 0

    def _learn(self, examples: Examples, in_time: bool) -> None:
        place = self.place
        taught = self._trainer.learn(examples)
        place.row += len(examples)
        place.steps += 1
        place.learned += len(examples)
        if in_time:
            sums = place.sums.setdefault(place.stage, {})
            for name, value in taught.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            if place.stage == LAST:
                self._seen.append(_judged(examples, taught.probabilities_BL))
        self._tell(place, taught.metrics)

    def _judge(self) -> None:
        """After an epoch: another one, or the last day from the best."""
        place, plan = self.place, self._plan
        self._save()
        place.judged.append(scores(*self._scored()))
        losses = [judged["log_loss"] for judged in place.judged]
        if place.best == 0 or losses[-1] < losses[place.best - 1]:
            place.best = place.epoch
            if place.epoch < plan.epochs:
                self._checkpoints.save(BEST, place.steps, self._trainer.export(), b"")
        if place.best == place.epoch < plan.epochs:
            self._turn(TRAIN, place.epoch + 1)
            return
        if place.best < place.epoch:
            found = self._checkpoints.newest(BEST)
            assert found is not None, "it was saved after the best epoch"
            self._trainer.load(found[0])
        self._turn(LAST, 1)

    def _scored(self) -> tuple[Floats, Floats, Floats]:
        """The last day as it is predicted now."""
        parts = []
        for number in range(self._plan.last, len(self._blocks)):
            block = self._blocks.read(number)
            for start in range(0, len(block), 4 * self._plan.step_examples):
                some = block.take(slice(start, start + 4 * self._plan.step_examples))
                parts.append(_judged(some, self._trainer.predict(some)))
        return _together(parts)

    def _turn(self, stage: str, epoch: int) -> None:
        self.place.stage, self.place.epoch, self.place.at, self.place.row = stage, epoch, 0, 0
        self._save()

    def _save(self) -> None:
        seen = dict(zip(("p", "y", "w"), _together(self._seen), strict=True)) if self._seen else {}
        arrays = self._trainer.export() | {f"seen/{name}": array for name, array in seen.items()}
        state = msgspec.json.encode((self.place, self._trainer.refused))
        self._checkpoints.save(WORK, self.place.steps, arrays, state)

    def _resume(self) -> None:
        found = self._checkpoints.newest(WORK)
        if found is None:
            return
        arrays, state = found
        self._trainer.load(arrays)
        self.place, self._trainer.refused = msgspec.json.decode(state, type=tuple[Place, Refusals])
        if "seen/p" in arrays:
            self._seen = [(arrays["seen/p"], arrays["seen/y"], arrays["seen/w"])]

    def _metrics(self) -> dict[str, float]:
        """``last_day.*``: held out, after the best epoch; ``prequential.*``: as it was learned;
        ``first_epoch.log_loss``; ``epoch_N.*``: held out, after each epoch. What isn't known isn't there."""
        place = self.place
        out = {f"last_day.{name}": v for name, v in place.judged[place.best - 1].items()}
        out |= {f"prequential.{name}": v for name, v in scores(*_together(self._seen)).items()}
        for epoch, judged in enumerate(place.judged, 1):
            out |= {f"epoch_{epoch}.{name}": judged[name] for name in ("log_loss", "auc")}
        first = place.sums.get(TRAIN, {})
        loss = next((v for name, v in first.items() if name.startswith("loss.")), 0.0)
        out["first_epoch.log_loss"] = loss / first["examples"] if first.get("examples") else np.nan
        return {name: float(value) for name, value in out.items() if np.isfinite(value)}


def scores(p: Floats, y: Floats, weights: Floats) -> dict[str, float]:
    """Log loss (nats), AUC and calibration of the first label, each example as often as it stands for."""
    q = np.clip(p.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    each = -(y * np.log(q) + (1 - y) * np.log1p(-q))
    came = float((weights * y).sum())
    return {
        "log_loss": float((weights * each).sum() / weights.sum()),
        "auc": auc(p, y, weights),
        "calibration": float((weights * q).sum()) / came if came else float("nan"),
        "examples": float(len(p)),
    }


def _judged(examples: Examples, probabilities_BL: Floats) -> tuple[Floats, Floats, Floats]:
    """Predictions and outcomes of the first label, and for how many examples each stands."""
    any_label = (examples.labels > 0).any(1)
    weights = np.where(any_label, np.float32(1), 1 / examples.kept)
    happened = (examples.labels[:, 0] > 0.5).astype(np.float32)
    return probabilities_BL[:, 0], happened, weights.astype(np.float32)


def _together(parts: list[tuple[Floats, Floats, Floats]]) -> tuple[Floats, Floats, Floats]:
    p, y, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    return p, y, weights
