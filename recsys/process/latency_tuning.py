"""A process that answers many short requests: Python itself shall not make one of them wait."""

import sys
from typing import Final

from recsys.process.gc_control import settle
from recsys.process.process_priority import set_session

# Each call into compiled code lets other threads run Python, and whoever wants it back waits for as long as
# they like, at most so long. By Python's default that is 5 ms, the time of a whole answer.
SWITCH_S: Final = 0.0005


def steady() -> None:
    """For a process that has read what it answers from, before it answers: all that is held stays, and isn't
    looked through again for garbage (a second, for a million items); threads take short turns; and the
    session that stepped back while it started does so no longer."""
    settle()
    set_session(0)
    sys.setswitchinterval(SWITCH_S)
