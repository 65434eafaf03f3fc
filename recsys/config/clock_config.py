"""Configuration of event time."""

from dataclasses import dataclass

from recsys.clock import parse_time_ms
from recsys.config.checks import Section, check, limited

_LATEST_MS = 4_102_444_800_000  # 2100


@dataclass(frozen=True)
class ClockConfig(Section):
    section = "clock"
    # Event time at the first start: ISO time (UTC if it names no zone) or epoch milliseconds; empty: now.
    start: int | str = ""
    # Event time passes so many times as fast as the machine's.
    speed: float = limited(1.0, lambda speed: 0 < speed <= 100_000, "above 0, at most 100000")

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "ISO time or epoch milliseconds, from 1970 to 2100, or nothing for now"
        try:
            start_ms = self.start_ms
        except (ValueError, OverflowError):
            start_ms = -1
        check(start_ms is None or 0 < start_ms < _LATEST_MS, "clock.start", self.start, expected)

    @property
    def start_ms(self) -> int | None:
        """Event time at the first start; None: the machine's."""
        return parse_time_ms(str(self.start)) if self.start != "" else None

    @property
    def is_machine(self) -> bool:
        """Whether event time is the machine's time."""
        return self.start == "" and self.speed == 1.0
