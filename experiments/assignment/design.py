"""What an experiment is to show, and how it grows: the parts of its file that say nothing of any arm."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

# Whom arms are given to. A list or a session isn't one: arms would mix within a user.
UNIT: Final = "user"


@dataclass(frozen=True)
class Metrics:
    """``primary`` decide. A guardrail is a metric with the relative loss that is tolerated: the experiment
    ends once it is known to be worse by more. ``find``: the smallest relative effect that is worth finding;
    intervals are tightest there. ``alpha``: the chance that any primary interval is ever wrong."""

    primary: tuple[str, ...] = ()
    guardrails: dict[str, float] = field(default_factory=dict)
    find: float = 0.02
    alpha: float = 0.05

    def __post_init__(self) -> None:
        _check(0 < self.find <= 1, "find", self.find, "a relative effect above 0, at most 1")
        _check(0 < self.alpha < 0.5, "alpha", self.alpha, "a probability between 0 and 0.5")
        _check(len(set(self.primary)) == len(self.primary), "primary", self.primary, "each once")
        for name, loss in self.guardrails.items():
            _check(0 <= loss < 1, f"guardrails.{name}", loss, "a relative loss from 0, below 1")


@dataclass(frozen=True)
class Ramp:
    """Shares of the layer's users, growing; the experiment's own ``traffic`` comes after the last. Each
    stands for so many ``hours``, and then for as long as fewer than ``users`` are in the experiment."""

    steps: tuple[float, ...] = ()
    hours: float = 24.0
    users: int = 100

    def __post_init__(self) -> None:
        grows = all(0 < a < b for a, b in zip(self.steps, (*self.steps, 1.0)[1:], strict=True))
        _check(grows, "steps", list(self.steps), "growing shares above 0, below 1")
        _check(self.hours > 0, "hours", self.hours, "more than 0")
        _check(self.users >= 0, "users", self.users, "0 or more")


def time_ms_of(value: Any) -> int:
    """Milliseconds of what stands in a file: a date, a time (UTC where it names no zone), or milliseconds.
    Raises ValueError."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"time is {value!r}, expected one like 2026-11-30T08:00Z") from None
    if isinstance(value, datetime):
        zoned = value if value.tzinfo else value.replace(tzinfo=UTC)
        return int(zoned.timestamp() * 1000)
    if isinstance(value, date):
        return int(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() * 1000)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"time is {value!r}, expected one like 2026-11-30T08:00Z")


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}")
