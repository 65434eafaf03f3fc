"""Ray's worker setup hook: runs first in each Ray worker process of a head that the system started."""

import importlib
import os
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Final

import psutil
import wrapt

from recsys.process.process_priority import (
    STARTING,
    VARIABLE,
    begin_session,
    lower_session_priority,
    set_session_priority,
)
from runtime.parts.ray_loopback import keep_on_loopback
from runtime.supervision.processes import NODE_STATE, STATE

# Modules of others, and the modules that change them as soon as they are imported: few workers import them.
_CHANGES: Final = {
    "ray.serve._private.haproxy": "runtime.parts.haproxy_revival",
    "ray.serve._private.proxy_state": "runtime.parts.no_fallback_proxy",
    "uvicorn.protocols.http.httptools_impl": "runtime.parts.header_deadline",
}
_ALONE: Final = -10  # nobody answers meanwhile; below 0 takes the rights of root
_REPLICA: Final = "ray::ServeReplica:"  # name that Ray gives the process


def begin() -> None:
    """Begins a session, lowers the priority where requested, stays on loopback, and hardens the doors."""
    if NODE_STATE in os.environ:
        os.environ[STATE] = os.environ[NODE_STATE]
    begin_session()
    lower_session_priority(int(os.environ.get(VARIABLE, "0")))
    if starting := os.environ.get(STARTING):
        set_session_priority(int(starting) if another_answers() else _ALONE)
    keep_on_loopback()
    for changed, change in _CHANGES.items():
        wrapt.register_post_import_hook(partial(_import, change), changed)


def another_answers() -> bool:
    """Whether another replica of this system runs here: it shall not wait for the one that starts."""
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            is_replica = (process.info["cmdline"] or [""])[0].startswith(_REPLICA)
            if is_replica and process.pid != os.getpid():
                environ = process.environ()
                if os.environ.get(STATE) in (environ.get(STATE), environ.get(NODE_STATE)):
                    return True
    return False


def _import(name: str, changed: ModuleType) -> None:
    importlib.import_module(name)
