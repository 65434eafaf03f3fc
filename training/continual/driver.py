"""Drives the continual trainer, whose workers are a Ray Train run.

Ray places the workers and restarts the group when one dies; it then asks the shards for their position.
Nothing is reported to Ray Train or checkpointed through it: its ``report`` accepts one call in two seconds
and reports a checkpoint as done too early.
"""

import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from parameter_server.rpc.shard_actor import NAMESPACE, await_shards
from recsys.config.system_config import Config
from recsys.events.records import DELTAS
from recsys.log.protocol import LogLost, LogUnavailable
from recsys.observability.log_lines import LogThrottle, redact
from recsys.process.clock_file import clock_of
from recsys.process.fold import run_turn
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop, read_beat, run_folder
from recsys.process.process_priority import VARIABLE
from training.continual.progress import Progress
from training.continual.trainer_run import NICE, PART, Failure, run_of
from training.lines.control import live_epoch
from training.lines.line import MAIN, spec_of
from training.steps.lineage import newest_step

_LOG_EVERY_S: Final = 10.0  # the newest step
_LOG: Final = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """Starts the run on the environment's Ray cluster, and reports its progress. Raises RuntimeError if the
    run ends by itself: a newer driver has taken over, or Ray gave it up."""
    config = replace(config, state=str(Path(config.state).resolve()))
    if not ray.is_initialized():
        # Processes that Ray starts for this run lower their priority before their imports.
        environment = {"env_vars": {VARIABLE: str(NICE)}}
        job = ray.job_config.JobConfig(metadata={"part": PART, "line": MAIN})
        ray.init(namespace=NAMESPACE, log_to_driver=False, runtime_env=environment, job_config=job)
    log, clock = open_log(config), clock_of(config)
    epoch = live_epoch(log)
    is_stopped, pause = partial(stop.is_set, starting=True), partial(stop.wait, 0.2, starting=True)
    if await_shards(spec_of(config, epoch=epoch), is_stopped, pause) is None:
        return
    name = f"{MAIN}-epoch-{epoch}-{uuid.uuid4().hex[:8]}"
    run_files = run_of(config)
    run_files.begin(name)
    run_files.keep_endpoint(config.tracing.endpoint)
    fit = _Fit({"config": msgspec.to_builtins(shown(config)), "run": name, "epoch": epoch})
    progress, beat, throttle = Progress(log, MAIN, epoch), stop.heartbeat, LogThrottle(_LOG_EVERY_S)
    reported: Failure | None = None
    # Once workers reach all shards, and a step is learned, or no step is left to learn.
    is_ready = False
    while not stop.wait(0 if is_ready else 0.05, starting=not is_ready):
        if fit.is_ended():
            raise RuntimeError(f"run {name} ended: {fit.reason or 'another driver has taken over'}")
        moved = run_turn(lambda: progress.turn(clock()), stop, _LOG)
        if moved and throttle.due("step", time.monotonic()):
            _LOG.info("learned", extra={**progress.place, **progress.losses()})
        progress.report(beat)
        beat.gauge("group_starts", starts := run_files.read().starts)
        if starts and not is_ready:
            is_ready = _reach_shards(config) and (
                progress.step > 0 or _shards(config, "step") >= newest_step(log, MAIN, epoch)
            )
        if spans := run_files.spans():
            beat.gauge("spans_sent", spans.sent)
            beat.gauge("spans_dropped", spans.dropped)
        failure = run_files.failure()
        if failure is not None and failure != reported:
            reported = failure
            beat.add("worker_failures")
            _LOG.error("worker %d ended: %s", failure.rank, failure.text)
            if failure.text.startswith(LogLost.__name__):
                raise LogLost(f"worker {failure.rank} can't go on: {failure.text}")
        if is_ready and moved:
            stop.wait(0.05)  # each shard commits deltas of its own
        elif is_ready:
            with suppress(LogUnavailable):  # the next turn reports it
                log.wait(DELTAS, 0.5)
    ray.shutdown()
    log.close()


def _reach_shards(config: Config) -> bool:
    """Whether all workers are connected to all shards."""
    return _shards(config, "connections") >= config.trainer.workers


def _shards(config: Config, gauge: str) -> float:
    """A gauge of the heartbeat of the shards' part; infinite where that is unknown."""
    beat = read_beat(run_folder(config.state) / "shards.json")
    return inf if beat is None else beat.gauges.get(gauge, inf)


@ray.remote(num_cpus=0)
class TrainingRun:
    """Actor on the driver's node that controls the run. Its process imports Ray Train, which takes a
    second and 100 MB; the driver doesn't."""

    def run(self, settings: dict[str, Any]) -> None:
        from training.continual.ray_run import continual_trainer

        continual_trainer(settings).fit()


class _Fit:
    """Waits for the run in a thread."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings, self.reason = settings, ""
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            node_id = ray.get_runtime_context().get_node_id()
            here = NodeAffinitySchedulingStrategy(node_id, soft=False)
            # A head that isn't the system's own has another environment.
            own = {name: x for name, x in os.environ.items() if name.startswith("RAY_TRAIN_")}
            actor = TrainingRun.options(  # type: ignore[attr-defined]
                scheduling_strategy=here, runtime_env={"env_vars": own}
            ).remote()
            ray.get(actor.run.remote(self._settings))
        except Exception as error:
            cause = getattr(error, "cause", error)
            self.reason = f"{type(cause).__name__}: {cause}"

    def is_ended(self) -> bool:
        return not self._thread.is_alive()


def shown(config: Config) -> Config:
    """The configuration without secrets, as Ray's dashboard shows the arguments of the loop: workers read no
    sessions, and the tracing endpoint from a file."""
    return replace(
        config,
        sessions=replace(config.sessions, url=redact(config.sessions.url)),
        tracing=replace(config.tracing, endpoint=redact(config.tracing.endpoint)),
    )
