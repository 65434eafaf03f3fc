"""The shards' part: keeps the live line's named parameter server actors running.

The actors are detached: they outlive this part where it dies, and Ray restarts one that dies. Where Ray gave
one up (its record is dead, or the cluster is new), the part recreates it from its snapshot and write-ahead
log. Asked to stop, the part stops the actors, and each takes a last snapshot. Where the system's own Ray head
is gone, or a shard hangs, it leaves them to end with the head.
"""

import logging
import pickle
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray

from experiments.promotion.epoch_model import config_at, features_at
from parameter_server.rpc.shard_actor import (
    NAMESPACE,
    find_shards,
    running_shards,
    start_shards,
    stop_and_reshard,
    stop_shards,
)
from parameter_server.shard.shard import ShardSpec
from parameter_server.table.dense import Vector
from recsys.config.system_config import Config, ModelConfig
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.process.fold import run_turn
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from runtime.supervision import launch_plan
from training.lines.control import ControlReader
from training.lines.line import MAIN, spec_of

_ANSWER_S: Final = 5.0
# A plug-in may print.
_DENSE: Final = """
import pickle, sys
out, sys.stdout = sys.stdout.buffer, sys.stderr
from recsys.model.model import build_model
out.write(build_model(*pickle.load(sys.stdin.buffer)).read_dense().tobytes())
"""
# Beside the connection to Ray; one model at a time, since each takes a process with torch.
_BUILDING: Final = ThreadPoolExecutor(1, "dense")
_LOG: Final = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """Starts missing shards, polls their status each second, and reports it in the heartbeat."""
    config = replace(config, state=str(Path(config.state).resolve()))
    log = open_log(config)
    control = ControlReader(log)
    control.turn()
    group = ShardGroup.of(config, control, control.live_epoch(MAIN))
    group.build()
    if not ray.is_initialized():
        handler = signal.getsignal(signal.SIGTERM)
        job = ray.job_config.JobConfig(metadata={"part": "shards", "line": MAIN})
        ray.init(namespace=NAMESPACE, log_to_driver=False, job_config=job)
        # Ray's handler would end this process before its shards.
        signal.signal(signal.SIGTERM, handler)
    group.prepare()
    while not stop.is_set(starting=True):
        if group.start() and group.poll():
            break
        stop.wait(0.5, starting=True)
    errors: dict[int, str] = {}
    # Groups of earlier epochs, also those that this part was stopping when it was killed.
    earlier = (ShardGroup.of(config, control, epoch) for epoch in earlier_epochs(control))
    retiring = [old for old in earlier if old.find()]
    while not stop.wait(1.0):
        run_turn(lambda: len(control.turn()), stop, _LOG)
        if (epoch := control.live_epoch(MAIN)) != group.epoch:
            retiring.append(group)
            live = control.lifecycle.live
            if live is not None and live.parent_epoch != group.epoch:
                group.abandon()  # the line was rolled back: its remaining steps are useless
            group = ShardGroup.of(config, control, epoch)
            group.start()
        if not group.poll():
            stop.heartbeat.add("unanswered")
            group.start()
        report(stop.heartbeat, group.statuses)
        errors = log_errors(group.statuses, errors)
        live = control.lifecycle.live
        if retiring and live is not None and group.step > live.base_step:
            retiring.pop(0).end()  # its workers have moved on; its last snapshot allows a rollback
        stop.heartbeat.gauge("started", group.started)
    _, plan = launch_plan.read(config.state)
    if not plan.owns_ray or group.answers():
        for running in (*retiring, group):
            running.end()
    log.close()
    ray.shutdown()


def earlier_epochs(control: ControlReader) -> list[int]:
    """Epochs that were live before the current one."""
    return sorted({live.epoch for live in control.lifecycle.lives[:-1]})


