"""Fits a line to stored examples: several epochs, and early stopping on the newest of them.

What a nightly job does, small enough to run beside a study. The examples before the last fifth are learned
again and again until the last fifth is predicted worse than an epoch before; then, from the best of these
states, the last fifth is learned as often. So everything is learned, and what is newest is learned last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.continual.learner import Lane
from training.continual.local_line import LocalLine
from training.merging.merge_variants import losses


@dataclass(frozen=True)
class Batch:
    """Some examples in one lane, and the event time at which the last of them was known."""

    time_ms: int
    lane: Lane


@dataclass(frozen=True)
class Refit:
    """``epochs``: at the most. ``held_out``: the share of the newest examples that says when to stop."""

    epochs: int = 5
    held_out: float = 0.2

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 < self.held_out < 1:
            raise ValueError(
                f"epochs is {self.epochs}, held_out {self.held_out}: expected 1 or more, and a share"
            )


@dataclass(frozen=True)
class Fitted:
    """A line that learned, how often, and how well it predicted what was held out after each epoch."""

    line: LocalLine
    epochs: int
    losses: tuple[float, ...]  # nats an example, of the first label


def refit(line: LocalLine, batches: Sequence[Batch], how: Refit) -> Fitted:
    """Trains a line, new or from a snapshot, on batches in order of time."""
    kept = len(batches) - max(1, round(len(batches) * how.held_out))
    if kept < 1:
        raise ValueError(f"there are {len(batches)} batches, expected 2 or more to hold some out")
    first, last = batches[:kept], batches[kept:]
    found: list[float] = []
    best, epochs = line, 0
    for epoch in range(1, how.epochs + 1):
        line = LocalLine.loaded(line.learner, line.spec, line.export())
        _epoch(line, first)
        found.append(_held_out(line, last))
        if found[-1] > min(found):
            break
        best, epochs = line, epoch
    for _ in range(epochs):
        _epoch(best, last)
    return Fitted(best, epochs, tuple(found))


def _epoch(line: LocalLine, batches: Sequence[Batch]) -> None:
    for batch in batches:
        line.learn(batch.time_ms, [batch.lane])


def _held_out(line: LocalLine, batches: Sequence[Batch]) -> float:
    """The mean log loss of the first label, with what the line would be served with."""
    lost = [losses(line.predict(b.lane)[:, 0], b.lane.labels_BK[:, 0]) for b in batches]
    return float(np.concatenate(lost).mean())
