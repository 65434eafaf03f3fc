"""Detects drift by the loss of predictions made before learning, and by the features.

Sums of steps are gathered into blocks of examples. Each block's means are compared with a forecast; the
residuals go through Page–Hinkley and, for losses, ADWIN. More monitored numbers raise each one's threshold:
Page–Hinkley's sum rises to h by chance once in about e^(2·slack·h) blocks, so with slack 1/2, h + ln(numbers)
keeps the false alarm rate constant; ADWIN's δ is divided by their number. One change is one alarm: after an
alarm a number is quiet for a while, and its new level becomes the usual one.
"""

# C numbers monitored, B examples of a step

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.control_records import Alarm
from training.drift.baseline import Baseline

Floats = NDArray[np.float64]
Keys = Mapping[str, NDArray[np.int64]]  # by slot
LOSS: Final = "loss"
CALIBRATION: Final = "calibration"
FEATURE: Final = "feature"
SHARE: Final = "share"
_SLACK: Final = 0.5  # half of the change, in sd of a block, that is detected soonest
_RECENT: Final = 8  # newest blocks, for the observed value of an alarm
_PRIOR_ZEROS: Final = 60  # fed to a new Page–Hinkley: its first numbers don't define the usual
_WINDOW: Final = 4  # ADWIN judges no part of fewer blocks


@dataclass(frozen=True)
class DetectorConfig:
    """Parameters of the monitors, calibrated by `recsys bench drift`: see docs/explanation/drift.md."""

    block: int = 128  # examples; a larger step is a block of its own
    # Page–Hinkley thresholds for one number, in sd of a block: for losses and calibration, which are few and
    # matter by themselves, and for features.
    loss_threshold: float = 5.5
    threshold: float = 9.0
    strayed: float = 3.5  # an alarm also needs this multiple of the number's usual wandering
    confidence: float = 1e-6  # ADWIN's δ for one number
    memory: int = 400  # blocks
    warm_up: int = 80  # blocks before the first alarm
    quiet: int = 40  # blocks after an alarm without another one of the same number

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"drift.{name} is {value!r}, expected a positive number")


@dataclass(frozen=True)
class MonitoredNumber:
    """Kind and name of a number, and the direction in which a change matters (``up`` or ``both``)."""

    kind: str
    what: str
    mode: str = "both"


class ChangeDetector:
    """A change detector of river; it restarts after a detection, from ``prior`` zeros."""

    def __init__(self, name: str, river: Any, prior: int = 0) -> None:
        self.name, self._river, self._prior = name, river, prior
        self._restart()

    def update(self, number: float) -> bool:
        """Takes the next number; returns whether the stream has changed."""
        self._river.update(number)
        is_detected = bool(self._river.drift_detected)
        if is_detected:
            self._restart()
        return is_detected

    def _restart(self) -> None:
        for _ in range(self._prior):
            self._river.update(0.0)


@dataclass
class _Column:
    number: MonitoredNumber
    detectors: list[ChangeDetector]
    quiet: int = 0
    sums: tuple[float, float] = (0.0, 0.0)  # movement up, and down …
    since: tuple[int, int] = (0, 0)  # … and its duration in blocks


