"""An offline job on Ray Train: workers that share lanes, on one node or several, over a folder all can reach.

Ray Train places, watches and restarts the workers; it carries neither checkpoints (they are the job's own)
nor gradients: those go by gloo, met through a file in the job's folder, as Ray's own store would listen on
all interfaces. A group that lost a worker starts again from the newest checkpoint.
"""

import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import ray
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer
from ray.util.metrics import Gauge

from parameter_server.shard.lanes import LaneGradients, StepSum
from recsys.process.part_process import write_atomically
from training.continual.driver import GlooByFile
from training.offline.job import learn, read_job
from training.offline.loop import Place
from training.offline.trainer import LaneResult

PROGRESS: Final = "progress.json"
_MEET_S: Final = 120
_REPORT_S: Final = 5.0  # Ray takes one report in two seconds, and makes whoever is quicker wait
_FAILURES: Final = 3  # of workers, before the job gives up


class OfflineProgress(msgspec.Struct, frozen=True):
    """How far a job has come, for the driver, whose output is what a job's log shows."""

    stage: str
    epoch: int
    learned: int
    steps: int
    log_loss: float


class _Lane(msgspec.Struct, array_like=True):
    lane: int
    gradients: bytes
    probabilities: bytes
    outputs: int


class _Told(msgspec.Struct, array_like=True):
    report: bool
    lanes: list[_Lane]


def fit(folder: Path, workers: int, cpus: float = 1.0) -> None:
    """Runs a job that was prepared on the Ray that is initialised. Raises RuntimeError where it failed."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "2.0")
    (folder / "groups").mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1"}
    if str(ray.util.get_node_ip_address()).startswith("127."):  # type: ignore[no-untyped-call]
        environment["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"folder": str(folder.resolve())},
        torch_config=GlooByFile(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": cpus}, placement_strategy="SPREAD"
        ),
        run_config=ray.train.RunConfig(
            name=f"{read_job(folder).name}-{uuid.uuid4().hex[:8]}",
            storage_path=str((folder / "ray").resolve()),
            failure_config=ray.train.FailureConfig(max_failures=_FAILURES),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise RuntimeError(f"the workers failed: {type(error).__name__}: {error}") from error
    finally:
        (folder / PROGRESS).unlink(missing_ok=True)


def train_loop(settings: dict[str, Any]) -> None:
    """One worker, until the candidate is in the registry."""
    context, folder = ray.train.get_context(), Path(settings["folder"])
    rank, workers = context.get_world_rank(), context.get_world_size()
    group = broadcast_from_rank_zero(uuid.uuid4().hex if rank == 0 else None)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'groups' / str(group)}",
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=_MEET_S),
    )
    its = Reporter(rank, time.monotonic, folder / PROGRESS)
    try:
        learn(folder, rank, workers, Gathered(its, workers), its.tell)
    finally:
        torch.distributed.destroy_process_group()


class Reporter:
    """Says how it goes, now and then: to Ray Train (all workers at the same step, as it waits for all), and
    as gauges to the dashboard. Worker 0's clock decides; its word goes with its lanes."""

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

    def tell(self, place: Place, sums: Mapping[str, float]) -> None:
        """At each step of each worker."""
        if not self.agreed:
            return
        self.agreed, self._next = False, self._clock() + _REPORT_S
        loss = next((v for name, v in sums.items() if name.startswith("loss.")), 0.0)
        loss /= max(1.0, sums.get("examples", 0.0))
        for gauge, value in zip(self._gauges, (place.learned, place.epoch, loss), strict=False):
            gauge.set(float(value))
        told = OfflineProgress(place.stage, place.epoch, place.learned, place.steps, loss)
        if self._rank == 0 and self._progress is not None:
            write_atomically(self._progress, msgspec.json.encode(told))
        ray.train.report(
            {"learned": place.learned, "epoch": place.epoch, "stage": place.stage, "log_loss": loss}
        )


class Gathered:
    """The exchange between workers: each tells all others its lanes, as bytes."""

    def __init__(self, reporter: Reporter, workers: int) -> None:
        self._reporter, self._workers = reporter, workers

    def __call__(self, own: Sequence[LaneResult]) -> list[LaneResult]:
        told = [
            msgspec.msgpack.decode(part, type=_Told)
            for part in _all_gather(packed(own, self._reporter.due()), self._workers)
        ]
        self._reporter.agreed = any(part.report for part in told)
        return sorted(
            (unpacked(lane) for part in told for lane in part.lanes),
            key=lambda result: result.gradients.lane,
        )


def packed(own: Sequence[LaneResult], report: bool) -> bytes:
    """A worker's lanes as bytes."""
    lanes = []
    for its in own:
        lane = its.gradients
        total = StepSum(lane.lane, 0, lane.tables, lane.dense, lane.metrics, lane.forget)
        probabilities = np.ascontiguousarray(its.probabilities_BL)
        lanes.append(
            _Lane(lane.lane, total.encode(), probabilities.tobytes(), probabilities.shape[1])
        )
    return msgspec.msgpack.encode(_Told(report, lanes))


def unpacked(lane: _Lane) -> LaneResult:
    """A lane as it was packed, bit for bit."""
    total = StepSum.decode(lane.gradients)
    probabilities = np.frombuffer(lane.probabilities, np.float32).reshape(-1, lane.outputs)
    its = LaneGradients(lane.lane, total.tables, total.dense, total.metrics, total.forget)
    return LaneResult(its, probabilities)


def _all_gather(data: bytes, workers: int) -> list[bytes]:
    """The bytes of all workers, by rank."""
    if workers == 1:
        return [data]
    size = torch.tensor([len(data)])
    sizes = [torch.zeros_like(size) for _ in range(workers)]
    torch.distributed.all_gather(sizes, size)
    longest = max(int(its) for its in sizes)
    own = torch.zeros(longest, dtype=torch.uint8)
    own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    parts = [torch.empty_like(own) for _ in range(workers)]
    torch.distributed.all_gather(parts, own)
    return [part[: int(its)].numpy().tobytes() for part, its in zip(parts, sizes, strict=True)]
