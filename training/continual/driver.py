"""The continual trainer: workers as a Ray Train run, and the driver that keeps it going.

Ray places the workers, starts them as one group and restarts the group when one of them dies. What they
learned is in the shards, which have a write-ahead file and snapshots of their own; so a restarted group asks
the shards where they are, and nothing is checkpointed through Ray, whose ``report`` takes one call in two
seconds and calls a checkpoint done before it is. It is called rarely, for Ray's dashboard alone.

Stopping is the same as being killed: the driver ends, and Ray ends what it owns.
"""

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
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

from parameter_server.rpc.parameter_client import StaleWorker
from parameter_server.rpc.parameter_client import Worker as WorkerId
from parameter_server.rpc.shard_actor import NAMESPACE, connect, find_shards
from parameter_server.shard.shard import ShardSpec
from recsys.clock import wall_ms
from recsys.config.system_config import Config, TrainerConfig
from recsys.events.records import STEPS
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import LogLost
from recsys.model.model import build_model
from recsys.observability.log_lines import KNOWN, LogThrottle, hide, log_in_worker
from recsys.observability.tracer import open_tracer_in_actor
from recsys.process.latency_tuning import freeze_gc
from recsys.process.malloc_tuning import keep_freed_memory
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from recsys.process.process_priority import VARIABLE, lower_priority
from recsys.process.retry_loop import run_turn
from training.continual.epoch_end import EpochEnd
from training.continual.jagged import keyed_jagged, load
from training.continual.learn_trace import LearnTrace
from training.continual.learner import Learner
from training.continual.progress import Progress
from training.continual.trainer_run import Failure, TrainerRun
from training.continual.worker import Worker
from training.lines.control import config_now
from training.lines.line import MAIN, spec_of
from training.lines.live_epoch import live_epoch

PART: Final = "trainer"
_REPORT_STEPS: Final = 1_000  # by step, since all workers must report together
_MEET_S: Final = 60
_NICE: Final = 5  # answers go before learning
_TELL_EVERY_S: Final = 10.0  # of the newest step
_PAUSE_S: Final = 2.0  # before a group is started again that fails at once
_LOG: Final = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """The part: starts the run on the Ray cluster of the environment, and tells how it goes.

    Raises RuntimeError where the run ends by itself: that of a newer driver has taken its place, or Ray
    gave it up.
    """
    config = replace(config, state=str(Path(config.state).resolve()))
    if not ray.is_initialized():
        # All that Ray starts for this run steps back, before its imports.
        later = {"env_vars": {VARIABLE: str(_NICE)}}
        about = ray.job_config.JobConfig(metadata={"part": PART, "line": MAIN})
        ray.init(namespace=NAMESPACE, log_to_driver=False, runtime_env=later, job_config=about)
    log = open_log(config)
    epoch = live_epoch(log)
    if not _await_shards(spec_of(config, epoch=epoch), stop):
        return
    name = f"{MAIN}-epoch-{epoch}-{uuid.uuid4().hex[:8]}"
    its = _run_of(config)
    its.begin(name)
    its.keep_endpoint(config.tracing.endpoint)
    ended = _Fit(_trainer(config, name, epoch))
    progress, beat, told_of = Progress(log, MAIN, epoch), stop.heartbeat, LogThrottle(_TELL_EVERY_S)
    told: Failure | None = None
    metrics = _RayMetrics()
    while not stop.wait(0.05, starting=its.read().starts == 0):
        if ended.is_set():
            raise RuntimeError(
                f"run {name} ended: {ended.reason or 'another driver has taken over'}"
            )
        if run_turn(lambda: progress.turn(wall_ms()), stop, _LOG):
            if told_of.due("step", time.monotonic()):
                _LOG.info("learned", extra=progress.place | progress.losses())
            metrics.tell(progress)
        progress.tell(beat)
        beat.gauge("group_starts", its.read().starts)
        if spans := its.spans():
            beat.gauge("spans_sent", spans.sent)
            beat.gauge("spans_dropped", spans.dropped)
        failure = its.failure()
        if failure is not None and failure != told:
            told = failure
            beat.add("worker_failures")
            _LOG.error("worker %d ended: %s", failure.rank, failure.text)
            if failure.text.startswith(LogLost.__name__):
                raise LogLost(f"worker {failure.rank} can't go on: {failure.text}")
    ray.shutdown()
    log.close()


@dataclass
class GlooByFile(TorchConfig):
    """gloo, met through a file. What Ray sets up meets through a store that listens on all interfaces."""

    backend: str | None = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend  # sets nothing up: ``train_loop`` does


class _Fit:
    """``trainer.fit()`` in a thread."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer, self.reason = trainer, ""
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"

    def is_set(self) -> bool:
        return not self._thread.is_alive()


class _RayMetrics:
    """How learning goes, for Ray's dashboard and its Prometheus endpoint."""

    def __init__(self) -> None:
        version = ("line", "epoch")
        self._examples = Counter("recsys_examples_learned", "Examples learned", tag_keys=version)
        self._step = Gauge("recsys_learned_step", "The newest step learned", tag_keys=version)
        self._loss = Gauge(
            "recsys_learned_loss",
            "Prequential log loss of the newest step",
            tag_keys=(*version, "label"),
        )
        self._told = 0.0

    def tell(self, progress: Progress) -> None:
        tags = {name: str(value) for name, value in progress.place.items() if name != "step"}
        learned = progress.sums.get("examples", 0.0)
        if learned > self._told:
            self._examples.inc(learned - self._told, tags)
            self._told = learned
        self._step.set(progress.step, tags)
        for name, value in progress.losses().items():
            self._loss.set(value, tags | {"label": name.removeprefix("loss.")})


