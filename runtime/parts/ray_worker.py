"""Ray's worker setup hook: runs first in each Ray worker process of a head that the system started."""

import importlib
import os
from functools import partial
from types import ModuleType
from typing import Final

import wrapt

from recsys.process.process_priority import (
    STARTING,
    VARIABLE,
    begin_session,
    lower_session_priority,
    set_session_priority,
)
from runtime.parts.ray_loopback import keep_on_loopback

# Modules of others, and the modules that change them as soon as they are imported: few workers import them.
_CHANGES: Final = {
    "ray.serve._private.haproxy": "runtime.parts.haproxy_revival",
    "uvicorn.protocols.http.httptools_impl": "runtime.parts.header_deadline",
}


def begin() -> None:
    """Begins a session, lowers the priority where requested, stays on loopback, and hardens the doors."""
    begin_session()
    lower_session_priority(int(os.environ.get(VARIABLE, "0")))
    if starting := os.environ.get(STARTING):
        set_session_priority(int(starting))
    keep_on_loopback()
    for changed, change in _CHANGES.items():
        wrapt.register_post_import_hook(partial(_import, change), changed)


def _import(name: str, changed: ModuleType) -> None:
    importlib.import_module(name)
