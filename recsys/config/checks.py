"""Limits of configuration fields, checked on construction.

An error gives name, value, expectation and where to change it.
"""

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from math import inf, isfinite
from typing import Any, Final, TypeVar

T = TypeVar("T")
REQUIRED: Final[Any] = MISSING  # as default: the field has none


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}; set it in the configuration")


def check_finite(name: str, value: object) -> None:
    """Raises ValueError for a number in it that is infinite or none: JSON can't hold it."""
    if isinstance(value, dict):
        for key, each in value.items():
            check_finite(f"{name}.{key}", each)
    check(not isinstance(value, float) or isfinite(value), name, value, "a finite number")


class Section:
    """Base of the configuration's dataclasses: checks the limits of their fields."""

    section = ""

    def section_name(self) -> str:
        return self.section

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value, name = getattr(self, each.name), f"{self.section_name()}.{each.name}"
            check_finite(name, value)
            if limits := each.metadata:
                check(bool(limits["holds"](value)), name, value, limits["expected"])

    def check_needs(self, needed: str, is_set: object, *names: str) -> None:
        """Raises ValueError for fields that are set without the one that they need."""
        for name in names:
            value, section = getattr(self, name), self.section_name()
            expected = f"none without {section}.{needed}"
            check(bool(is_set) or not value, f"{section}.{name}", value, expected)


def bounded(default: T, low: float, high: float = inf) -> T:
    """A field in [low, high]."""
    limits = f"{low} to {high}" if high < inf else "0 or more" if low == 0 else f"at least {low}"
    return limited(default, lambda value: low <= value <= high, limits)


def positive(default: T, expected: str = "a positive number") -> T:
    """A field above 0."""
    return limited(default, lambda value: value > 0, expected)


def fraction(default: T) -> T:
    """A field in (0, 1]."""
    return limited(default, lambda value: 0 < value <= 1, "above 0, at most 1")


def choice(default: T, *choices: T) -> T:
    """A field with one of some values."""
    names = " or ".join(map(str, choices)) if len(choices) == 2 else f"one of {choices}"
    return limited(default, choices.__contains__, names)


def limited(default: T, holds: Callable[[Any], object], expected: str) -> T:
    """A field for which ``holds`` is true."""
    limits = {"holds": holds, "expected": expected}
    return field(default=default, metadata=limits)
