"""A Ray Train run of workers with one thread each, which meet by files (``worker_process.meet``).

Private methods of the pinned Ray are overridden, to start no actors that nothing here uses, each of 120 MB;
tests name them.
"""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import ray.train
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from recsys.config.system_config import Config
from training.continual.trainer_run import PART


class FixedWorkers(FixedScalingPolicy):
    """So many workers from the beginning, without an actor that asks an autoscaler for them."""

    def after_controller_start(self, train_run_context: Any) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...


class Trainer(DataParallelTrainer):
    """Ray Train without actors for data sets, for autoscaling, and to remove a placement group, which goes
    with the driver's job."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        arguments["callbacks"] = [c for c in arguments["callbacks"] if not isinstance(c, unused)]
        arguments["scaling_policy"] = FixedWorkers(arguments["scaling_policy"].scaling_config)
        return self._run_controller(arguments)

    def _run_controller(self, arguments: dict[str, Any]) -> Any:
        return super()._initialize_and_run_controller(**arguments)


class TrainerInActor(Trainer):
    """A trainer that is in an actor already, and needs none for its controller."""

    def _run_controller(self, arguments: dict[str, Any]) -> Any:
        controller = TrainController(**arguments)
        asyncio.run(controller.run())  # type: ignore[no-untyped-call]
        return controller.get_result()


def continual_trainer(settings: dict[str, Any]) -> Trainer:
    """The run of the continual trainer, from an actor. ``settings``: arguments of ``train_loop``."""
    config = msgspec.convert(settings["config"], Config)
    runs = Path(config.state) / "parts" / PART / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # of earlier drivers
    (runs / "groups").mkdir(parents=True)
    trainer, is_cuda = config.trainer, config.trainer.device == "cuda"
    resources = {"CPU": trainer.cpus_per_worker}
    resources |= {"GPU": trainer.gpus_per_worker} if is_cuda else {}
    scaling = ray.train.ScalingConfig(
        num_workers=trainer.workers,
        use_gpu=is_cuda,
        resources_per_worker=resources,
        placement_strategy="SPREAD",
    )
    return ray_trainer(
        train_loop, settings, scaling, settings["run"], runs, failures=-1, check_s=0.5, kind=TrainerInActor
    )


def ray_trainer(
    loop: Callable[[dict[str, Any]], None], settings: dict[str, Any],
    scaling: ray.train.ScalingConfig, name: str, storage: Path, failures: int, check_s: float,
    kind: type[Trainer] = Trainer,
) -> Trainer:  # fmt: skip
    """A run of workers. ``failures`` of workers end it, -1: none does; ``check_s``: time until a dead worker
    is noticed."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(check_s))
    return kind(
        loop,
        train_loop_config=settings,
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=failures),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},  # type: ignore[call-arg]
        ),
    )


def train_loop(settings: dict[str, Any]) -> None:
    """Runs one worker. It alone imports what learns."""
    from training.continual.worker_process import run_worker

    run_worker(settings)
