"""Model configuration of a student: the system's, with narrower rows and smaller layers. A student replaces
its teacher in serving, so everything outside the ranker must stay: feature set and retrieval."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Final

from recsys.config.system_config import ModelConfig

MAY_DIFFER: Final = ("dim", "hidden")
OF_EPOCH: Final = (*MAY_DIFFER, "ranker")  # may differ between a candidate and the system
_EXAMPLE: Final = "e.g. dim=8,hidden=64x32"


def student_model(text: str, system: ModelConfig) -> ModelConfig:
    """Parses a model, e.g. ``dim=8,hidden=64x32``; other fields are the system's.

    Raises ValueError for a field that may not differ, an unreadable value, and a model that is no smaller.
    """
    changes: dict[str, int | tuple[int, ...]] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if name not in MAY_DIFFER or not equals or name in changes:
            raise ValueError(
                f"student: {part.strip()!r} is given, expected {' and '.join(MAY_DIFFER)}, each once at "
                f"most, {_EXAMPLE}: all else is the system's"
            )
        sizes = _sizes(name, value)
        changes[name] = sizes if name == "hidden" else sizes[0]
    model = replace(system, **changes)  # type: ignore[arg-type]
    if not is_smaller(model, system):
        raise ValueError(
            f"student: dim is {model.dim}, hidden {shown(model.hidden)}, expected no number above the "
            f"system's ({system.dim}, {shown(system.hidden)}) and one below: give smaller numbers"
        )
    return model


def is_smaller(model: ModelConfig, system: ModelConfig) -> bool:
    """Whether no layer is wider than the system's, and one is narrower."""
    fits = model.dim <= system.dim and len(model.hidden) <= len(system.hidden)
    fits = fits and all(a <= b for a, b in zip(model.hidden, system.hidden, strict=False))
    return fits and (model.dim, model.hidden) != (system.dim, system.hidden)


def fixed_differences(model: ModelConfig, system: ModelConfig) -> dict[str, tuple[object, object]]:
    """Fields of a candidate that may not differ and do, with its and the system's value."""
    pairs = {f.name: (getattr(model, f.name), getattr(system, f.name)) for f in fields(ModelConfig)}
    return {n: pair for n, pair in pairs.items() if n not in OF_EPOCH and pair[0] != pair[1]}


def shown(hidden: Sequence[int]) -> str:
    """Hidden layers as written in options, e.g. ``64x32``; ``none`` without any."""
    return "x".join(map(str, hidden)) or "none"


def _sizes(name: str, text: str) -> tuple[int, ...]:
    words = text.split("x") if name == "hidden" else [text]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"student: {name} is {text!r}, expected positive numbers, {_EXAMPLE}")
    return tuple(map(int, words))
