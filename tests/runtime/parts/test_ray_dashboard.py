"""The dashboard's views in one process."""

import asyncio
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ray.dashboard.subprocesses import handle
from ray.dashboard.subprocesses.module import SubprocessModule, SubprocessModuleConfig

from runtime.parts.ray_dashboard import ViewHandle


class View(SubprocessModule):
    """A view without routes of its own, and without a cluster."""

    gcs_client = aiogrpc_gcs_channel = None


def test_a_view_answers_on_the_loop_of_the_dashboard(tmp_path: Path) -> None:
    required = [f.name for f in fields(SubprocessModuleConfig) if f.default is MISSING]
    values: dict[str, Any] = dict.fromkeys(required, "")
    config = SubprocessModuleConfig(**values | {"socket_dir": str(tmp_path)})

    async def answer() -> tuple[int, int]:
        view = ViewHandle(asyncio.get_running_loop(), View, config)
        ViewHandle.preload_in_forkserver([View])
        view.start_module()
        view.wait_for_module_ready()
        await view._serving
        health = await view._health_check()
        pid = view.process.pid
        view.process = None
        await view.destroy_module()
        return health.status, pid

    assert asyncio.run(answer()) == (200, os.getpid())


def test_the_methods_that_a_view_overrides_exist_in_the_installed_ray() -> None:
    overridden = vars(ViewHandle).keys() & vars(handle.SubprocessModuleHandle).keys()
    assert overridden >= {"preload_in_forkserver", "start_module", "wait_for_module_ready"}
