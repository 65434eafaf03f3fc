"""How what learns steps back for what answers, where processors are few. It imports nothing of ours: it runs
before all imports.

Linux shares processors between sessions first ("autogroup", where it is switched on), and each part is the
leader of one: its nice value then says nothing to other parts, and that of the session has to be set too.

All that Ray runs would be one session. Measured (Linux 6.18, two cores): while processes of it start, others
wait for a processor for up to a second, whatever their nice value; with a session for each, for 75 ms. So
Ray's workers begin one.
"""

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

# Of a process that Ray starts: how far it steps back before its first import, which takes a core for seconds.
VARIABLE: Final = "RECSYS_NICE"
# Of one that answers, once it has caught up: how far its session steps back until then.
STARTING: Final = "RECSYS_NICE_STARTING"
# As far as what learns: beside it an answer has three quarters of a core that both want.
STARTS: Final = "5"
# Of all that a part starts: the part's process, by id and start. By it are known those of other sessions.
PART: Final = "RECSYS_PART"
_SESSION: Final = Path("/proc/self/autogroup")
_TRIES: Final = 20  # who isn't root may set it ten times a second, counted over the whole machine
_AGAIN_S: Final = 0.1


def lower_priority(nice: int) -> None:
    """Lowers this process's priority to ``nice`` (0 to 19), once: what is lower already stays."""
    os.nice(max(0, nice - os.nice(0)))


def begin_session() -> bool:
    """A session of its own for this process, which another started in its: whether it has one."""
    with suppress(OSError):
        os.setsid()
    if os.getsid(0) != os.getpid():
        with suppress(OSError):
            os.setpgid(0, os.getpgid(os.getppid()))  # who leads a group can't begin a session
            os.setsid()
    return os.getsid(0) == os.getpid()


def lower_session_priority(nice: int, session: Path = _SESSION) -> bool:
    """Lowers the priority of this process and, as the leader of its session, of that: whether that of the
    session was set. It isn't where the system knows none."""
    lower_priority(nice)
    return nice > 0 and set_session_priority(nice, session)


def set_session_priority(nice: int, session: Path = _SESSION) -> bool:
    """Sets the priority (0 to 19) of the session that this process leads, up or down: whether it was set."""
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
