"""A worker of the continual trainer, in a process that Ray Train starts."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero

from parameter_server.rpc.parameter_client import StaleWorker, WorkerId
from parameter_server.rpc.shard_actor import await_shards, connect, node_address
from parameter_server.rpc.shard_tls import open_tls
from recsys.clock import machine_ms, machine_ns
from recsys.config.system_config import Config
from recsys.events.records import STEPS
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import LogDamaged, LogUnavailable
from recsys.model.model import build_model
from recsys.observability.log_lines import LOG_CONTEXT, log_in_worker
from recsys.observability.tracer import open_tracer
from recsys.process.latency_tuning import freeze_gc
from recsys.process.malloc_tuning import keep_freed_memory
from recsys.process.open_log import open_log
from recsys.process.process_priority import lower_priority
from training.continual.jagged import keyed_jagged, load
from training.continual.learner import Learner
from training.continual.trainer_run import NICE, PART, Failure, LearnTrace, run_of
from training.continual.worker import Worker
from training.lines.control import live_epoch, model_now
from training.lines.line import MAIN, spec_of
from training.steps.sequencer_loop import EpochEnd

_MEET_S: Final = 60
_PAUSE_S: Final = 2.0  # before a group that fails at once is restarted
_AGAIN_S: Final = 0.5  # while the log is unavailable
_LOG: Final = logging.getLogger(__name__)


def run_worker(settings: dict[str, Any]) -> None:
    """Runs one worker until it is killed; returns if another run has taken over."""
    lower_priority(NICE)  # in a cluster of others no earlier code of this project did
    config = msgspec.convert(settings["config"], Config)
    run_files, name = run_of(config), settings["run"]
    if config.tracing.endpoint:
        config = replace(config, tracing=replace(config.tracing, endpoint=run_files.endpoint()))
    rank = ray.train.get_context().get_world_rank()
    log_in_worker(PART, config.state, f"worker-{rank}", config.logging.format, {"worker": rank})
    try:
        generation, epoch = broadcast_from_rank_zero(
            (run_files.next_generation(name, machine_ms()), _epoch_now(config, settings["epoch"]))
            if rank == 0
            else None
        )
        if generation:
            # Raises if a worker is missing or uses another state folder.
            groups = Path(config.state) / "parts" / PART / "runs" / "groups"
            meet(groups / str(generation), _MEET_S)
            torch.distributed.destroy_process_group()  # nothing else uses it, and it listens
            while True:
                epoch = _work(config, rank, generation, epoch)
    except Exception as error:
        if isinstance(error, StaleWorker) and not run_files.is_newest(name):
            return
        run_files.failed(Failure(rank, f"{type(error).__name__}: {error}"[:500], machine_ms()))
        time.sleep(_PAUSE_S)
        raise


def meet(file: Path, timeout_s: float) -> None:
    """Waits for all workers of a group, by gloo through a file in a folder that all reach: Ray's own setup
    opens a store that listens on all interfaces."""
    context = ray.train.get_context()
    os.environ["GLOO_SOCKET_IFNAME"] = interface_of(node_address())  # else that of the host name
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{file}",
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=timeout_s),
    )


def interface_of(address: str) -> str:
    """Name of the network interface with an address."""
    interfaces = psutil.net_if_addrs()
    for name, own in interfaces.items():
        if address in {each.address for each in own}:
            return str(name)
    raise ValueError(
        f"no network interface of this node has Ray's address {address}, expected one of "
        f"{', '.join(interfaces)}: start the node with an address of its own"
    )


def _epoch_now(config: Config, started: int) -> int:
    """The live epoch at the start of a group, which may be later than at the start of its driver."""
    with closing(open_log(config)) as log:
        return max(started, live_epoch(log))


def _work(config: Config, rank: int, generation: int, epoch: int) -> int:
    """Learns the steps of an epoch; returns the next epoch once that is live and this one is learned."""
    workers, log = ray.train.get_context().get_world_size(), open_log(config)
    config, features = model_now(log, config, feature_set(config), MAIN, epoch)
    spec = spec_of(config, epoch=epoch)
    ended = EpochEnd(log, MAIN, epoch)
    pause = partial(time.sleep, 0.2)
    shards = await_shards(spec, lambda: ended.left_for() is not None, pause, _MEET_S)
    if shards is None:
        following = ended.left_for()
        log.close()
        return epoch if following is None else following
    tls = open_tls(config.parameter_server).worker
    client = connect(spec, shards, WorkerId(rank, workers, generation), tls)
    model = build_model(features, config.model)
    is_cuda = config.trainer.device == "cuda"
    # On a CPU torchrec's batches give the same bits, and importing it takes 100 MB and a second.
    learner = Learner(model, keyed_jagged if is_cuda else None, config.trainer.device)
    worker = Worker(rank, workers, log, client, learner, config, MAIN, epoch)
    if is_cuda:
        load()
    freeze_gc()
    keep_freed_memory()
    _LOG.info("learning", extra={"line": MAIN, "epoch": epoch, "workers": workers})
    tracer = open_tracer(config, PART) if rank == 0 else None  # one span for a step
    trace = LearnTrace(tracer, run_of(config), MAIN, epoch) if tracer else None
    try:
        again = partial(time.sleep, _AGAIN_S)
        following = _learn(worker, epoch, ended, trace, lambda: log.wait(STEPS, 0.5), again)
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
    pause: Callable[[], object],
) -> int:
    """Learns until the line continues in another epoch, which is returned. It waits for an unavailable log: a
    broker fails over sooner than a group restarts."""
    while True:
        LOG_CONTEXT.set({"line": MAIN, "epoch": epoch, "step": worker.step + 1})
        try:
            following = _turn(worker, ended, trace, wait)
        except LogDamaged:
            raise
        except LogUnavailable as error:
            _LOG.warning("log unavailable, trying again: %s", error)
            pause()
            continue
        if following is not None:
            return following


def _turn(
    worker: Worker, ended: EpochEnd, trace: LearnTrace | None, wait: Callable[[], object]
) -> int | None:
    """Learns at most one step, or waits for one; returns the next epoch where this one is learned."""
    following, began_ns = None, machine_ns()
    try:
        learned = worker.turn()
    except StaleWorker:  # after a rollback the shards reject all workers
        learned, following = 0, ended.left_for()
        if following is None:
            raise
    if trace and learned:
        trace.learned(worker.step, learned, began_ns, machine_ns())
    if trace:
        trace.count(time.monotonic())
    if not learned:
        following = following or ended.following(worker.step)
        if following is None:
            wait()
    return following
