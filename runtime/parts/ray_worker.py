"""Ray's worker setup hook: runs first in each Ray worker process of a head that the system started."""

import os

from recsys.process.process_priority import (
    STARTING,
    VARIABLE,
    begin_session,
    lower_session_priority,
    set_session_priority,
)
from runtime.parts.ray_loopback import keep_on_loopback


def begin() -> None:
    """Begins a session, lowers the priority where requested, and stays on loopback."""
    begin_session()
    lower_session_priority(int(os.environ.get(VARIABLE, "0")))
    if starting := os.environ.get(STARTING):
        set_session_priority(int(starting))
    keep_on_loopback()
