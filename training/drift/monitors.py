"""Says when the world has changed: by the loss of predictions made before learning, and by the features.

Sums of steps are gathered into blocks of examples; each block's means are compared with what was expected
(training/drift/baseline.py) and what is left goes through Page–Hinkley and, for losses, ADWIN
(training/drift/change_detectors.py). Blocks, not examples: a hundred examples cost what one would.

How many numbers are watched side by side raises each one's threshold: Page–Hinkley's sum rises to h by chance
once in about e^(2·slack·h) blocks, so with slack 1/2, h + ln(numbers) keeps the rate of false alarms whatever
their number; ADWIN's δ is divided by it. One change is one alarm: a number that told is quiet for a while,
and its new level is the usual one from then on.

It doesn't know models, rows or files. What to do about an alarm is training/drift/reaction.py's matter.
"""

# C numbers watched, B examples of a step

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.drift.baseline import Baseline
from training.drift.change_detectors import AdwinDetector, ChangeDetector, PageHinkleyDetector

Floats = NDArray[np.float64]
LOSS: Final = "loss"
CALIBRATION: Final = "calibration"
FEATURE: Final = "feature"
SHARE: Final = "share"
_SLACK: Final = 0.5  # half of the change, in sd of a block, that is found soonest
_KEPT: Final = 8  # blocks kept, to say what the numbers are now


@dataclass(frozen=True)
class DriftConfig:
    """Calibrated by `recsys bench drift`: see docs/drift-detection.md."""

    block: int = 128  # examples; a larger step is a block of its own
    # Of Page–Hinkley for one number, in sd of a block: of losses and calibration, which matter by themselves
    # and are few, and of features.
    loss_threshold: float = 5.5
    threshold: float = 9.0
    strayed: float = 3.5  # times how far it usually strays that a number must lie off, too
    confidence: float = 1e-6  # ADWIN's δ for one number
    memory: int = 400  # blocks
    warm_up: int = 80  # blocks before anything is told
    quiet: int = 40  # blocks after an alarm in which the same number tells nothing

    def __post_init__(self) -> None:
        for name in (
            "block",
            "loss_threshold",
            "threshold",
            "strayed",
            "confidence",
            "memory",
            "warm_up",
            "quiet",
        ):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"drift.{name} is {value!r}, expected a positive number")


@dataclass(frozen=True)
class Evidence:
    """Why an alarm was told: what was expected, what the newest blocks were, and how far that is."""

    detector: str
    expected: float
    found: float  # mean of the blocks since it began to change
    scale: float  # sd of a block around what is expected
    blocks: int  # since it began to change, as the detector has it
    watched: int  # numbers watched beside it


@dataclass(frozen=True)
class Alarm:
    """Something has changed. ``kind``: loss | calibration | feature | share; ``what``: of which number."""

    kind: str
    what: str
    at_ms: int
    step: int
    evidence: Evidence


@dataclass(frozen=True)
class MonitoredNumber:
    """One number: its kind and name, and which way it must move to matter (``up`` or ``both``)."""

    kind: str
    what: str
    mode: str = "both"


@dataclass
class _Column:
    watched: MonitoredNumber
    detectors: list[ChangeDetector]
    quiet: int = 0
    sums: tuple[float, float] = (0.0, 0.0)  # how far it has moved up, and down …
    since: tuple[int, int] = (0, 0)  # … and for how many blocks


class ChangeMonitor:
    """Watches C numbers of the same blocks. Feed it sums; it returns alarms (mostly none)."""

    def __init__(self, watched: Sequence[MonitoredNumber], config: DriftConfig | None = None) -> None:
        self.config = config or DriftConfig()
        its = self.config
        self._baseline = Baseline(len(watched), its.memory, its.warm_up)
        self._columns = [_Column(one, _detectors(one, its, len(watched))) for one in watched]
        self._sums = np.zeros(len(watched))
        self._examples = 0.0
        self._recent: list[Floats] = []
        self.blocks = 0

    def feed(self, sums_C: Floats, examples: float, at_ms: int, step: int) -> list[Alarm]:
        """Takes the sums over a step's examples (or a lane's). Raises ValueError for NaN and infinity: they
        are no drift, and whoever checks that a model is finite should have told."""
        if not np.isfinite(sums_C).all():
            at = int(np.flatnonzero(~np.isfinite(sums_C))[0])
            raise ValueError(
                f"step {step}: the sum of {self._columns[at].watched.what} is {sums_C[at]}, expected a "
                "finite number; see that what is learned is finite before it is watched"
            )
        if examples <= 0:
            return []
        self._sums += sums_C
        self._examples += examples
        if self._examples < self.config.block:
            return []
        means, examples = self._sums / self._examples, self._examples
        self._sums, self._examples = np.zeros(len(means)), 0.0
        return self._block(means, examples, at_ms, step)

    def _block(self, means_C: Floats, examples: float, at_ms: int, step: int) -> list[Alarm]:
        self.blocks += 1
        expected = self._baseline.expected(at_ms)
        z_C = self._baseline.take(means_C, at_ms, examples)
        self._recent = [*self._recent[1 - _KEPT :], means_C]
        if not self._baseline.ready:
            return []
        strayed = self._baseline.strayed()
        return [
            self._alarm(at, name, expected[at], at_ms, step)
            for at, name in enumerate(map(self._moved, self._columns, z_C.tolist()))
            if name and strayed[at] > self.config.strayed
        ]

    def _moved(self, column: _Column, z: float) -> str:
        """The detector that tells of a change with the next number; empty where none does."""
        if column.quiet:
            column.quiet -= 1
            return ""
        up, down = (
            max(0.0, its + by)
            for its, by in zip(column.sums, (z - _SLACK, -z - _SLACK), strict=True)
        )
        column.since = (column.since[0] + 1 if up else 0, column.since[1] + 1 if down else 0)
        column.sums = (up, down)
        told = [detector.name for detector in column.detectors if detector.update(z)]
        return told[0] if told else ""

    def _alarm(self, at: int, detector: str, expected: float, at_ms: int, step: int) -> Alarm:
        column = self._columns[at]
        since = column.since[0 if column.sums[0] > column.sums[1] else 1]
        blocks = max(1, min(since, len(self._recent)))
        evidence = Evidence(
            detector=detector,
            expected=float(expected),
            found=float(np.mean([means[at] for means in self._recent[-blocks:]])),
            scale=float(self._baseline.scale()[at]),
            blocks=blocks,
            watched=len(self._columns),
        )
        self._baseline.restart(at, blocks)
        column.quiet, column.since, column.sums = self.config.quiet, (0, 0), (0.0, 0.0)
        column.detectors = _detectors(column.watched, self.config, len(self._columns))
        return Alarm(column.watched.kind, column.watched.what, at_ms, step, evidence)


