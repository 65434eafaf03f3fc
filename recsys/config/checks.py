"""Limits of configuration fields, checked on construction.

An error gives name, value, expectation and where to change it.
"""

from collections.abc import Callable
from dataclasses import field, fields
from math import inf
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}; set it in the configuration")


class Section:
    """Base of the configuration's dataclasses: checks the limits of their fields."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        for limited in fields(self):  # type: ignore[arg-type]
            if limited.metadata:
                value = getattr(self, limited.name)
                holds, expected = limited.metadata["holds"], limited.metadata["expected"]
                check(holds(value), f"{self.section}.{limited.name}", value, expected)


def bounded(default: T, low: float, high: float = inf, expected: str = "") -> T:
    """A field in [low, high]."""
    limits = f"{low} to {high}" if high < inf else "0 or more" if low == 0 else f"at least {low}"
    return _limited(default, lambda value: low <= value <= high, expected or limits)


def positive(default: T, expected: str = "a positive number") -> T:
    """A field above 0."""
    return _limited(default, lambda value: value > 0, expected)


def fraction(default: T) -> T:
    """A field in (0, 1]."""
    return _limited(default, lambda value: 0 < value <= 1, "above 0, at most 1")


def choice(default: T, *choices: T) -> T:
    """A field with one of some values."""
    return _limited(default, choices.__contains__, f"one of {', '.join(map(str, choices))}")


def _limited(default: T, holds: Callable[[Any], bool], expected: str) -> T:
    limits = {"holds": holds, "expected": expected}
    return field(default=default, metadata=limits)
