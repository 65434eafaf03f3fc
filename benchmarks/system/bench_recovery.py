"""``recsys bench recovery``: wait of a trainer for a killed shard of a million rows, which recovers from its
newest snapshot and its write-ahead file.

The shard is a named Ray actor, as in a running system, and a worker keeps sending it steps over its socket.
Its process is killed with -9 within a step. Ray starts another, which reads the snapshot, applies the file
and listens on a new port; the worker's client finds it and sends the step again.
"""

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from parameter_server.rpc import shard_actor as actors
from parameter_server.rpc.parameter_client import ParameterClient, WorkerId
from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import ShardSpec
from parameter_server.storage import snapshots
from recsys.config.system_config import Config, StepConfig, TableConfig
from recsys.process.open_log import create_topics, open_log

DIM: Final = 32
_BLOCK: Final = 20_000  # rows that a step creates, at first
_STEP_ROWS: Final = 2_000  # touched rows of a step of 256 examples
_DENSE: Final = 57_000  # parameters: about as many as the ranker's
_SPEC: Final = ShardSpec((TableConfig("items", DIM, 0.05, initial=0.01),), lanes=1, line="recovery")


def measure_recovery(rows: int, steps: int, kills: int, seed: int) -> dict[str, Any]:
    """Seconds that the worker waited, for each of ``kills``. ``steps``: in the file after the snapshot."""
    import ray

    root = str(Path(__file__).parents[2])
    environment = {"env_vars": {"PYTHONPATH": root}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1",
             runtime_env=environment)  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(prefix="recsys-recovery-") as folder:
            every = StepConfig().snapshot_every
            config = Config(state=folder, step=StepConfig(lanes=1, snapshot_every=every))
            log = open_log(config)
            create_topics(log, config)
            (shard,) = actors.start_shards(_SPEC, config, np.zeros(_DENSE, np.float32))
            try:
                client = actors.connect(_SPEC, [shard], WorkerId())
                fed = _Feed(client, rows, seed)
                fed.fill()
                _snapshot(ray, shard, Path(folder) / "snapshots", fed.step)
                fed.learn(steps)
                return _kill(ray, shard, fed, kills)
            finally:
                actors.stop_shards([shard])
                log.close()
    finally:
        ray.shutdown()


class _Feed:
    """Steps of a worker: first ones that create rows, then ones that touch some."""

    def __init__(self, client: ParameterClient, rows: int, seed: int) -> None:
        self._client, self._rows = client, rows
        self._random = np.random.default_rng(seed)
        self.step = 0

    def fill(self) -> None:
        for first in range(0, self._rows, _BLOCK):
            self._send(np.arange(first, min(self._rows, first + _BLOCK), dtype=np.int64))

    def learn(self, steps: int) -> None:
        for _ in range(steps):
            self._send(self._random.choice(self._rows, _STEP_ROWS, replace=False))

    def _send(self, keys: Any) -> None:
        self.step += 1
        gradients = self._random.standard_normal((len(keys), DIM), np.float32)
        own = RowGradients(keys, gradients, np.ones(len(keys), np.int32))
        dense = self._random.standard_normal(_DENSE).astype(np.float32)
        lane = LaneGradients(0, {"items": own}, dense)
        self._client.exchange(self.step, self.step, [lane], {"items": keys})


def _snapshot(ray: Any, shard: Any, folder: Path, step: int) -> None:
    """Requests a snapshot, and waits until it is on the disk."""
    ray.get(shard.snapshot.remote())
    while step not in snapshots.complete_steps(folder, _SPEC.line, _SPEC.epoch):
        time.sleep(0.05)


def _kill(ray: Any, shard: Any, feed: _Feed, kills: int) -> dict[str, Any]:
    waited_s, rows, sizes = [], 0, {}
    for _ in range(kills):
        status = ray.get(shard.status.remote())
        rows, sizes = status["rows"]["items"], {"file_mb": round(status["wal_bytes"] / 1e6, 1)}
        os.kill(ray.get(shard.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        started = time.perf_counter()
        feed.learn(1)
        waited_s.append(round(time.perf_counter() - started, 2))
    median = float(np.median(waited_s))
    return {"figures": {"rows": rows, **sizes, "waited_s": waited_s, "waited_s_median": median}}
