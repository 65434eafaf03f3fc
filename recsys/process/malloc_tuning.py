"""Makes malloc keep freed memory for the next step instead of returning it to the system.

Each training step makes and frees the same arrays. By default glibc returns free memory and gets it back a
moment later page by page: a tenth of the CPU time of workers and shards.
"""

import ctypes
from contextlib import suppress
from typing import Final

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # from malloc.h
_KEPT: Final = 1 << 30  # bytes free at the end of the heap before any are returned
_AHEAD: Final = 64 << 20  # requested from the system at once; takes no memory until written
# Arrays of this size and above are mapped separately and returned when freed; the maximum of glibc. A process
# with tables uses less: the unwritten spare rows of its columns take no memory, but would in reused memory.
OF_STEPS: Final = 32 << 20
BESIDE_TABLES: Final = 4 << 20


def keep_freed_memory(below: int = OF_STEPS) -> bool:
    """Keeps freed arrays below that size, in all threads; False if malloc isn't glibc's."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    options = ((_MMAP_THRESHOLD, below), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AHEAD))
    return all([mallopt(option, value) == 1 for option, value in options])


def return_freed_memory() -> None:
    """Returns memory that was freed in all threads to the system, after work that needed much; where malloc
    isn't glibc's it does nothing."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
