"""What each of Ray's worker processes does first of all: Ray's worker setup hook, where the head is ours."""

import os

from recsys.process.process_priority import (
    STARTING,
    VARIABLE,
    begin_session,
    session_steps_back,
    set_session,
)
from runtime.parts.ray_loopback import keep_on_loopback


def begin() -> None:
    """A session of its own; a lower priority for what was started to step back, for good or until it has
    caught up, before its imports; and no port beyond loopback."""
    begin_session()
    session_steps_back(int(os.environ.get(VARIABLE, "0")))
    if starting := os.environ.get(STARTING):
        set_session(int(starting))
    keep_on_loopback()
