"""Runs an offline job on Ray Train: workers share lanes and rows, on one node or several, over a common
folder.

Ray Train places, watches and restarts the workers; a group that lost one restarts from the newest checkpoint.
Checkpoints are the job's own, and gradients go by gloo.
"""

import pickle
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.util.metrics import Gauge

from recsys.process.malloc_tuning import BESIDE_TABLES, keep_freed_memory
from recsys.process.part_process import write_atomically
from training.continual.ray_run import ray_trainer
from training.continual.worker_process import meet
from training.offline.job import read_job, run_worker
from training.offline.loop import LoopState

PROGRESS: Final = "progress.json"
_MEET_S: Final = 120
_REPORT_S: Final = 5.0  # Ray takes one report in two seconds, and delays faster callers
_FAILURES: Final = 3  # of workers, before the job fails


class OfflineProgress(msgspec.Struct, frozen=True):
    """Progress of a job, for the driver, whose output is the job's log."""

    stage: str
    epoch: int
    learned: int
    steps: int
    log_loss: float


def fit(folder: Path, workers: int, cpus: float = 1.0) -> None:
    """Runs a prepared job on the initialised Ray. Raises RuntimeError if it fails."""
    (folder / "groups").mkdir(parents=True, exist_ok=True)
    scaling = ray.train.ScalingConfig(
        num_workers=workers, resources_per_worker={"CPU": cpus}, placement_strategy="SPREAD"
    )
    name = f"{read_job(folder).name}-{uuid.uuid4().hex[:8]}"
    settings, storage = {"folder": str(folder.resolve())}, folder / "ray"
    trainer = ray_trainer(train_loop, settings, scaling, name, storage, _FAILURES, check_s=2.0)
    try:
        trainer.fit()
    except Exception as error:
        raise RuntimeError(f"the workers failed: {type(error).__name__}: {error}") from error
    finally:
        (folder / PROGRESS).unlink(missing_ok=True)


def train_loop(settings: dict[str, Any]) -> None:
    """Runs one worker, until the candidate is in the registry."""
    context, folder = ray.train.get_context(), Path(settings["folder"])
    rank, workers = context.get_world_rank(), context.get_world_size()
    group = broadcast_from_rank_zero(uuid.uuid4().hex if rank == 0 else None)
    meet(folder / "groups" / str(group), _MEET_S)
    reporter = Reporter(rank, time.monotonic, folder / PROGRESS)
    keep_freed_memory(BESIDE_TABLES)
    try:
        run_worker(folder, rank, workers, GlooExchange(reporter, rank), reporter.report)
    finally:
        torch.distributed.destroy_process_group()


class Reporter:
    """Reports progress now and then: to Ray Train (all workers at the same step, as it waits for all), and as
    gauges to the dashboard. Worker 0's clock decides; its decision travels with its messages."""

    def __init__(self, rank: int, clock: Callable[[], float], progress: Path | None = None) -> None:
        self._rank, self._clock, self._progress = rank, clock, progress
        self._next = clock() + _REPORT_S
        self.agreed = False
        self._gauges = (
            [
                Gauge("recsys_offline_learned", "Examples learned, each as often as it was."),
                Gauge("recsys_offline_epoch", "The epoch that is being learned."),
                Gauge("recsys_offline_log_loss", "Prequential log loss of the newest step."),
            ]
            if rank == 0
            else []
        )

    def due(self) -> bool:
        """Whether worker 0 wants all to report."""
        return self._rank == 0 and self._clock() >= self._next

    def report(self, state: LoopState, sums: Mapping[str, float]) -> None:
        """Call at each step of each worker."""
        if not self.agreed:
            return
        self.agreed, self._next = False, self._clock() + _REPORT_S
        loss = next((v for name, v in sums.items() if name.startswith("loss.")), 0.0)
        loss /= max(1.0, sums.get("examples", 0.0))
        for gauge, value in zip(self._gauges, (state.learned, state.epoch, loss), strict=False):
            gauge.set(float(value))
        if self._rank == 0 and self._progress is not None:
            progress = OfflineProgress(state.stage, state.epoch, state.learned, state.steps, loss)
            write_atomically(self._progress, msgspec.json.encode(progress))
        ray.train.report(
            {"learned": state.learned, "epoch": state.epoch, "stage": state.stage, "log_loss": loss}
        )


class GlooExchange:
    """Exchanges messages between workers: a message to each, pickled, which keeps arrays bit for bit."""

    def __init__(self, reporter: Reporter, rank: int) -> None:
        self._reporter, self._rank = reporter, rank

    def __call__(self, messages: Sequence[Any]) -> list[Any]:
        is_due = self._reporter.due()
        packed = [pickle.dumps((is_due, message), protocol=5) for message in messages]
        packed[self._rank] = b""  # doesn't travel
        sizes = torch.tensor([len(message) for message in packed])
        incoming = torch.empty_like(sizes)
        torch.distributed.all_to_all_single(incoming, sizes)
        lengths = incoming.tolist()
        received = torch.empty(sum(lengths), dtype=torch.uint8)
        sent = torch.frombuffer(bytearray().join([*packed, b"\0"]), dtype=torch.uint8)[:-1]
        torch.distributed.all_to_all_single(received, sent, lengths, sizes.tolist())
        out, rest = list(messages), received.numpy().data
        for rank, length in enumerate(lengths):
            if rank != self._rank:
                other_is_due, out[rank] = pickle.loads(rest[:length])
                is_due |= other_is_due
            rest = rest[length:]
        self._reporter.agreed |= is_due
        return out
