"""Decides the reactions to drift alarms, as values: the caller acts on them, or refuses to.

An alarm raises the learning rate by a bounded factor that decays as examples come, publishes the rows of
every step at once, and requests the offline job, though no more often than it can help. Without alarms, rows
are gathered over more and more steps before they are published: a stationary stream costs less.

Counts are of examples and times are event time, so the same alarms at the same positions lead to the same
reactions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.drift.monitors import CALIBRATION, LOSS, DriftAlarm

_STEP_CHANGE = 1.05  # relative change of the rate from which on it is set again


@dataclass(frozen=True)
class ReactionConfig:
    """Bounds of the reactions to drift."""

    most_rate: float = 3.0  # times the usual learning rate, right after an alarm
    rate_examples: int = 8_000  # half-life of the raise
    calm_examples: int = 50_000  # without an alarm, after which twice as many steps are gathered
    most_gathered: int = 8  # steps
    offline_every_ms: int = 6 * 3_600_000  # minimum between two requests of the offline job
    offline_features: int = 3  # alarming numbers within rate_examples, if no loss is among them

    def __post_init__(self) -> None:
        if not 1.0 <= self.most_rate <= 10.0:
            raise ValueError(
                f"drift.most_rate is {self.most_rate}, expected 1 (never raised) to 10: beyond that Adagrad "
                "unlearns more than drift does"
            )
        for name in ("rate_examples", "calm_examples", "most_gathered", "offline_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"drift.{name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class SetRate:
    """Multiply learning rates by ``factor`` from the next step on."""

    factor: float
    because: tuple[DriftAlarm, ...] = ()


@dataclass(frozen=True)
class PublishEvery:
    """Publish rows each ``steps`` steps; until then they are held back, and none is lost."""

    steps: int
    because: tuple[DriftAlarm, ...] = ()


@dataclass(frozen=True)
class StartOffline:
    """Run the offline job on the examples up to ``at_ms``."""

    at_ms: int
    because: tuple[DriftAlarm, ...]


DriftReaction = SetRate | PublishEvery | StartOffline


class ReactionPolicy:
    """Turns alarms into reactions. Call ``step`` once for each step, with its alarms (mostly none)."""

    def __init__(self, config: ReactionConfig | None = None) -> None:
        self.config = config or ReactionConfig()
        self.rate, self.gathered = 1.0, 1
        self._set_to = 1.0
        self._calm = 0.0  # examples since the last alarm, or since more steps were gathered
        self._offline_ms: int | None = None
        self._recent: list[tuple[float, DriftAlarm]] = []  # with ``_seen`` at the alarm
        self._seen = 0.0  # examples

    def resume(self, rate: float, gathered: int, offline_ms: int | None = None) -> None:
        """Continues from another policy's rate, steps, and time of the last request of the offline job."""
        self.rate, self._set_to, self.gathered, self._offline_ms = rate, rate, gathered, offline_ms

    def step(
        self, alarms: Sequence[DriftAlarm], examples: float, at_ms: int
    ) -> list[DriftReaction]:
        """Reactions after a step of this many examples; empty if nothing changes."""
        self._seen += examples
        reactions: list[DriftReaction] = []
        if alarms:
            self._recent += [(self._seen, alarm) for alarm in alarms]
            self.rate, self._calm = self.config.most_rate, 0.0
            if self.gathered > 1:
                self.gathered = 1
                reactions.append(PublishEvery(1, tuple(alarms)))
            reactions += self._offline(at_ms)
        else:
            self.rate = 1.0 + (self.rate - 1.0) * 0.5 ** (examples / self.config.rate_examples)
            reactions += self._gather(examples)
        return self._set_rate(alarms) + reactions

    def _set_rate(self, alarms: Sequence[DriftAlarm]) -> list[DriftReaction]:
        if self.rate < _STEP_CHANGE:
            self.rate = 1.0
        ratio = self.rate / self._set_to
        if ratio == 1.0 or (1 / _STEP_CHANGE < ratio < _STEP_CHANGE and self.rate > 1.0):
            return []
        self._set_to = self.rate
        return [SetRate(round(self.rate, 3), tuple(alarms))]

    def _gather(self, examples: float) -> list[DriftReaction]:
        self._calm += examples
        if self._calm < self.config.calm_examples or self.gathered >= self.config.most_gathered:
            return []
        self._calm = 0.0
        self.gathered = min(2 * self.gathered, self.config.most_gathered)
        return [PublishEvery(self.gathered)]

    def _offline(self, at_ms: int) -> list[DriftReaction]:
        """One alarm of a loss suffices; of features several must agree, as one is mostly a single field."""
        oldest = self.config.rate_examples
        self._recent = [(seen, a) for seen, a in self._recent if self._seen - seen <= oldest]
        alarms = tuple(alarm for _, alarm in self._recent)
        is_loss = any(alarm.kind in (LOSS, CALIBRATION) for alarm in alarms)
        distinct = len({(alarm.kind, alarm.what) for alarm in alarms})
        if not is_loss and distinct < self.config.offline_features:
            return []
        last_ms = self._offline_ms
        if last_ms is not None and at_ms - last_ms < self.config.offline_every_ms:
            return []
        self._offline_ms = at_ms
        return [StartOffline(at_ms, alarms)]
