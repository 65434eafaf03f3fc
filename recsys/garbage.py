"""A pause of Python's cyclic garbage collector, for code that makes thousands of records which end at once.

Each few hundred new objects let the collector look through the young ones, and now and then through all that
the process holds, imported modules included: reading a step's records took four times as long by that.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Nothing is collected within, by any thread of the process; counted references free what they free."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