def initial_dense(features: FeatureSet, config: ModelConfig) -> Vector:
    """Dense parameters of a model that has learned nothing, from a process of its own, which ends: what it
    imports takes more memory than this one. Raises RuntimeError with the last line of an error."""
    command, values = [sys.executable, "-c", _DENSE], pickle.dumps((features, config))
    done = subprocess.run(command, input=values, capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines() or ["no message"]
        _LOG.error("the model can't be built", extra={"error": "\n".join(lines[-20:])})
        raise RuntimeError(f"the model can't be built (exit status {done.returncode}): {lines[-1]}")
    return np.frombuffer(done.stdout, np.float32)


class ShardGroup:
    """Actor handles of a line's shards, with their latest statuses."""

    def __init__(self, config: Config, spec: ShardSpec, features: FeatureSet) -> None:
        self._config, self._spec, self._features = config, spec, features
        self._handles: list[Any] = []
        self.statuses: list[dict[str, Any]] = []
        self.started = 0  # times that at least one actor had to be created

    @cached_property
    def _dense(self) -> "Future[Vector]":
        """Initial dense parameters, which take seconds to build."""
        return _BUILDING.submit(initial_dense, self._features, self._config.model)

    def build(self) -> None:
        """Starts to build the initial parameters, beside what the caller does next."""
        _ = self._dense

    @property
    def epoch(self) -> int:
        return self._spec.epoch

    @property
    def step(self) -> int:
        """Newest step that all shards have reported as learned."""
        return min((status["step"] for status in self.statuses), default=0)

    def start(self) -> bool:
        """Finds the actors, or creates missing ones; returns False where they can't start now."""
        try:
            try:
                self._handles = find_shards(self._spec)
            except ValueError:
                self.started += 1
                self._handles = start_shards(self._spec, self._config, self._dense.result())
        except (ray.exceptions.RayError, ValueError) as error:
            _LOG.warning("shards don't start yet: %s", error)
            return False
        return True

    @classmethod
    def of(cls, config: Config, control: ControlReader, epoch: int) -> "ShardGroup":
        """Builds the group of the live line in an epoch, with that epoch's model."""
        config = config_at(config, control.lifecycle, MAIN, epoch)
        features = features_at(feature_set(config), control.lifecycle, MAIN, epoch)
        return cls(config, spec_of(config, epoch=epoch), features)

    def find(self) -> bool:
        """Finds running actors; returns whether there are any."""
        self._handles = running_shards(self._spec)
        return bool(self._handles)

    def abandon(self) -> None:
        """Releases workers that still learn in this epoch."""
        try:
            ray.get([handle.abandon.remote() for handle in self._handles], timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:
            _LOG.warning("a retiring shard doesn't answer: %s", error)

    def prepare(self) -> None:
        """Resplits the state after a change of the number of shards: once, before any shard starts."""
        old = stop_and_reshard(self._spec, self._config, self._dense.result())
        if old is not None:
            _LOG.info("%d shards became %d at step %d", old.parts, self._spec.parts, old.step)

    def end(self) -> None:
        """Stops every actor with one of the line's names, and so frees the names."""
        stop_shards(running_shards(self._spec))
        self._handles = []

    def poll(self) -> bool:
        """Updates ``statuses``; returns whether all shards have started and answered."""
        return len(self._handles) == self._spec.parts and self.answers()

    def answers(self) -> bool:
        """Updates ``statuses``; returns whether those that have started answered."""
        pending = [handle.status.remote() for handle in self._handles]
        try:
            self.statuses = ray.get(pending, timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:  # restarting, gone, or too busy to answer
            _LOG.warning("a shard doesn't answer: %s", error)
            return False
        return True


def report(beat: Heartbeat, statuses: list[dict[str, Any]]) -> None:
    """Writes sums over the shards, and each shard's step, into the heartbeat."""
    if not statuses:
        return
    beat.gauge("step", min(status["step"] for status in statuses))
    beat.gauge("rows", sum(sum(status["rows"].values()) for status in statuses))
    for name in ("bytes", "wal_bytes", "expired", "evicted", "refused_rows", "refused_dense"):
        beat.gauge(name, sum(status[name] for status in statuses))
    beat.gauge("waiting", sum(sum(status["waiting"].values()) for status in statuses))
    for name in ("rows", "waiting", "table_bytes"):
        for table in statuses[0][name]:
            beat.gauge(f"{name}.{table}", sum(status[name][table] for status in statuses))
    for name in ("spans_sent", "spans_dropped"):
        if name in statuses[0]:
            beat.gauge(name, sum(status.get(name, 0) for status in statuses))
    beat.gauge("connections", min(status["connections"] for status in statuses))
    beat.gauge("refused_connections", sum(status["refused_connections"] for status in statuses))
    beat.gauge("snapshots_damaged", max(len(status["snapshots_damaged"]) for status in statuses))
    beat.gauge("wal_damaged", sum(bool(status["wal_damaged"]) for status in statuses))
    beat.gauge("wal_cut_bytes", sum(status["wal_cut_bytes"] for status in statuses))
    for status in statuses:
        beat.gauge(f"step.{status['part']}", status["step"])


def log_errors(statuses: list[dict[str, Any]], before: dict[int, str]) -> dict[int, str]:
    """Logs each shard's error that differs from the one ``before``; returns errors by shard number."""
    now = {s["part"]: f"{s['lost']} {s['snapshot_error']} {s['wal_damaged']}".strip() for s in statuses}
    for part, error in now.items():
        if error and error != before.get(part):
            _LOG.error("shard %d: %s", part, error)
    return now
