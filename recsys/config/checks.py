"""Checks of configured values: an error gives name, value, expectation and where to change it."""

from math import inf


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}; set it in the configuration")


def check_range(
    config: object, name: str, low: float, high: float = inf, expected: str = ""
) -> None:
    """Checks that the field, named by the last part of a dotted ``name``, is in [low, high]."""
    value = getattr(config, name.rpartition(".")[2])
    limits = f"{low} to {high}" if high < inf else "0 or more" if low == 0 else f"at least {low}"
    check(low <= value <= high, name, value, expected or limits)


def check_positive(config: object, *names: str) -> None:
    """Checks that the fields, named by the last part of dotted names, are above 0."""
    for name in names:
        value = getattr(config, name.rpartition(".")[2])
        check(value > 0, name, value, "a positive number")
