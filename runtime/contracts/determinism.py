"""Contracts of every plug-in that is a function: the result follows from the input, and from nothing else."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Contract = Callable[[Any], None]  # of a plug-in; raises ``Broken``
Outputs = Callable[[Any], Sequence[Callable[[], bytes]]]


class Broken(ValueError):
    """A contract that a plug-in breaks: the input, the result and the expectation."""


def require(holds: object, reason: str) -> None:
    if not holds:
        raise Broken(reason)


def deterministic(calls_of: Outputs) -> dict[str, Contract]:
    """The contracts. ``calls_of`` makes calls of a plug-in with sample inputs, which return the bits of the
    results."""

    def same_output(plugin: Any) -> None:
        for number, call in enumerate(calls_of(plugin)):
            require(call() == call(), f"two calls with sample {number} have different results")

    def hidden_state(plugin: Any) -> None:
        calls = calls_of(plugin)
        forward = [call() for call in calls]
        backward = [call() for call in reversed(calls)][::-1]
        for number, (first, second) in enumerate(zip(forward, backward, strict=True)):
            require(
                first == second, f"the result of sample {number} depends on the calls before it"
            )

    def global_randomness(plugin: Any) -> None:
        calls = calls_of(plugin)
        before = _generators()
        results = [call() for call in calls]
        require(before == _generators(), "a call draws from random or numpy.random")
        random.random(), np.random.random()  # noqa: B018, NPY002
        require(results == [call() for call in calls], "results follow numpy.random or random")

    return {
        "same output": same_output,
        "hidden state": hidden_state,
        "global randomness": global_randomness,
    }


def _generators() -> list[Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return [random.getstate(), name, np.asarray(keys).tobytes(), *rest]
