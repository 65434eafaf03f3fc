"""Drives the continual trainer: its workers are a Ray Train run.

Ray places the workers and restarts the group when one dies; it then asks the shards for their position.
Nothing is checkpointed through Ray, whose ``report`` accepts one call in two seconds and reports a checkpoint
as done too early; it is called rarely, for Ray's dashboard alone.
"""

import logging
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
import ray.train
import torch
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.metrics import Counter, Gauge

from parameter_server.rpc.parameter_client import StaleWorker, WorkerId
from parameter_server.rpc.shard_actor import NAMESPACE, connect, find_shards
from parameter_server.shard.shard import ShardSpec
from recsys.clock import wall_ms
from recsys.config.system_config import Config, TrainerConfig
from recsys.events.records import STEPS
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import LogLost
from recsys.model.model import build_model
from recsys.observability.log_lines import LOG_CONTEXT, LogThrottle, log_in_worker, redact
from recsys.observability.tracer import open_tracer_in_actor
from recsys.process.latency_tuning import freeze_gc
from recsys.process.malloc_tuning import keep_freed_memory
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from recsys.process.process_priority import VARIABLE, lower_priority
from recsys.process.retry_loop import run_turn
from training.continual.jagged import keyed_jagged, load
from training.continual.learner import Learner
from training.continual.progress import Progress
from training.continual.trainer_run import Failure, LearnTrace, TrainerRun
from training.continual.worker import Worker
from training.lines.control import live_epoch, model_now
from training.lines.line import MAIN, spec_of
from training.steps.sequencer_loop import EpochEnd

PART: Final = "trainer"
_REPORT_STEPS: Final = 1_000  # by step, since all workers must report together
_MEET_S: Final = 60
_NICE: Final = 5  # serving has priority over learning
_LOG_EVERY_S: Final = 10.0  # the newest step
_PAUSE_S: Final = 2.0  # before a group that fails at once is restarted
_LOG: Final = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """Starts the run on the environment's Ray cluster, and reports its progress. Raises RuntimeError if the
    run ends by itself: a newer driver has taken over, or Ray gave it up."""
    config = replace(config, state=str(Path(config.state).resolve()))
    if not ray.is_initialized():
        # Processes that Ray starts for this run lower their priority before their imports.
        environment = {"env_vars": {VARIABLE: str(_NICE)}}
        job = ray.job_config.JobConfig(metadata={"part": PART, "line": MAIN})
        ray.init(namespace=NAMESPACE, log_to_driver=False, runtime_env=environment, job_config=job)
    log = open_log(config)
    epoch = live_epoch(log)
    is_stopped, pause = partial(stop.is_set, starting=True), partial(stop.wait, 0.2, starting=True)
    if _await_shards(spec_of(config, epoch=epoch), is_stopped, pause) is None:
        return
    name = f"{MAIN}-epoch-{epoch}-{uuid.uuid4().hex[:8]}"
    run_files = _run_of(config)
    run_files.begin(name)
    run_files.keep_endpoint(config.tracing.endpoint)
    fit = _Fit(_trainer(config, name, epoch))
    progress, beat, throttle = Progress(log, MAIN, epoch), stop.heartbeat, LogThrottle(_LOG_EVERY_S)
    reported: Failure | None = None
    metrics = _RayMetrics()
    while not stop.wait(0.05, starting=run_files.read().starts == 0):
        if fit.is_ended():
            raise RuntimeError(f"run {name} ended: {fit.reason or 'another driver has taken over'}")
        if run_turn(lambda: progress.turn(wall_ms()), stop, _LOG):
            if throttle.due("step", time.monotonic()):
                _LOG.info("learned", extra={**progress.place, **progress.losses()})
            metrics.report(progress)
        progress.report(beat)
        beat.gauge("group_starts", run_files.read().starts)
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
    ray.shutdown()
    log.close()


@dataclass
class GlooByFile(TorchConfig):
    """gloo with rendezvous through a file: Ray's own setup opens a store that listens on all interfaces."""

    backend: str | None = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend  # without setup, which ``train_loop`` does


