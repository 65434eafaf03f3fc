"""Options of `recsys bench serve`, the measured doors, and one load that is sent to a door."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.answers.bench_serve_state import USERS, user_of
from benchmarks.harness.commands import Figures
from benchmarks.harness.load_client import Load, offer, post
from benchmarks.harness.worker_processes import run_process

_HOST: Final = "127.0.0.1"
_LATE_MS: Final = 1.0  # a generator that sends later than this, or is busier than _BUSY, is the bottleneck
_BUSY: Final = 0.8  # of a core


@dataclass(frozen=True)
class ServeOptions:
    """Options of the bench. ``rate``: of the open loop; 0 is half of each door's peak."""

    items: int = 100_000
    candidates: int = 300
    seconds: float = 10.0
    rate: float = 0.0
    overload: float = 0.0  # times the peak; 0: not measured
    seed: int = 0


@dataclass(frozen=True)
class Door:
    """An address that requests are sent to, and the process behind it."""

    name: str
    port: int
    pid: int


def send(door: Door, options: ServeOptions, seconds: float, rate: float = 0.0, clients: int = 0) -> Figures:
    """Sends one load from a process of its own; marks the generator when it was the bottleneck."""
    load = Load(
        _HOST,
        door.port,
        [post(_HOST, "/v1/recommend", body) for body in bodies(options)],
        seconds,
        rate,
        clients,
        options.seed,
    )
    figures: Figures = run_process("load", offer, load)
    generator = figures["generator"]
    late_ms = generator["late_p99_ms"] if rate > 0 else None
    generator["bottleneck"] = (late_ms or 0) > _LATE_MS or generator["cores_busy"] > _BUSY
    return figures


def bodies(options: ServeOptions) -> list[bytes]:
    """Request bodies: a list of ten for each of the users, in a seeded order."""
    order = np.random.default_rng(options.seed).permutation(USERS).tolist()
    return [f'{{"user_id":"{user_of(n)}","n":10}}'.encode() for n in order]
