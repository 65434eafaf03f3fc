"""Shards and workers of the trainer for processes of a bench, without Ray, which only places them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from parameter_server.rpc.parameter_client import ShardedClient, WorkerId, hello
from parameter_server.rpc.shard_service import ShardService
from parameter_server.rpc.transport import Address, SocketChannel, SocketServer
from parameter_server.shard.shard import part_of
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from parameter_server.table.kernels import warm
from recsys.config.system_config import Config
from recsys.events.records import DELTAS
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append
from recsys.model.model import build_model
from recsys.process.open_log import open_log
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.lines.line import spec_of


@contextmanager
def shard_server(
    config: Config, features: FeatureSet, token: str, part: int, on_published: Callable[[int], None]
) -> Iterator[tuple[DurableShard, int]]:
    """A shard with its write-ahead file behind a socket, and its port. ``on_published`` gets the number of
    deltas after each append to the log."""
    warm()
    spec, folder, log = spec_of(config), Path(config.state), open_log(config)

    def publish(deltas: Sequence[bytes]) -> None:
        log.append(DELTAS, [Append(0, b"", delta) for delta in deltas])
        on_published(len(deltas))

    dense = build_model(features, config.model).read_dense() if part == 0 else None
    home = ShardStorage(folder / "snapshots", folder / f"{part}.wal", config.step.snapshot_every)
    shard = DurableShard(part_of(spec, part), home, publish, dense, background=True)
    server = SocketServer(ShardService(shard, token))
    try:
        yield shard, server.address.port
    finally:
        server.close()
        shard.close()
        log.close()


@contextmanager
def shard_worker(
    config: Config,
    features: FeatureSet,
    token: str,
    ports: Mapping[int, int],
    rank: int = 0,
    workers: int = 1,
) -> Iterator[Worker]:
    """A worker that is connected to the shards at ``ports``, by part."""
    spec, identity, log = spec_of(config), WorkerId(rank, workers, 1), open_log(config)
    channels = [
        SocketChannel(partial(Address, "127.0.0.1", port, token), partial(hello, spec, part, identity))
        for part, port in sorted(ports.items())
    ]
    client = ShardedClient(spec, channels, identity)
    learner = Learner(build_model(features, config.model))
    try:
        yield Worker(rank, workers, log, client, learner, config)
    finally:
        client.close()
        log.close()
