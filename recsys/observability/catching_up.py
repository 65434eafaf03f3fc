"""How far a fold is behind its topic, and whether that is worth a word."""

from collections.abc import Mapping
from typing import Final

import msgspec

_LEAST: Final = 1_000  # records …
_LEAST_S: Final = 10.0  # … and seconds: a fold that is less behind keeps up


class CatchingUp(msgspec.Struct, frozen=True):
    """A fold that doesn't keep up. ``per_s``: records that it reads; ``left_s``: until it is there, if no
    more come; None: unknown."""

    behind: int
    per_s: float
    left_s: float | None

    def __str__(self) -> str:
        left = "" if self.left_s is None else f", {duration(self.left_s)} left"
        return f"{self.behind:,} behind, {self.per_s:,.0f} a second{left}"


def catching_up(behind: int, per_s: float) -> CatchingUp | None:
    """None for a fold that keeps up."""
    if behind < max(_LEAST, _LEAST_S * per_s):
        return None
    return CatchingUp(behind, round(per_s, 1), round(behind / per_s, 1) if per_s else None)


def said(states: Mapping[str, CatchingUp]) -> str:
    """A sentence about some; empty for none."""
    each = "; ".join(f"{name}: {state}" for name, state in states.items())
    return f"catching up: {each}" if each else ""


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``6 min`` or ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
