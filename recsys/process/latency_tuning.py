"""A process that answers many short requests: Python itself shall not make one of them wait."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from recsys.process.process_priority import set_session_priority

# Each call into compiled code lets other threads run Python, and whoever wants it back waits for as long as
# they like, at most so long. By Python's default that is 5 ms, the time of a whole answer.
SWITCH_S: Final = 0.0005


def tune_for_latency() -> None:
    """For a process that has read what it answers from, before it answers: all that is held stays, and isn't
    looked through again for garbage (a second, for a million items); threads take short turns; and the
    session that stepped back while it started does so no longer."""
    freeze_gc()
    set_session_priority(0)
    sys.setswitchinterval(SWITCH_S)


def freeze_gc() -> None:
    """What is there by now (modules, mostly) stays, and isn't looked through again. For a process that has
    imported what it needs: a look through torch's modules takes a tenth of a second."""
    gc.collect()
    gc.freeze()


@contextmanager
def gc_paused() -> Iterator[None]:
    """Nothing is collected within, by any thread of the process; counted references free what they free. For
    code that makes thousands of records which end at once."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
