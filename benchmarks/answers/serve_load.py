"""What `recsys bench serve` is asked, the doors that requests go to, and one load that is sent to a door."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.answers.bench_serve_state import USERS, user_of
from benchmarks.harness.load_client import Load, offer, post
from benchmarks.harness.worker_processes import answers, end, ways

_HOST: Final = "127.0.0.1"
_LATE_MS: Final = (
    1.0  # a generator that sends later than this, or takes so much of a core, is the bottleneck
)
_BUSY: Final = 0.8
Figures = dict[str, Any]


@dataclass(frozen=True)
class ServeOptions:
    """What is asked of the bench. ``rate``: of the open loop; 0 is half of each door's peak."""

    items: int = 100_000
    candidates: int = 300
    seconds: float = 10.0
    rate: float = 0.0
    overload: float = 0.0  # times the peak; 0: isn't tried
    training: bool = False
    shadow: bool = False
    plain: bool = True  # Serve's own proxy too
    seed: int = 0
    shards: int = 0  # of retrieval: 0 is in the replica


@dataclass(frozen=True)
class Door:
    """Where requests are sent, and whose memory answers them."""

    name: str
    port: int
    pid: int


def send(door: Door, options: ServeOptions, seconds: float, rate: float = 0.0, clients: int = 0) -> Figures:
    """One load from a process of its own; says where that was what limited it."""
    load = Load(
        _HOST,
        door.port,
        [post(_HOST, "/v1/recommend", body) for body in bodies(options)],
        seconds,
        rate,
        clients,
        options.seed,
    )
    told, stop, start = ways(True)
    part = start(offer, load, told)
    try:
        found: Figures = answers(told, "load", 1, [part])[0]
    finally:
        end([part], stop)
    its = found["generator"]
    late = rate > 0 and its["late_p99_ms"] is not None and its["late_p99_ms"] > _LATE_MS
    its["bottleneck"] = bool(late or its["cores_busy"] > _BUSY)
    return found


def bodies(options: ServeOptions) -> list[bytes]:
    """A list of ten for each of the users, in an order that the seed says."""
    order = np.random.default_rng(options.seed).permutation(USERS).tolist()
    return [f'{{"user_id":"{user_of(n)}","n":10}}'.encode() for n in order]
