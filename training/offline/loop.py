"""Runs the epochs of an offline job over its blocks, resumable from any checkpoint with the same result.

1. Epochs over all but the last day: the first in event time, later ones by blocks and examples in an order
that is a hash of (seed, epoch, ids). 2. After each, the last day is scored, frozen, as by replicas: when its
log loss no longer falls, the state of the previous epoch is restored. 3. From there the last day is learned
as often as the others were: once in event time, each step scored before it is learned, then in hashed order.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.model.prediction_metrics import auc
from training.offline.examples import Examples, shuffled
from training.offline.trainer import OfflineTrainer, RejectedGradients

TRAIN: Final = "train"
LAST: Final = "last day"
DONE: Final = "done"
WORK: Final = "work"  # the checkpoint to resume from
BEST: Final = "best"  # the checkpoint of the best epoch
# Arrays of a checkpoint beside those of the trainer: the last day, as it was learned.
SEEN: Final = ("seen/p", "seen/y", "seen/w")
_LAST_SALT: Final = 1_000  # so that epochs over the last day have orders of their own
_SMALLEST: Final = 1e-7
Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
Parts = Iterable[tuple[int, Arrays]]


class Blocks(Protocol):
    """Examples by block, in event time."""

    def __len__(self) -> int: ...
    def read(self, number: int) -> Examples: ...


class Checkpoints(Protocol):
    """Storage that survives a kill: a checkpoint counts once all workers have saved their parts. ``newest``:
    this worker's arrays, a part's rows at once, and the state of the highest number."""

    def save(self, kind: str, number: int, parts: Parts, state: bytes) -> None: ...
    def newest(self, kind: str) -> tuple[Iterable[Arrays], bytes] | None: ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Training plan. ``last``: the first block of the last day."""

    last: int
    epochs: int = 3
    step_examples: int = 64
    checkpoint_every: int = 500  # steps
    seed: int = 0


class LoopState(msgspec.Struct, kw_only=True):
    """Position of a job: ``at`` counts blocks of the epoch's order, ``row`` examples of that block."""

    stage: str = TRAIN
    epoch: int = 1
    at: int = 0
    row: int = 0
    steps: int = 0
    turns: int = 0  # to another epoch or stage
    learned: int = 0
    best: int = 0  # the epoch
    judged: list[dict[str, float]] = []  # by epoch
    sums: dict[str, dict[str, float]] = {}  # prequential, of the first epoch of each stage

    @property
    def number(self) -> int:
        """Number of a checkpoint, another one after each step and each turn to an epoch: parts of the same
        number have rows of the same model, whenever they were written."""
        return self.steps + self.turns


Report = Callable[[LoopState, Mapping[str, float]], None]


