"""Which examples without any engagement are learned from: a hash decides, never a generator."""

from typing import Final

from recsys.hashing import uniform

_SEED: Final = 0x5A3D


def is_kept(request_id: str, index: int, rate: float) -> bool:
    """Whether sampling at ``rate`` keeps an example without an engagement: the same on every run and log."""
    return rate >= 1.0 or uniform(_SEED, request_id, index) < rate
