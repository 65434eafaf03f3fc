"""Validates the label fields of training examples. Imports no model, so that any part can use it."""

from typing import Final

from recsys.events.records import TrainingExample

_LEAST: Final = 1e-6  # share that may have arrived


def is_open(example: TrainingExample) -> bool:
    """Whether its labels aren't final, or it represents other examples."""
    return bool(example.arrived) or example.sampled_out or example.kept != 1.0


def label_fault(example: TrainingExample, labels: int) -> str:
    """The reason why an example with so many labels is invalid; empty if it is valid."""
    if example.sampled_out and len(example.previous) != labels:
        return f"it has {len(example.previous)} previous labels, expected {labels}"
    if not 0.0 < example.kept <= 1.0:
        return f"kept is {example.kept}, expected above 0, at most 1"
    least = 0.0 if example.correction or example.sampled_out else _LEAST
    if len(example.arrived) not in (0, labels) or not all(
        [least <= f <= 1 for f in example.arrived]
    ):
        return f"arrived is {example.arrived}, expected {labels} shares of {least} to 1"
    return ""
