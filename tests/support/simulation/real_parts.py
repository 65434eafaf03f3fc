"""The way of an example as real processes over a SQLite log and sockets, to be killed at any time.

Shards with write-ahead files and snapshots, two workers, joiner and sequencer are those of the running
system; what they learn is the simulator's counting table. Clocks run faster, so that a short run sees many
snapshots.
A part may have a bug planted (``tests.support.simulation.planted_bugs``), which the checks must then find.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
import torch

from parameter_server.rpc.parameter_client import ShardedClient, WorkerId, hello, part_of
from parameter_server.rpc.shard_service import ShardService
from parameter_server.rpc.transport import Address, SocketChannel, SocketServer
from parameter_server.shard.shard import ShardSpec
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from parameter_server.storage.wal import Wal
from recsys.config.log_config import LogConfig
from recsys.config.system_config import Config
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, STEPS, Delta, unpack
from recsys.log.protocol import Append, Log
from recsys.process.open_log import open_log
from recsys.process.part_snapshot import PartState
from tests.support.simulation import planted_bugs as planted
from tests.support.simulation.simulator import (
    CONFIG,
    DENSE,
    PUBLISHED,
    SHARDS,
    SNAPSHOT_EVERY,
    SPEC,
    ManyLanes,
)
from tests.support.simulation.simulator_learner import CountingLearner
from tests.support.training.small_feed import FEATURES, PARTITIONS
from training.continual.worker import Worker
from training.joining.joiner_loop import JoinerLoop

WORKERS: Final = 2
BROKEN: Final = "broken.txt"  # in the folder: what a shard found missing when it came back
_TOKEN: Final = "token"
_FASTER: Final = 20
_IDLE_S: Final = 0.02


@dataclass(frozen=True)
class Job:
    """What a part is told. ``bug``: what is planted in it; empty for nothing."""

    seed: int
    folder: Path
    bug: str = ""

    @property
    def config(self) -> Config:
        return replace(CONFIG, state=str(self.folder), log=LogConfig(partitions=PARTITIONS))

    @property
    def spec(self) -> ShardSpec:
        return replace(SPEC, **PUBLISHED[self.seed % len(PUBLISHED)])  # type: ignore[arg-type]

    def home(self, part: int) -> ShardStorage:
        return ShardStorage(self.folder / "snapshots", self.folder / f"{part}.wal", SNAPSHOT_EVERY, 2)

    def plant(self) -> None:
        torch.set_num_threads(1)
        if self.bug == "write_ahead_skipped":
            Wal.append = lambda self, step, payload: None  # type: ignore[method-assign]
        elif self.bug:
            planted.BUGS[self.bug][0](pytest.MonkeyPatch())


def clock_ms() -> int:
    return int(time.time() * 1000 * _FASTER)


def joiner(job: Job) -> None:
    job.plant()
    log = open_log(job.config)
    loop = JoinerLoop(log, job.config, FEATURES, clock_ms, PartState(job.folder, "joiner"))
    while True:
        if not loop.turn():
            log.wait(EVENTS, _IDLE_S)


def sequencer(job: Job) -> None:
    job.plant()
    log = open_log(job.config)
    loop = ManyLanes(log, job.config, FEATURES, clock_ms)
    while True:
        if not loop.turn():
            log.wait(EXAMPLES, _IDLE_S)


def worker(job: Job, rank: int, generation: int) -> None:
    job.plant()
    spec, log, who = job.spec, open_log(job.config), WorkerId(rank, WORKERS, generation)
    channels = [
        SocketChannel(
            lambda part=part: Address("127.0.0.1", _port(job, part), _TOKEN),  # type: ignore[misc]
            lambda token, part=part: hello(spec, part, who, token),  # type: ignore[misc]
        )
        for part in range(SHARDS)
    ]
    client = ShardedClient(spec, channels, who)
    worker = Worker(rank, WORKERS, log, client, CountingLearner(), job.config)  # type: ignore[arg-type]
    while True:
        if not worker.turn():
            log.wait(STEPS, _IDLE_S)


def shard(job: Job, part: int) -> None:
    job.plant()
    log = open_log(job.config)

    def publish(deltas: Sequence[bytes]) -> None:
        log.append(DELTAS, [Append(0, SPEC.line.encode(), delta) for delta in deltas])

    its = DurableShard(part_of(job.spec, part), job.home(part), publish, DENSE if part == 0 else None, True)
    newest = max((d.step for d in deltas_on(log) if d.part == part), default=0)
    if its.applied < newest:
        (job.folder / BROKEN).write_text(f"shard {part} has {its.applied}, it published {newest}")
    its.flush()
    server = SocketServer(ShardService(its, _TOKEN))
    beside = job.folder / f"port-{part}.{os.getpid()}"
    beside.write_text(str(server.address.port))
    beside.replace(job.folder / f"port-{part}")
    while True:
        time.sleep(60)


def deltas_on(log: Log) -> list[Delta]:
    found, at = list[Delta](), 0
    while records := log.read(DELTAS, 0, at, 256):
        found += [unpack(record.value, Delta) for record in records]
        at = records[-1].offset + 1
    return found


def _port(job: Job, part: int) -> int:
    try:
        return int((job.folder / f"port-{part}").read_text())
    except FileNotFoundError:
        raise ConnectionError(f"shard {part} isn't up yet") from None
