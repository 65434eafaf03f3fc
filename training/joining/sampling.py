"""Samples negative examples by a hash, so that every run over a log samples the same ones."""

from collections.abc import Iterable
from typing import Final

from recsys.events.hashing import uniform

_SEED: Final = 0x5A3D


def is_kept(request_id: str, index: int, rate: float) -> bool:
    """Whether sampling at ``rate`` keeps an example without an engagement."""
    return rate >= 1.0 or uniform(_SEED, request_id, index) < rate


def represented_examples(labels: Iterable[float], rate: float, sampled_out: bool) -> float:
    """Number of examples this one represents: 1 / sampling rate for a sampled negative. A sampled-out example
    that came back with a label represents itself only."""
    return 1.0 if any(labels) or sampled_out else 1.0 / rate
