"""Which examples without any engagement are learned from: a hash decides, never a generator."""

from collections.abc import Iterable
from typing import Final

from recsys.events.hashing import uniform

_SEED: Final = 0x5A3D


def is_kept(request_id: str, index: int, rate: float) -> bool:
    """Whether sampling at ``rate`` keeps an example without an engagement: the same on every run and log."""
    return rate >= 1.0 or uniform(_SEED, request_id, index) < rate


def represented_examples(labels: Iterable[float], kept: float, sampled_out: bool) -> float:
    """Of how many examples it tells: a negative, of which ``kept`` is the share that sampling keeps, also of
    those that were left out. One that was left out itself, and came back with a label, tells of itself."""
    return 1.0 if any(labels) or sampled_out else 1.0 / kept
