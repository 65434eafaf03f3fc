"""Memory that malloc keeps for the next step instead of giving it back to the system after each.

Each step of training makes the same arrays of a megabyte or so and frees them. By itself glibc hands what is
free at the end of its heap back, and gets it again a moment later page by page, each zeroed by the kernel and
met by a fault: a tenth of the processor time of workers and shards.
"""

import ctypes
from typing import Final

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_KEPT: Final = 1 << 30  # bytes free at the end of the heap before any go back
_AHEAD: Final = 64 << 20  # asked of the system at once; takes no memory until it is written to
# From this size on an array is the system's own, and goes back when it is freed: the most that glibc takes.
# Beside tables it is less: their columns have room that takes no memory as long as nobody writes to it, which
# room in memory that was in use before would.
OF_STEPS: Final = 32 << 20
BESIDE_TABLES: Final = 4 << 20


def keep_freed_memory(below: int = OF_STEPS) -> bool:
    """Keeps what is freed of arrays of less than ``below`` bytes, for all threads of the process from now on;
    False where malloc can't be told (it isn't glibc's)."""
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = ((_MMAP_THRESHOLD, below), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AHEAD))
    return all([tell(name, value) == 1 for name, value in wanted])
