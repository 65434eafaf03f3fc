"""Shared kernel: events, log, features, model, configuration, observability.

Imports none of the other packages. ``recsys.Recommender`` is a system in the calling process.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Imports the system only for those who ask for it."""
    if name != "Recommender":
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    from importlib import import_module

    return import_module("runtime.one_process.recommender").Recommender