def _detectors(
    watched: MonitoredNumber, config: DriftConfig, watched_together: int
) -> list[ChangeDetector]:
    """Losses have both; of many features Page–Hinkley alone, which costs a microsecond."""
    judged = watched.kind in (LOSS, CALIBRATION)
    threshold = config.loss_threshold if judged else config.threshold
    threshold += float(np.log(watched_together))
    found: list[ChangeDetector] = [PageHinkleyDetector(_SLACK, threshold, watched.mode)]
    if judged:
        found.append(AdwinDetector(config.confidence / watched_together))
    return found


class LossMonitor:
    """Watches the prequential sums of steps, as a delta's ``metrics`` carry them: of each label the loss,
    which matters where it grows, and what was predicted less what happened, either way."""

    def __init__(self, labels: Sequence[str], config: DriftConfig | None = None) -> None:
        self.labels = tuple(labels)
        watched = [MonitoredNumber(LOSS, label, "up") for label in labels]
        watched += [MonitoredNumber(CALIBRATION, label) for label in labels]
        self._watch = ChangeMonitor(watched, config)

    def step(self, metrics: Mapping[str, float], at_ms: int, step: int) -> list[Alarm]:
        """Takes a step's sums; steps without examples (all left out, corrections) change nothing."""
        loss = [metrics.get(f"loss.{label}", 0.0) for label in self.labels]
        off = [
            metrics.get(f"predicted.{label}", 0.0) - metrics.get(f"happened.{label}", 0.0)
            for label in self.labels
        ]
        return self._watch.feed(np.array([*loss, *off]), metrics.get("examples", 0.0), at_ms, step)


@dataclass
class FeatureMonitor:
    """Watches the means of dense columns, and the shares of the commonest keys of some slots.

    ``columns`` names the dense columns (F,). ``slots`` are names of keys (B,) given beside; which of their
    keys are watched shows during warm-up: those of at least ``least`` of the examples.
    """

    columns: Sequence[str]
    slots: Sequence[str] = ()
    config: DriftConfig = field(default_factory=DriftConfig)
    least: float = 0.05
    most: int = 12  # keys of a slot

    def __post_init__(self) -> None:
        self._dense = ChangeMonitor([MonitoredNumber(FEATURE, name) for name in self.columns], self.config)
        self._counts: dict[str, dict[int, int]] = {slot: {} for slot in self.slots}
        self._seen = 0
        self._keys: dict[str, NDArray[np.int64]] = {}
        self._shares: ChangeMonitor | None = None

    def step(
        self,
        dense_BF: NDArray[np.float32],
        keys: Mapping[str, NDArray[np.int64]],
        at_ms: int,
        step: int,
    ) -> list[Alarm]:
        """Takes the features of a step's first examples: dense (B, F), and keys (B,) by slot."""
        rows = len(dense_BF)
        alarms: list[Alarm] = []
        if self.columns:
            sums = dense_BF.sum(0, dtype=np.float64)
            alarms += self._dense.feed(sums, rows, at_ms, step)
        if self._shares is None:
            self._count(keys, rows)
        else:
            counts = [(keys[slot][:, None] == its).sum(0) for slot, its in self._keys.items()]
            alarms += self._shares.feed(
                np.concatenate(counts).astype(np.float64), rows, at_ms, step
            )
        return alarms

    def _count(self, keys: Mapping[str, NDArray[np.int64]], rows: int) -> None:
        """Finds the commonest keys; the first blocks are for that."""
        self._seen += rows
        for slot, counts in self._counts.items():
            its, times = np.unique(keys[slot], return_counts=True)
            for key, many in zip(its.tolist(), times.tolist(), strict=True):
                counts[key] = counts.get(key, 0) + many
        if self._seen >= self.config.block * self.config.warm_up and self._counts:
            watched = []
            for slot, counts in self._counts.items():
                common = [k for k, many in counts.items() if k and many >= self.least * self._seen]
                common = sorted(common, key=lambda k: (-counts[k], k))[: self.most]  # noqa: B023
                self._keys[slot] = np.array(common, np.int64)
                watched += [MonitoredNumber(SHARE, f"{slot}={key:#x}") for key in common]
            self._counts = {}
            self._shares = ChangeMonitor(watched, self.config) if watched else None
