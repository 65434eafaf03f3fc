"""Contracts of every plug-in that is a function: the result follows from the input, and from nothing else."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Takes a plug-in; raises an exception with the reason if the plug-in breaks it.
Contract = Callable[[Any], None]
Calls = Sequence[Callable[[], bytes]]


def require(holds: object, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


def version(plugin: Any) -> None:
    """The contract of plug-ins that are named with a version."""
    require(getattr(plugin, "version", ""), "it has no attribute version")


def deterministic(calls_of: Callable[[Any], Calls]) -> dict[str, Contract]:
    """The contracts. ``calls_of`` makes calls of a plug-in with samples. They return the bits of a result,
    nothing without one, and raise ValueError for one of a wrong shape."""

    def shape(plugin: Any) -> None:
        require(any([call() for call in calls_of(plugin)]), "no sample has a result")

    def same_output(plugin: Any) -> None:
        same = all([call() == call() for call in calls_of(plugin)])
        require(same, "two calls with one input have other results")

    def hidden_state(plugin: Any) -> None:
        calls = calls_of(plugin)
        forward, backward = [call() for call in calls], [call() for call in reversed(calls)]
        require(forward == backward[::-1], "results depend on the calls before them")

    def global_randomness(plugin: Any) -> None:
        before = _generators()
        for call in calls_of(plugin):
            call()
        require(before == _generators(), "it draws from random or numpy.random")

    contracts = shape, same_output, hidden_state, global_randomness
    return {contract.__name__.replace("_", " "): contract for contract in contracts}


def _generators() -> list[str]:
    return [repr(random.getstate()), repr(np.random.get_state())]
