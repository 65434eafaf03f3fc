"""Fits a line to stored examples: several epochs, with early stopping on the newest of them.

A nightly job, small enough to run beside a study. All but the last fifth is learned again and again until the
last fifth is predicted worse than an epoch before; then, from the best of these states, the last fifth is
learned as often. So all examples are learned, the newest last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.harness.local_line import LocalLine
from benchmarks.studies.drift.merge_variants import losses
from recsys.arrays.id_map import Arrays
from recsys.config.system_config import Config
from training.continual.learner import Lane


@dataclass(frozen=True)
class Batch:
    """Examples in one lane, and the event time at which the last of them closed."""

    time_ms: int
    lane: Lane


@dataclass(frozen=True)
class RefitOptions:
    """``epochs``: the maximum. ``held_out``: share of the newest examples that stops training."""

    epochs: int = 5
    held_out: float = 0.2

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 < self.held_out < 1:
            raise ValueError(
                f"epochs is {self.epochs}, held_out {self.held_out}: expected 1 or more, and a share"
            )


@dataclass(frozen=True)
class Fitted:
    """A fitted line, its number of epochs, and the held-out loss after each epoch."""

    line: LocalLine
    epochs: int
    losses: tuple[float, ...]  # nats an example, of the first label


def refit(line: LocalLine, batches: Sequence[Batch], config: RefitOptions) -> Fitted:
    """Trains a line, new or from a snapshot, on batches in order of time."""
    cut = len(batches) - max(1, round(len(batches) * config.held_out))
    if cut < 1:
        raise ValueError(f"there are {len(batches)} batches, expected 2 or more to hold some out")
    first, last = batches[:cut], batches[cut:]
    held_out: list[float] = []
    best, epochs = line, 0
    for epoch in range(1, config.epochs + 1):
        line = LocalLine.loaded(line.learner, line.spec, line.export())
        _epoch(line, first)
        held_out.append(_held_out(line, last))
        if held_out[-1] > min(held_out):
            break
        best, epochs = line, epoch
    for _ in range(epochs):
        _epoch(best, last)
    return Fitted(best, epochs, tuple(held_out))


def export_at_step(
    export: tuple[Arrays, dict[str, Any]], step: int
) -> tuple[Arrays, dict[str, Any]]:
    """An offline model as if it had learned up to a step of the live line: its own steps don't count, and
    nothing of it is held back."""
    arrays, meta = export
    arrays = {name: array for name, array in arrays.items() if not name.startswith("held/")}
    return arrays, meta | {"step": step}


def _epoch(line: LocalLine, batches: Sequence[Batch]) -> None:
    for batch in batches:
        line.learn(batch.time_ms, [batch.lane])


def _held_out(line: LocalLine, batches: Sequence[Batch]) -> float:
    """Mean log loss of the first label, with the parameters that would serve."""
    lost = [losses(line.predict(b.lane)[:, 0], b.lane.labels_BK[:, 0]) for b in batches]
    return float(np.concatenate(lost).mean())


def student_of(config: Config) -> Config:
    """The configuration of a student line: half as wide, its rows published as int8."""
    model = config.model
    hidden = tuple(max(16, width // 2) for width in model.hidden)
    return replace(
        config,
        model=replace(model, dim=max(4, model.dim // 2), hidden=hidden),
        parameter_server=replace(config.parameter_server, delta_format="int8"),
    )
