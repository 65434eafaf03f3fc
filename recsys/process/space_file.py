"""The file ``state/run/space.json``: space level and figures, rewritten each second by the supervisor."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from recsys.clock import machine_ms
from recsys.process.disk_budget import Level, Space
from recsys.process.slot_file import read_slots

FILE: Final = "space.json"
_STALE_MS: Final = 60_000  # its writer has ended: nobody saves space, so nothing is restricted
_READ_EVERY_S: Final = 1.0


def read_space(state: str | Path, now_ms: int) -> Space | None:
    """The newest figures; None if there are none, or only old ones."""
    try:
        space = msgspec.json.decode(read_slots(Path(state) / "run" / FILE), type=Space)
    except (OSError, msgspec.MsgspecError):
        return None
    return space if now_ms - space.time_ms < _STALE_MS else None


class SpaceReader:
    """Reads the file once a second."""

    def __init__(self, state: str | Path, now_ms: Callable[[], int] = machine_ms) -> None:
        self._state, self._now_ms = state, now_ms
        self._due_s = 0.0
        self._space: Space | None = None

    def read(self) -> Space | None:
        """Figures of at most a second ago; None: unknown."""
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + _READ_EVERY_S
            self._space = read_space(self._state, self._now_ms())
        return self._space

    @property
    def level(self) -> Level:
        """``OK`` where it is unknown."""
        space = self.read()
        return Level.OK if space is None else space.level

    def is_full(self) -> bool:
        """Whether there is no space for events."""
        return self.level is Level.FULL
