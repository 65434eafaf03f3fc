"""Python's cyclic garbage collector, where it would take longer than the work.

Each few hundred new objects let the collector look through the young ones, and now and then through all that
the process holds, imported modules included: reading a step's records took four times as long by that.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def settle() -> None:
    """What is there by now (modules, mostly) stays, and isn't looked through again. For a process that has
    imported what it needs: a look through torch's modules takes a tenth of a second."""
    gc.collect()
    gc.freeze()


@contextmanager
def no_collection() -> Iterator[None]:
    """Nothing is collected within, by any thread of the process; counted references free what they free. For
    code that makes thousands of records which end at once."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