def _run_of(config: Config) -> TrainerRun:
    return TrainerRun(Path(config.state) / "parts" / PART)


def _await_shards(spec: ShardSpec, stop: Stop) -> bool:
    while not stop.is_set(starting=True):
        try:
            find_shards(spec)
            return True
        except ValueError:  # not started yet
            stop.wait(0.2, starting=True)
    return False


def _trainer(config: Config, name: str, epoch: int) -> TorchTrainer:
    # How soon a dead worker is noticed; 2 s without.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    runs = Path(config.state) / "parts" / PART / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # what was written about earlier ones
    (runs / "groups").mkdir(parents=True)
    environment = {"OMP_NUM_THREADS": "1"}
    config = shown(config)
    if str(ray.util.get_node_ip_address()).startswith("127."):  # type: ignore[no-untyped-call]
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return TorchTrainer(
        train_loop,
        train_loop_config={"config": msgspec.to_builtins(config), "run": name, "epoch": epoch},
        torch_config=GlooByFile(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.trainer.workers,
            use_gpu=config.trainer.device == "cuda",
            resources_per_worker=resources_of(config.trainer),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(runs),
            failure_config=ray.train.FailureConfig(max_failures=-1),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]
        ),
    )


def shown(config: Config) -> Config:
    """As Ray's dashboard may show it, which has what the loop is given: the workers read no session, and
    where spans go from a file."""
    return replace(
        config,
        sessions=replace(config.sessions, url=hide(config.sessions.url)),
        tracing=replace(config.tracing, endpoint=hide(config.tracing.endpoint)),
    )


def _epoch_now(config: Config, started: int) -> int:
    """The live epoch, when a group starts: maybe a later one than when its driver did."""
    log = open_log(config)
    try:
        return max(started, live_epoch(log))
    finally:
        log.close()


def _found(spec: ShardSpec, ended: EpochEnd) -> list[Any] | None:
    """The shards of an epoch, waited for: those of one that has just become live are still starting. None
    where the line has left it meanwhile."""
    deadline = time.monotonic() + _MEET_S
    while ended.left_for() is None:
        try:
            return find_shards(spec)
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    return None


def resources_of(trainer: TrainerConfig) -> dict[str, float]:
    """What Ray books for a worker."""
    booked = {"CPU": trainer.cpus_per_worker}
    return booked | ({"GPU": trainer.gpus_per_worker} if trainer.device == "cuda" else {})


def train_loop(settings: dict[str, Any]) -> None:
    """One worker, until it is killed; it returns where another run has taken over."""
    lower_priority(_NICE)  # where nothing of ours ran before, in a cluster of others
    config = msgspec.convert(settings["config"], Config)
    its, name = _run_of(config), settings["run"]
    if config.tracing.endpoint:
        config = replace(config, tracing=replace(config.tracing, endpoint=its.endpoint()))
    rank = ray.train.get_context().get_world_rank()
    log_in_worker(PART, config.state, f"worker-{rank}", config.logging.format, {"worker": rank})
    try:
        generation, epoch = broadcast_from_rank_zero(
            (its.next_generation(name, wall_ms()), _epoch_now(config, settings["epoch"]))
            if rank == 0
            else None
        )
        if generation:
            _meet(config, rank, generation)
            while True:
                epoch = _work(config, rank, generation, epoch)
    except Exception as error:
        if isinstance(error, StaleWorker) and not its.is_newest(name):
            return
        its.failed(Failure(rank, f"{type(error).__name__}: {error}"[:500], wall_ms()))
        time.sleep(_PAUSE_S)
        raise


def _meet(config: Config, rank: int, generation: int) -> None:
    """Waits for all workers of the group; raises where one doesn't come, or sees another state folder."""
    file = Path(config.state) / "parts" / PART / "runs" / "groups" / str(generation)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=ray.train.get_context().get_world_size(),
        timeout=timedelta(seconds=_MEET_S),
    )


def _work(config: Config, rank: int, generation: int, epoch: int) -> int:
    """Learns the steps of an epoch; returns the next one, once it is live and all of this one is learned."""
    workers, log = ray.train.get_context().get_world_size(), open_log(config)
    config = config_now(log, config, MAIN, epoch)
    spec = spec_of(config, epoch=epoch)
    ended = EpochEnd(log, MAIN, epoch)
    shards = _found(spec, ended)
    if shards is None:
        following = ended.left_for()
        log.close()
        return epoch if following is None else following
    client = connect(
        spec,
        shards,
        WorkerId(rank, workers, generation),
        config.parameter_server.transport,
    )
    model = build_model(feature_set(config), config.model)
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
    """Until the line goes on to another epoch, which is returned."""
    reported = 0
    while True:
        following = None
        began_ns = time.time_ns()
        KNOWN.set({"line": MAIN, "epoch": epoch, "step": worker.step + 1})
        try:
            learned = worker.turn()
        except StaleWorker:  # where the line went back, its shards send everyone away
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
