"""Tunes garbage collection and thread switching of a process for low latency. Collections of all that a
process holds, imported modules included, made reading a step's records four times as slow."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from recsys.process.process_priority import set_session_priority

# Each call into compiled code releases the interpreter, and getting it back takes up to this long. Python's
# default of 5 ms is the time of a whole answer.
SWITCH_S: Final = 0.0005


def tune_for_latency() -> None:
    """Tunes a process that has loaded its data, before it answers: excludes all objects from garbage
    collection, shortens the turns of threads, and restores a priority lowered while starting."""
    freeze_gc()
    set_session_priority(0)
    sys.setswitchinterval(SWITCH_S)


def freeze_gc() -> None:
    """Excludes all current objects (mostly modules) from garbage collection. Call it after imports: scanning
    torch's modules takes a tenth of a second."""
    gc.collect()
    gc.freeze()


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pauses garbage collection in all threads, for code that makes thousands of short-lived records;
    reference counting still frees them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def gc_seldom(objects: int = 100_000) -> Iterator[None]:
    """Collects garbage once in so many new objects, for code that holds millions and makes few cycles: by
    default scanning them takes a tenth of its time and more."""
    before = gc.get_threshold()
    gc.set_threshold(objects, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
