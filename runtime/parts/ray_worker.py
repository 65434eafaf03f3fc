"""What each of Ray's worker processes does first of all: Ray's worker setup hook, where the head is ours."""

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
    """A session of its own; a lower priority for what was started to step back, for good or until it has
    caught up, before its imports; and no port beyond loopback."""
    begin_session()
    lower_session_priority(int(os.environ.get(VARIABLE, "0")))
    if starting := os.environ.get(STARTING):
        set_session_priority(int(starting))
    keep_on_loopback()