class ChangeMonitor:
    """Monitors C numbers of the same blocks: takes sums, returns alarms (mostly none)."""

    def __init__(self, numbers: Sequence[MonitoredNumber], config: DetectorConfig | None = None) -> None:
        self.config = config = config or DetectorConfig()
        self._baseline = Baseline(len(numbers), config.memory, config.warm_up)
        self._numbers = numbers
        self._sums = np.zeros(len(numbers))
        self._examples = 0.0
        self._recent: list[Floats] = []
        self.blocks = 0

    @cached_property
    def _columns(self) -> list[_Column]:
        """Detectors, made with the first block: river takes a second to import."""
        count = len(self._numbers)
        return [_Column(n, _detectors(n, self.config, count)) for n in self._numbers]

    def feed(self, sums_C: Floats, examples: float, at_ms: int, step: int) -> list[Alarm]:
        """Takes the sums over a step's (or a lane's) examples. Raises ValueError for NaN and infinity, which
        aren't drift: the check that a model is finite has failed."""
        if not np.isfinite(sums_C).all():
            at = int(np.flatnonzero(~np.isfinite(sums_C))[0])
            raise ValueError(
                f"step {step}: the sum of {self._numbers[at].what} is {sums_C[at]}, expected a "
                "finite number; check that what is learned is finite before it is monitored"
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
        self._recent = [*self._recent[1 - _RECENT :], means_C]
        if not self._baseline.ready:
            return []
        strayed = self._baseline.strayed()
        return [
            self._alarm(at, name, expected[at], at_ms, step)
            for at, name in enumerate(map(self._detect, self._columns, z_C.tolist()))
            if name and strayed[at] > self.config.strayed
        ]

    def _detect(self, column: _Column, z: float) -> str:
        """Name of the detector that detects a change with the next number; empty if none does."""
        if column.quiet:
            column.quiet -= 1
            return ""
        up = max(0.0, column.sums[0] + (z - _SLACK))
        down = max(0.0, column.sums[1] + (-z - _SLACK))
        column.since = (column.since[0] + 1 if up else 0, column.since[1] + 1 if down else 0)
        column.sums = (up, down)
        detected = [detector.name for detector in column.detectors if detector.update(z)]
        return detected[0] if detected else ""

    def _alarm(self, at: int, detector: str, expected: float, at_ms: int, step: int) -> Alarm:
        column = self._columns[at]
        since = column.since[0 if column.sums[0] > column.sums[1] else 1]
        blocks = max(1, min(since, len(self._recent)))
        alarm = Alarm(
            kind=column.number.kind, what=column.number.what, at_ms=at_ms, step=step,
            expected=float(expected),
            measured=float(np.mean([means[at] for means in self._recent[-blocks:]])),
            scale=float(self._baseline.scale()[at]), detector=detector,
        )  # fmt: skip
        self._baseline.restart(at, blocks)
        column.quiet, column.since, column.sums = self.config.quiet, (0, 0), (0.0, 0.0)
        column.detectors = _detectors(column.number, self.config, len(self._columns))
        return alarm


def _detectors(number: MonitoredNumber, config: DetectorConfig, monitored: int) -> list[ChangeDetector]:
    """Page–Hinkley (Page 1954, "Continuous inspection schemes"), which sums how far numbers exceed a slack;
    for losses also ADWIN (Bifet and Gavaldà 2007, "Learning from time-changing data with adaptive
    windowing"), which compares two parts of a window."""
    from river.drift import ADWIN, PageHinkley

    is_loss = number.kind in (LOSS, CALIBRATION)
    threshold = config.loss_threshold if is_loss else config.threshold
    threshold += float(np.log(monitored))
    # alpha 1: below it, a sum that fell far rises by itself and raises false alarms.
    river: Any = PageHinkley(min_instances=1, delta=_SLACK, threshold=threshold, alpha=1.0, mode=number.mode)
    detectors = [ChangeDetector("page-hinkley", river, _PRIOR_ZEROS)]
    if is_loss:
        confidence, grace = config.confidence / monitored, 2 * _WINDOW
        river = ADWIN(confidence, clock=1, min_window_length=_WINDOW, grace_period=grace)  # type: ignore[no-untyped-call]
        detectors.append(ChangeDetector("adwin", river))
    return detectors


class LossMonitor:
    """Monitors the prequential sums of steps, from a delta's ``metrics``: for each label the loss, where only
    growth matters, and the calibration error (predictions less outcomes), in both directions."""

    def __init__(self, labels: Sequence[str], config: DetectorConfig | None = None) -> None:
        self.labels = tuple(labels)
        numbers = [MonitoredNumber(LOSS, label, "up") for label in labels]
        numbers += [MonitoredNumber(CALIBRATION, label) for label in labels]
        self._monitor = ChangeMonitor(numbers, config)

    def step(self, metrics: Mapping[str, float], at_ms: int, step: int) -> list[Alarm]:
        """Takes a step's sums; a step without examples (all left out, corrections) changes nothing."""
        loss, predicted, happened = (
            np.array([metrics.get(f"{kind}.{label}", 0.0) for label in self.labels])
            for kind in ("loss", "predicted", "happened")
        )
        sums = np.concatenate([loss, predicted - happened])
        return self._monitor.feed(sums, metrics.get("examples", 0.0), at_ms, step)


@dataclass
class FeatureMonitor:
    """Monitors the means of dense columns, and the shares of the most frequent keys of some slots.

    ``columns``: names of the dense columns (F,). ``slots``: names of the key columns (B,). The monitored
    keys, of at least ``least`` of the examples, are chosen during warm-up.
    """

    columns: Sequence[str]
    slots: Sequence[str] = ()
    config: DetectorConfig = field(default_factory=DetectorConfig)
    least: float = 0.05
    most: int = 12  # keys of a slot

    def __post_init__(self) -> None:
        numbers = [MonitoredNumber(FEATURE, name) for name in self.columns]
        self._dense = ChangeMonitor(numbers, self.config)
        self._counts: dict[str, Counter[int]] = {slot: Counter() for slot in self.slots}
        self._seen = 0
        self._keys: dict[str, NDArray[np.int64]] = {}
        self._shares: ChangeMonitor | None = None

    def step(self, dense_BF: NDArray[np.float32], keys: Keys, at_ms: int, step: int) -> list[Alarm]:
        """Takes the features of a step's examples: dense (B, F), and keys (B,) by slot."""
        rows = len(dense_BF)
        alarms: list[Alarm] = []
        if self.columns:
            alarms += self._dense.feed(dense_BF.sum(0, dtype=np.float64), rows, at_ms, step)
        if self._shares is None:
            self._count(keys, rows)
        else:
            counts = [(keys[slot][:, None] == common).sum(0) for slot, common in self._keys.items()]
            sums = np.concatenate(counts).astype(np.float64)
            alarms += self._shares.feed(sums, rows, at_ms, step)
        return alarms

    def _count(self, keys: Keys, rows: int) -> None:
        """Counts keys during warm-up, then chooses the most frequent ones."""
        self._seen += rows
        for slot, counts in self._counts.items():
            counts.update(keys[slot].tolist())
        if self._seen >= self.config.block * self.config.warm_up and self._counts:
            numbers = []
            for slot, counts in self._counts.items():
                common = [k for k, n in counts.items() if k and n >= self.least * self._seen]
                common = sorted(common, key=lambda k: (-counts[k], k))[: self.most]
                self._keys[slot] = np.array(common, np.int64)
                numbers += [MonitoredNumber(SHARE, f"{slot}={key:#x}") for key in common]
            self._counts = {}
            self._shares = ChangeMonitor(numbers, self.config) if numbers else None
