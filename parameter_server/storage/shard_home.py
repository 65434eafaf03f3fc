"""The places where the shards of a state folder have their files, and where they publish."""

from collections.abc import Sequence
from pathlib import Path

from parameter_server.publish.deltas import record_publish_spans
from parameter_server.shard.shard import ShardSpec
from parameter_server.storage.durable_shard import Publish, ShardStorage
from parameter_server.storage.reshard import ShardFiles
from recsys.clock import machine_ns
from recsys.config.system_config import Config
from recsys.events.records import DELTAS
from recsys.log.protocol import Append, Log
from recsys.observability.tracer import Tracer


def home_of(spec: ShardSpec, config: Config) -> ShardStorage:
    """Storage of a shard under the state folder."""
    files, step = files_of(config), config.step
    snapshots = (files.snapshots, files.wal(spec), step.snapshot_every, step.snapshots_kept)
    return ShardStorage(*snapshots, files.sync)


def files_of(config: Config) -> ShardFiles:
    """Files of all shards under the state folder."""
    state = Path(config.state).resolve()
    power = config.log.durability == "power"
    return ShardFiles(state / "snapshots", state / "parts" / "shards", power)


def delta_publisher(log: Log, line: str, tracer: Tracer | None = None) -> Publish:
    """Function that appends deltas of a line to the log."""
    key = line.encode()

    def publish(deltas: Sequence[bytes]) -> None:
        began_ns = machine_ns()
        log.append(DELTAS, [Append(0, key, delta) for delta in deltas])
        if tracer:
            record_publish_spans(tracer, deltas, began_ns, machine_ns())

    return publish
