"""Metrics and ramp of an experiment: the parts of its file that concern no single arm.

A metric is a ratio of two sums that each user has. ``long_view`` (any label of the schema) is long views per
shown item, ``watch_s`` seconds per shown item; ``long_view_per_user``, ``watch_s_per_user`` and
``shown_per_user`` are per user who was given an arm. Users have different numbers of items, so the variance
of a rate of items comes from the delta method (experiments/statistics/effect.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

from recsys.config.policy_config import UNWANTED

UNIT: Final = "user"  # of assignment; lists or sessions would mix arms within a user
SHOWN: Final = "shown"
WATCH: Final = "watch_s"
USER: Final = "user"
_PER_USER: Final = "_per_user"


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}")


@dataclass(frozen=True)
class Metrics:
    """``primary`` metrics decide. A guardrail maps a metric to its tolerated relative loss: the experiment
    ends once it is known to be worse. ``find``: smallest relative effect worth finding, at which intervals
    are tightest. ``alpha``: probability that any primary interval is ever wrong."""

    primary: tuple[str, ...] = ()
    guardrails: dict[str, float] = field(default_factory=dict)
    find: float = 0.02
    alpha: float = 0.05

    def __post_init__(self) -> None:
        check(0 < self.find <= 1, "find", self.find, "a relative effect above 0, at most 1")
        check(0 < self.alpha < 0.5, "alpha", self.alpha, "a probability between 0 and 0.5")
        check(len(set(self.primary)) == len(self.primary), "primary", self.primary, "each once")
        for name, loss in self.guardrails.items():
            check(0 <= loss < 1, f"guardrails.{name}", loss, "a relative loss from 0, below 1")


@dataclass(frozen=True)
class Ramp:
    """Growing shares of the layer's users before the experiment's full ``traffic``. Each lasts ``hours``, and
    until ``users`` are in the experiment."""

    steps: tuple[float, ...] = ()
    hours: float = 24.0
    users: int = 100

    def __post_init__(self) -> None:
        grows = all(0 < a < b for a, b in zip(self.steps, (*self.steps, 1.0)[1:], strict=True))
        check(grows, "steps", list(self.steps), "growing shares above 0, below 1")
        check(self.hours > 0, "hours", self.hours, "more than 0")
        check(self.users >= 0, "users", self.users, "0 or more")


@dataclass(frozen=True)
class Metric:
    """Σ ``numerator`` / Σ ``denominator`` over an arm's users. The denominator ``user`` is 1 for each."""

    name: str
    numerator: str
    denominator: str = SHOWN
    higher_is_better: bool = True


def metric_of(name: str, labels: Sequence[str], unwanted: Sequence[str] = UNWANTED) -> Metric:
    """The metric with a name; raises ValueError if these labels don't give it."""
    numerator, per_user = name.removesuffix(_PER_USER), name.endswith(_PER_USER)
    rates = (*labels, WATCH)
    if numerator not in rates and not (per_user and numerator == SHOWN):
        raise ValueError(
            f"metric is {name!r}, expected one of {', '.join(rates)} (for each shown item), one of them with "
            f"{_PER_USER!r} behind it, or '{SHOWN}{_PER_USER}'"
        )
    return Metric(name, numerator, USER if per_user else SHOWN, numerator not in unwanted)


def sums_of(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Names of the sums per user that these metrics need, sorted; ``shown`` always, ``user`` never."""
    names = {SHOWN} | {name for m in metrics for name in (m.numerator, m.denominator)}
    return tuple(sorted(names - {USER}))


def time_ms_of(value: Any) -> int:
    """Milliseconds of a date, a time (UTC unless it has a zone) or milliseconds. Raises ValueError."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"time is {value!r}, expected one like 2026-11-30T08:00Z") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"time is {value!r}, expected one like 2026-11-30T08:00Z")
