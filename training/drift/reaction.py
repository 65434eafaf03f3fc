"""Decides the reactions to drift alarms, as records of ``control``: other parts act on them.

An alarm raises the learning rate by a bounded factor that decays as examples come, publishes the rows of
every step at once, and requests the offline job. Without alarms, rows are gathered over more and more steps
before they are published. Counts are of examples and times are event time, so the same alarms lead to the
same reactions.
"""

from collections.abc import Sequence
from typing import Final

from recsys.config.part_configs import DriftConfig
from recsys.events.control_records import Alarm, Reaction
from training.drift.monitors import CALIBRATION, LOSS

_STEP_CHANGE: Final = 1.05  # relative change of the rate from which on it is set again
_RATE_EXAMPLES: Final = 8_000  # half-life of a raised rate
_OFFLINE_EVERY_MS: Final = 6 * 3_600_000  # minimum between two requests of the offline job
# Alarming numbers within ``_RATE_EXAMPLES`` that call for the offline job, if no loss is among them.
_OFFLINE_FEATURES: Final = 3


class ReactionPolicy:
    """Turns alarms into reactions: call ``step`` once for each step, with its alarms (mostly none).
    ``reaction``: the newest one; a restart continues from it. ``offline_ms``: time of the last request of the
    offline job."""

    def __init__(
        self,
        config: DriftConfig | None = None,
        reaction: Reaction | None = None,
        offline_ms: int | None = None,
    ) -> None:
        self.config = config or DriftConfig()
        self.reaction = reaction or Reaction()
        self._rate = self._set_to = self.reaction.rate
        self._offline_ms = offline_ms
        self._calm = 0.0  # examples since the last alarm, or since more steps were gathered
        self._recent: list[tuple[float, Alarm]] = []  # with ``_seen`` at the alarm
        self._seen = 0.0  # examples

    def step(self, alarms: Sequence[Alarm], examples: float, at_ms: int) -> bool:
        """Takes a step of this many examples; returns whether there is a new reaction."""
        self._seen += examples
        rate, every = self.reaction.rate, self.reaction.publish_every
        offline: list[Alarm] = []
        if alarms:
            self._recent += [(self._seen, alarm) for alarm in alarms]
            self._rate, self._calm, every = self.config.most_rate, 0.0, 1
            offline = self._calling_offline(at_ms)
        else:
            self._rate = 1.0 + (self._rate - 1.0) * 0.5 ** (examples / _RATE_EXAMPLES)
            every = self._gathered(examples, every)
        if is_set := self._sets_rate():
            rate = round(self._rate, 3)
        is_changed = is_set or every != self.reaction.publish_every
        if not is_changed and not offline:
            return False
        because = dict.fromkeys(describe(a) for a in (*(alarms if is_changed else ()), *offline))
        self.reaction = Reaction(
            rate=rate, publish_every=every, offline=bool(offline), because=list(because),
            time_ms=at_ms,
        )  # fmt: skip
        return True

    def _sets_rate(self) -> bool:
        """Whether the rate has moved far enough to be set again."""
        if self._rate < _STEP_CHANGE:
            self._rate = 1.0
        ratio = self._rate / self._set_to
        if ratio == 1.0 or (1 / _STEP_CHANGE < ratio < _STEP_CHANGE and self._rate > 1.0):
            return False
        self._set_to = self._rate
        return True

    def _gathered(self, examples: float, every: int) -> int:
        """Steps to gather without an alarm."""
        self._calm += examples
        if self._calm < self.config.calm_examples or every >= self.config.most_gathered:
            return every
        self._calm = 0.0
        return min(2 * every, self.config.most_gathered)

    def _calling_offline(self, at_ms: int) -> list[Alarm]:
        """Recent alarms, if they call for the offline job. One alarm of a loss suffices; of features several
        must agree, as one is mostly a single field."""
        oldest = self._seen - _RATE_EXAMPLES
        self._recent = [(seen, a) for seen, a in self._recent if seen >= oldest]
        alarms = [alarm for _, alarm in self._recent]
        is_loss = any(alarm.kind in (LOSS, CALIBRATION) for alarm in alarms)
        distinct = len({(alarm.kind, alarm.what) for alarm in alarms})
        if not is_loss and distinct < _OFFLINE_FEATURES:
            return []
        last_ms = self._offline_ms
        if last_ms is not None and at_ms - last_ms < _OFFLINE_EVERY_MS:
            return []
        self._offline_ms = at_ms
        return alarms


def describe(alarm: Alarm) -> str:
    """E.g. ``loss like: 0.7, expected 0.6``."""
    return f"{alarm.kind} {alarm.what}: {alarm.found:.4g}, expected {alarm.expected:.4g}"
