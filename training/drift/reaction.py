"""What to do about alarms of drift, as values: something else acts on them, or refuses to.

An alarm raises the learning rate by a bounded factor that falls back as examples come, lets every step's rows
be published at once, and asks for the offline job, though not more often than it can help. While nothing is
told, rows are gathered over more and more steps before they are published: a stationary stream costs less.

It doesn't know how any of that is done. Counts are of examples and times are event time, so the same alarms
at the same places bring about the same reactions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.drift.monitors import CALIBRATION, LOSS, Alarm

_STEP_CHANGE = 1.05  # a rate is told again once it has moved by so much


@dataclass(frozen=True)
class ReactionConfig:
    most_rate: float = 3.0  # times the usual learning rate, right after an alarm
    rate_examples: int = 8_000  # after which half of what was added is gone
    calm_examples: int = 50_000  # without an alarm, after which twice as many steps are gathered
    most_gathered: int = 8  # steps
    offline_every_ms: int = 6 * 3_600_000  # at least, between two calls for the offline job
    offline_features: int = 3  # numbers that tell within rate_examples, where no loss is among them

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
    """Learning rates are ``factor`` times the usual ones from the next step on."""

    factor: float
    because: tuple[Alarm, ...] = ()


@dataclass(frozen=True)
class PublishEvery:
    """Rows are published each ``steps`` steps; until then they are held back, and none is lost."""

    steps: int
    because: tuple[Alarm, ...] = ()


@dataclass(frozen=True)
class StartOffline:
    """The offline job should run on what there is up to ``at_ms``."""

    at_ms: int
    because: tuple[Alarm, ...]


Reaction = SetRate | PublishEvery | StartOffline


class ReactionPolicy:
    """Turns alarms into reactions. Call it once for each step, with its alarms (mostly none)."""

    def __init__(self, config: ReactionConfig | None = None) -> None:
        self.config = config or ReactionConfig()
        self.rate, self.gathered = 1.0, 1
        self._told = 1.0
        self._calm = 0.0  # examples since the last alarm, or since more steps were gathered
        self._offline_ms: int | None = None
        self._lately: list[tuple[float, Alarm]] = []  # by how many examples ago
        self._seen = 0.0

    def go_on(self, rate: float, gathered: int, offline_ms: int | None = None) -> None:
        """Begins where another one was: its rate and steps, and when it last called for the offline job."""
        self.rate, self._told, self.gathered, self._offline_ms = rate, rate, gathered, offline_ms

    def step(self, alarms: Sequence[Alarm], examples: float, at_ms: int) -> list[Reaction]:
        """What is to be done after a step of so many examples; empty where nothing changes."""
        self._seen += examples
        found: list[Reaction] = []
        if alarms:
            self._lately += [(self._seen, alarm) for alarm in alarms]
            self.rate, self._calm = self.config.most_rate, 0.0
            if self.gathered > 1:
                self.gathered = 1
                found.append(PublishEvery(1, tuple(alarms)))
            found += self._offline(at_ms)
        else:
            self.rate = 1.0 + (self.rate - 1.0) * 0.5 ** (examples / self.config.rate_examples)
            found += self._gather(examples)
        return self._set_rate(alarms) + found

    def _set_rate(self, alarms: Sequence[Alarm]) -> list[Reaction]:
        if self.rate < _STEP_CHANGE:
            self.rate = 1.0
        ratio = self.rate / self._told
        if ratio == 1.0 or (1 / _STEP_CHANGE < ratio < _STEP_CHANGE and self.rate > 1.0):
            return []
        self._told = self.rate
        return [SetRate(round(self.rate, 3), tuple(alarms))]

    def _gather(self, examples: float) -> list[Reaction]:
        self._calm += examples
        if self._calm < self.config.calm_examples or self.gathered >= self.config.most_gathered:
            return []
        self._calm = 0.0
        self.gathered = min(2 * self.gathered, self.config.most_gathered)
        return [PublishEvery(self.gathered)]

    def _offline(self, at_ms: int) -> list[Reaction]:
        """A loss that tells is enough; of features several must, as one alone is mostly a field's matter."""
        self._lately = [
            (seen, alarm)
            for seen, alarm in self._lately
            if self._seen - seen <= self.config.rate_examples
        ]
        alarms = [alarm for _, alarm in self._lately]
        judged = any(alarm.kind in (LOSS, CALIBRATION) for alarm in alarms)
        several = len({(alarm.kind, alarm.what) for alarm in alarms})
        if not judged and several < self.config.offline_features:
            return []
        since_ms = None if self._offline_ms is None else at_ms - self._offline_ms
        if since_ms is not None and since_ms < self.config.offline_every_ms:
            return []
        self._offline_ms = at_ms
        return [StartOffline(at_ms, tuple(alarms))]
