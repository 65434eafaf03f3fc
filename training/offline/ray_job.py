"""Runs an offline job on Ray Train: workers share lanes and rows, on one node or several, over a common
folder.

Ray Train places, watches and restarts the workers; a group that lost one restarts from the newest checkpoint.
Checkpoints are the job's own, and gradients go by gloo.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero

from recsys.process.malloc_tuning import BESIDE_TABLES, keep_freed_memory
from recsys.process.part_process import write_atomically
from training.continual.ray_run import ray_trainer
from training.continual.worker_process import meet
from training.offline.job import read_job, run_worker
from training.offline.loop import LoopState
from training.offline.sharding import decode, encode

PROGRESS: Final = "progress.json"
_MEET_S: Final = 120
_REPORT_S: Final = 5.0
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
    report = [Reporter(time.monotonic, folder / PROGRESS).report] if rank == 0 else []
    keep_freed_memory(BESIDE_TABLES)
    try:
        run_worker(folder, rank, workers, partial(exchange, rank=rank), *report)
    finally:
        torch.distributed.destroy_process_group()


class Reporter:
    """Reports progress now and then, to a file. Worker 0 has one."""

    def __init__(self, clock: Callable[[], float], progress: Path) -> None:
        self._clock, self._progress = clock, progress
        self._next = clock() + _REPORT_S

    def report(self, state: LoopState, sums: Mapping[str, float]) -> None:
        """Call at each step."""
        if (now := self._clock()) < self._next:
            return
        self._next = now + _REPORT_S
        loss = next((v for name, v in sums.items() if name.startswith("loss.")), 0.0)
        loss /= max(1.0, sums.get("examples", 0.0))
        progress = OfflineProgress(state.stage, state.epoch, state.learned, state.steps, loss)
        write_atomically(self._progress, msgspec.json.encode(progress))


def exchange(messages: Sequence[Any], kind: Any, rank: int) -> list[Any]:
    """Exchanges messages of a type between workers, one to each. Gloo doesn't authenticate who sends, so only
    numbers, texts and arrays are read."""
    packed = [encode(message) for message in messages]
    packed[rank] = b""  # doesn't travel
    sizes = torch.tensor([len(message) for message in packed])
    incoming = torch.empty_like(sizes)
    torch.distributed.all_to_all_single(incoming, sizes)
    lengths = incoming.tolist()
    received = torch.empty(sum(lengths), dtype=torch.uint8)
    sent = torch.frombuffer(bytearray().join([*packed, b"\0"]), dtype=torch.uint8)[:-1]
    torch.distributed.all_to_all_single(received, sent, lengths, sizes.tolist())
    parts = [part.numpy().data for part in torch.split(received, lengths)]
    return [messages[n] if n == rank else decode(part, kind) for n, part in enumerate(parts)]