class _Fit:
    """Runs ``trainer.fit()`` in a thread."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer, self.reason = trainer, ""
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"

    def is_ended(self) -> bool:
        return not self._thread.is_alive()


class _RayMetrics:
    """Exports learning progress to Ray's dashboard and its Prometheus endpoint."""

    def __init__(self) -> None:
        version = ("line", "epoch")
        self._examples = Counter("recsys_examples_learned", "Examples learned", tag_keys=version)
        self._step = Gauge("recsys_learned_step", "The newest step learned", tag_keys=version)
        self._loss = Gauge(
            "recsys_learned_loss",
            "Prequential log loss of the newest step",
            tag_keys=(*version, "label"),
        )
        self._counted = 0.0

    def report(self, progress: Progress) -> None:
        tags = {name: str(value) for name, value in progress.place.items() if name != "step"}
        learned = progress.sums.get("examples", 0.0)
        if learned > self._counted:
            self._examples.inc(learned - self._counted, tags)
            self._counted = learned
        self._step.set(progress.step, tags)
        for name, value in progress.losses().items():
            self._loss.set(value, tags | {"label": name.removeprefix("loss.")})


def _run_of(config: Config) -> TrainerRun:
    return TrainerRun(Path(config.state) / "parts" / PART)


def _await_shards(
    spec: ShardSpec, is_over: Callable[[], bool], pause: Callable[[], object], most_s: float = inf
) -> list[Any] | None:
    """The shards of an epoch, which may be starting; None once ``is_over``. Raises ValueError after
    ``most_s``."""
    deadline = time.monotonic() + most_s
    while not is_over():
        try:
            return find_shards(spec)
        except ValueError:  # not started yet
            if time.monotonic() > deadline:
                raise
            pause()
    return None


def _trainer(config: Config, name: str, epoch: int) -> TorchTrainer:
    runs = Path(config.state) / "parts" / PART / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # of earlier drivers
    (runs / "groups").mkdir(parents=True)
    settings = {"config": msgspec.to_builtins(shown(config)), "run": name, "epoch": epoch}
    scaling = ray.train.ScalingConfig(
        num_workers=config.trainer.workers,
        use_gpu=config.trainer.device == "cuda",
        resources_per_worker=resources_of(config.trainer),
    )
    return ray_trainer(train_loop, settings, scaling, name, runs, failures=-1, check_s=0.5)


