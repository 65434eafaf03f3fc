"""Ray's dashboard in one process: its views answer on its own event loop, not in nine more processes.

Run it in place of ``ray/dashboard/dashboard.py``. A view still answers over its unix socket.
"""

import os
import runpy
from types import SimpleNamespace
from typing import Any

from ray.dashboard.subprocesses import handle
from ray.dashboard.subprocesses.utils import get_http_session_to_module


class ViewHandle(handle.SubprocessModuleHandle):
    """Overrides methods of the pinned Ray that start and await a process."""

    process: Any

    @classmethod
    def preload_in_forkserver(cls, module_classes: Any) -> None: ...

    def start_module(self) -> None:
        self.process = SimpleNamespace(pid=os.getpid(), exitcode=None)
        os.makedirs(self.config.socket_dir, exist_ok=True)

    def wait_for_module_ready(self) -> None:
        """Serves the view with the first turn of the loop."""
        view: Any = self.module_cls(self.config)
        self._serving = self.loop.create_task(view.run())
        self.http_client_session = get_http_session_to_module(
            self.module_cls.__name__, self.config.socket_dir, self.config.session_name
        )


if __name__ == "__main__":
    handle.SubprocessModuleHandle = ViewHandle  # type: ignore[misc]
    runpy.run_module("ray.dashboard.dashboard", run_name="__main__")
