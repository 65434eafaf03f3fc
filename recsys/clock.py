"""The wall clock, in the unit that all times have here. Where time decides, it is handed in instead."""

import time


def wall_ms() -> int:
    """Now, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def is_due(now_ms: int, due_ms: int, every_ms: int) -> bool:
    """Whether what is done every ``every_ms``, next at ``due_ms``, is due. True also if ``due_ms`` lies more
    than ``every_ms`` ahead: the clock was set back."""
    return now_ms >= due_ms or due_ms - now_ms > every_ms
