"""A world whose tastes are A, then B, then A again: it measures what a model remembers on return.

In B everybody has the taste of somebody else (``tastes``), or other people come with other tastes
(``people``), or B equals A (``nothing``), which shows the second A without a B. Within a phase tastes are
constant, so that the second A equals the first; items and habits don't change.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from examples.short_video.world import Request, World
from recsys.events.event_types import User
from recsys.events.hashing import Id

PHASES: Final = ("A", "B", "A")
CHANGES: Final = ("tastes", "people", "nothing")


class WorldABA(World):
    """``phase_ms``: duration of each of the three phases. ``change``: what differs in B."""

    def __init__(
        self, seed: int = 0, *sizes: Any, phase_ms: int, change: str = "tastes", **options: Any
    ) -> None:
        super().__init__(seed, *sizes, **options)
        if change not in CHANGES:
            raise ValueError(f"change is {change!r}, expected one of {', '.join(CHANGES)}")
        self.change = change
        if phase_ms < 1:
            raise ValueError(f"phase_ms is {phase_ms}, expected a positive number of milliseconds")
        self.phase_ms = phase_ms

    def phase(self, time_ms: int) -> int:
        """0, 1 or 2: the first A, B, and A again, which never ends."""
        return min(max(0, time_ms - self.start_ms) // self.phase_ms, len(PHASES) - 1)

    def starts_ms(self) -> Sequence[int]:
        """Begin of each phase."""
        return [self.start_ms + n * self.phase_ms for n in range(len(PHASES))]

    def users(self) -> list[User]:
        others = self.num_users if self.change == "people" else 0
        return [self.user(f"u{index}") for index in range(self.num_users + others)]

    def next_requests(self, from_ms: int, until_ms: int) -> Iterator[Request]:
        for request in super().next_requests(from_ms, until_ms):
            if self.change == "people" and PHASES[self.phase(request.time_ms)] == "B":
                number = int(request.user_id[1:]) + self.num_users
                request = Request(request.time_ms, f"u{number}")
            yield request

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        is_other_taste = self.change != "nothing" and PHASES[self.phase(time_ms)] == "B"
        return super().taste(f"{user_id}/B" if is_other_taste else user_id, tag, self.start_ms)
