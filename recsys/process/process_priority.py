"""Lowers the priority of learning processes below answering ones, if CPUs are few.

Imports nothing of this project, since it runs before all imports. Linux shares CPUs between sessions first
("autogroup", if enabled): a part leads a session, so the session's priority must be set too. Ray's workers
begin sessions of their own: as one session they keep others waiting for up to a second while they start
(measured on two cores; with one each 75 ms).
"""

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

# Nice value of a process that Ray starts, set before its first import, which takes a core for seconds.
VARIABLE: Final = "RECSYS_NICE"
# Session priority of an answering process until it has caught up.
STARTING: Final = "RECSYS_NICE_STARTING"
# The same as of learning processes: an answer beside it gets three quarters of a core that both want.
STARTS: Final = "5"
# Set in all processes that a part starts: the part's process, by id and start time. It identifies processes
# of other sessions.
PART: Final = "RECSYS_PART"
_SESSION: Final = Path("/proc/self/autogroup")
_TRIES: Final = 20  # without root it may be set ten times a second, counted over the whole machine
_AGAIN_S: Final = 0.1


def lower_priority(nice: int) -> None:
    """Lowers this process's priority to ``nice`` (0 to 19), unless it is lower already."""
    os.nice(max(0, nice - os.nice(0)))


def begin_session() -> bool:
    """Moves this process into its own session; returns whether it leads one."""
    with suppress(OSError):
        os.setsid()
    if os.getsid(0) != os.getpid():
        with suppress(OSError):
            os.setpgid(0, os.getpgid(os.getppid()))  # a group leader can't begin a session
            os.setsid()
    return os.getsid(0) == os.getpid()


def lower_session_priority(nice: int, session: Path = _SESSION) -> bool:
    """Lowers the priority of this process and, if it leads one, of its session; returns whether the session's
    was set, which needs autogroup."""
    lower_priority(nice)
    return nice > 0 and set_session_priority(nice, session)


def set_session_priority(nice: int, session: Path = _SESSION) -> bool:
    """Sets the priority (-20 to 19) of the session that this process leads; returns whether it was set."""
    if os.getsid(0) != os.getpid() or not session.exists():
        return False
    for _ in range(_TRIES):
        try:
            session.write_text(str(nice))
            return True
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return False
        time.sleep(_AGAIN_S)
    return False