def ray_trainer(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    scaling: ray.train.ScalingConfig,
    name: str,
    storage: Path,
    failures: int,
    check_s: float,
) -> TorchTrainer:
    """A Ray Train run of workers with one thread each, which meet by files. ``failures`` of workers end it,
    -1: none does; ``check_s``: time until a dead worker is noticed."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(check_s))
    environment = {"OMP_NUM_THREADS": "1"}
    if str(ray.util.get_node_ip_address()).startswith("127."):  # type: ignore[no-untyped-call]
        environment["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    return TorchTrainer(
        loop,
        train_loop_config=settings,
        torch_config=GlooByFile(),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=failures),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]
        ),
    )


def meet(file: Path, timeout_s: float) -> None:
    """Waits for all workers of a group, by gloo through a file in a folder that all reach."""
    context = ray.train.get_context()
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{file}",
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=timeout_s),
    )


def shown(config: Config) -> Config:
    """The configuration without secrets, as Ray's dashboard shows the arguments of the loop: workers read no
    sessions, and the tracing endpoint from a file."""
    return replace(
        config,
        sessions=replace(config.sessions, url=redact(config.sessions.url)),
        tracing=replace(config.tracing, endpoint=redact(config.tracing.endpoint)),
    )


def _epoch_now(config: Config, started: int) -> int:
    """The live epoch at the start of a group, which may be later than at the start of its driver."""
    with closing(open_log(config)) as log:
        return max(started, live_epoch(log))


def resources_of(trainer: TrainerConfig) -> dict[str, float]:
    """Ray resources of a worker."""
    resources = {"CPU": trainer.cpus_per_worker}
    return resources | ({"GPU": trainer.gpus_per_worker} if trainer.device == "cuda" else {})


def train_loop(settings: dict[str, Any]) -> None:
    """Runs one worker until it is killed; returns if another run has taken over."""
    lower_priority(_NICE)  # in a cluster of others no earlier code of this project did
    config = msgspec.convert(settings["config"], Config)
    run_files, name = _run_of(config), settings["run"]
    if config.tracing.endpoint:
        config = replace(config, tracing=replace(config.tracing, endpoint=run_files.endpoint()))
    rank = ray.train.get_context().get_world_rank()
    log_in_worker(PART, config.state, f"worker-{rank}", config.logging.format, {"worker": rank})
    try:
        generation, epoch = broadcast_from_rank_zero(
            (run_files.next_generation(name, wall_ms()), _epoch_now(config, settings["epoch"]))
            if rank == 0
            else None
        )
        if generation:
            # Raises if a worker is missing or uses another state folder.
            groups = Path(config.state) / "parts" / PART / "runs" / "groups"
            meet(groups / str(generation), _MEET_S)
            while True:
                epoch = _work(config, rank, generation, epoch)
    except Exception as error:
        if isinstance(error, StaleWorker) and not run_files.is_newest(name):
            return
        run_files.failed(Failure(rank, f"{type(error).__name__}: {error}"[:500], wall_ms()))
        time.sleep(_PAUSE_S)
        raise


def _work(config: Config, rank: int, generation: int, epoch: int) -> int:
    """Learns the steps of an epoch; returns the next epoch once that is live and this one is learned."""
    workers, log = ray.train.get_context().get_world_size(), open_log(config)
    config, features = model_now(log, config, feature_set(config), MAIN, epoch)
    spec = spec_of(config, epoch=epoch)
    ended = EpochEnd(log, MAIN, epoch)
    pause = partial(time.sleep, 0.2)
    shards = _await_shards(spec, lambda: ended.left_for() is not None, pause, _MEET_S)
    if shards is None:
        following = ended.left_for()
        log.close()
        return epoch if following is None else following
    client = connect(
        spec, shards, WorkerId(rank, workers, generation), config.parameter_server.transport
    )
    model = build_model(features, config.model)
    learner = Learner(model, keyed_jagged, config.trainer.device)
    worker = Worker(rank, workers, log, client, learner, config, MAIN, epoch)
    load()
    freeze_gc()
    keep_freed_memory()
    _LOG.info("learning", extra={"line": MAIN, "epoch": epoch, "workers": workers})
    tracer = open_tracer_in_actor(config, PART) if rank == 0 else None  # one span for a step
    trace = LearnTrace(tracer, _run_of(config), MAIN, epoch) if tracer else None
    try:
        following = _learn(worker, epoch, ended, trace, lambda: log.wait(STEPS, 0.05))
    finally:
        if trace:
            trace.close()
    client.close()
    log.close()
    return following


def _learn(
    worker: Worker,
    epoch: int,
    ended: EpochEnd,
    trace: LearnTrace | None,
    wait: Callable[[], object],
) -> int:
    """Learns until the line continues in another epoch, which is returned."""
    reported = 0
    while True:
        following = None
        began_ns = time.time_ns()
        LOG_CONTEXT.set({"line": MAIN, "epoch": epoch, "step": worker.step + 1})
        try:
            learned = worker.turn()
        except StaleWorker:  # after a rollback the shards reject all workers
            learned, following = 0, ended.left_for()
            if following is None:
                raise
        if trace and learned:
            trace.learned(worker.step, learned, began_ns, time.time_ns())
        if trace:
            trace.count(time.monotonic())
        if not learned:
            following = following or ended.following(worker.step)
            if following is not None:
                return following
            wait()
        elif worker.step // _REPORT_STEPS > reported:
            reported = worker.step // _REPORT_STEPS
            ray.train.report({"step": worker.step, **worker.counts})