class OfflineLoop:
    """Trains to the end. ``report`` is called at each step with the state and the step's sums."""

    def __init__(
        self, blocks: Blocks, trainer: OfflineTrainer, checkpoints: Checkpoints, plan: Plan,
        report: Report = lambda state, sums: None,
    ) -> None:  # fmt: skip
        """Raises ValueError if there is nothing before the last day, or nothing on it."""
        if not 0 < plan.last < len(blocks):
            which = "before the last day" if plan.last == 0 else "on the last day"
            raise ValueError(
                f"there are no examples {which}: what is held out says when to stop; move --from or --until"
            )
        self._blocks, self._trainer, self._checkpoints = blocks, trainer, checkpoints
        self._plan, self._report = plan, report
        self.state = LoopState()
        self._seen: list[tuple[Floats, Floats, Floats]] = []  # of the last day, as it is learned

    def run(self) -> dict[str, float]:
        """Resumes from the newest checkpoint and runs to the end; returns the metrics."""
        self._resume()
        last, end = self._plan.last, len(self._blocks)
        while self.state.stage == TRAIN:
            self._pass(0, last, self.state.epoch)
            self._judge()
        while self.state.stage == LAST:
            self._pass(last, end, _LAST_SALT + self.state.epoch)
            done = self.state.epoch == self.state.best
            self._turn(DONE if done else LAST, 1 if done else self.state.epoch + 1)
        return self._metrics()

    def _pass(self, first: int, stop: int, salt: int) -> None:
        """One epoch over some blocks, from the current position on."""
        state, size, in_time = self.state, self._plan.step_examples, self.state.epoch == 1
        numbers = np.arange(first, stop)
        if not in_time:
            numbers = numbers[shuffled(self._plan.seed, salt, numbers.astype(np.uint64))]
        for number in numbers[state.at :]:
            block = self._blocks.read(int(number))
            if not in_time:
                block = block.take(shuffled(self._plan.seed, salt, block.ids))
            while state.row < len(block):
                self._learn(block.take(slice(state.row, state.row + size)), in_time)
                if state.steps % self._plan.checkpoint_every == 0:
                    self._save()
            state.at, state.row = state.at + 1, 0

    def _learn(self, examples: Examples, in_time: bool) -> None:
        state = self.state
        result = self._trainer.learn(examples)
        state.row += len(examples)
        state.steps += 1
        state.learned += len(examples)
        if in_time:
            sums = state.sums.setdefault(state.stage, {})
            for name, value in result.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            if state.stage == LAST:
                self._seen.append(_scored(examples, result.probabilities_BL))
        self._report(state, result.metrics)

    def _judge(self) -> None:
        """Chooses after an epoch: another one, or the last day from the best."""
        state, plan = self.state, self._plan
        self._save()
        state.judged.append(scores(*self._score_last_day()))
        losses = [judged["log_loss"] for judged in state.judged]
        if state.best == 0 or losses[-1] < losses[state.best - 1]:
            state.best = state.epoch
            if state.epoch < plan.epochs:
                self._checkpoints.save(BEST, state.number, self._parts(), str(state.best).encode())
        if state.best == state.epoch < plan.epochs:
            self._turn(TRAIN, state.epoch + 1)
            return
        if state.best < state.epoch:
            self._restore_best()
        self._turn(LAST, 1)

    def _restore_best(self) -> None:
        """Raises RuntimeError, in all workers, if one can't read the checkpoint of the best epoch."""
        arrays, epoch = self._checkpoints.newest(BEST) or ([], b"")
        seen, best = self._trainer.sharding.gather(epoch.decode()), self.state.best
        if set(seen) != {str(best)}:
            raise RuntimeError(
                f"the checkpoint of the best epoch, {best}, is missing or damaged (workers see {seen}): "
                "remove parts/ from the job's folder, .work/job-… in the registry, and start the job again"
            )
        for part in arrays:
            self._trainer.load(part)

    def _score_last_day(self) -> tuple[Floats, Floats, Floats]:
        days, size = range(self._plan.last, len(self._blocks)), 4 * self._plan.step_examples
        parts = (part for number in days for part in self._blocks.read(number).cut(size))
        return _concatenated([_scored(part, self._trainer.predict(part)) for part in parts])

    def _turn(self, stage: str, epoch: int) -> None:
        self.state.turns += 1
        self.state.stage, self.state.epoch, self.state.at, self.state.row = stage, epoch, 0, 0
        self._save()

    def _save(self) -> None:
        state = msgspec.json.encode((self.state, self._trainer.all_refused()))
        self._checkpoints.save(WORK, self.state.number, self._parts(), state)

    def _parts(self) -> Parts:
        """The own parts of a checkpoint, one at a time."""
        for part in self._trainer.sharding.own:
            arrays = self._trainer.export(part)
            if self._seen and part == 0:
                arrays |= dict(zip(SEEN, _concatenated(self._seen), strict=True))
            yield part, arrays

    def _resume(self) -> None:
        checkpoint, sharding = self._checkpoints.newest(WORK), self._trainer.sharding
        arrays, state = checkpoint or ([], b"")
        if len(set(sharding.gather(state))) > 1:
            raise RuntimeError("workers see different checkpoints: is the job's folder shared?")
        for part in arrays:
            self._trainer.load(part)
            if SEEN[0] in part:
                self._seen = [(part[SEEN[0]], part[SEEN[1]], part[SEEN[2]])]
        if state:
            kind = tuple[LoopState, RejectedGradients]
            self.state, refused = msgspec.convert(_with_nan(msgspec.json.decode(state)), kind)
            # Worker 0 takes the rows that all have rejected.
            self._trainer.refused = replace(refused, rows=0) if sharding.rank else refused

    def _metrics(self) -> dict[str, float]:
        """``last_day.*``: held out, after the best epoch; ``prequential.*``: as it was learned;
        ``first_epoch.log_loss``; ``epoch_N.*``: held out, after each epoch. Unknown values are left out."""
        state = self.state
        out = {f"last_day.{name}": v for name, v in state.judged[state.best - 1].items()}
        prequential = scores(*_concatenated(self._seen))
        out |= {f"prequential.{name}": v for name, v in prequential.items()}
        for epoch, judged in enumerate(state.judged, 1):
            out |= {f"epoch_{epoch}.{name}": judged[name] for name in ("log_loss", "auc")}
        first = state.sums.get(TRAIN, {})
        loss = next((v for name, v in first.items() if name.startswith("loss.")), 0.0)
        out["first_epoch.log_loss"] = loss / first["examples"] if first.get("examples") else np.nan
        return {name: float(value) for name, value in out.items() if np.isfinite(value)}


def scores(p: Floats, y: Floats, weights: Floats) -> dict[str, float]:
    """Log loss (nats), AUC and calibration of the first label, examples weighted."""
    q = np.clip(p.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    losses = -(y * np.log(q) + (1 - y) * np.log1p(-q))
    positives = float((weights * y).sum())
    return {
        "log_loss": float((weights * losses).sum() / weights.sum()),
        "auc": auc(p, y, weights),
        "calibration": float((weights * q).sum()) / positives if positives else float("nan"),
        "examples": float(len(p)),
    }


def _with_nan(state: Any) -> Any:
    """A state from JSON, which has null for metrics that aren't finite."""
    if isinstance(state, dict):
        return {name: _with_nan(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_with_nan(value) for value in state]
    return np.nan if state is None else state


def _scored(examples: Examples, probabilities_BL: Floats) -> tuple[Floats, Floats, Floats]:
    """Predictions and outcomes of the first label, and the number of examples each represents."""
    any_label = (examples.labels > 0).any(1)
    weights = np.where(any_label, np.float32(1), 1 / examples.sampling_rate)
    happened = (examples.labels[:, 0] > 0.5).astype(np.float32)
    return probabilities_BL[:, 0], happened, weights.astype(np.float32)


def _concatenated(parts: list[tuple[Floats, Floats, Floats]]) -> tuple[Floats, Floats, Floats]:
    p, y, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    return p, y, weights
