"""Ray Serve's HAProxy with a hardened configuration, and started again at once when it dies.

Serve notices a dead HAProxy by three failed checks, and then starts its manager anew, which knows no replica
at first: nine seconds without answers. This subclass waits for the process instead. Import it in the
manager's process only: it replaces Serve's class.
"""

import asyncio
import logging
import os
import resource
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ray.serve._private import haproxy

from recsys.process.part_process import write_atomically
from runtime.parts.haproxy_config import ERROR_PAGE, harden, settings
from runtime.supervision import launch_plan
from runtime.supervision.processes import STATE
from serving.access.key_files import DOOR_KEY

# HAProxy opens two files for a connection and half a pipe, and some of its own. It doesn't start if the limit
# of the process is lower.
_FILES: Final = 2.5
_OTHER_FILES: Final = 200
_log = logging.getLogger("ray.serve")


class HardenedHAProxy(haproxy.HAProxyApi):
    """Overrides private methods of the pinned Ray: a test checks that they exist."""

    def __init__(
        self, cfg: haproxy.HAProxyConfig, backend_configs: Any = None, *, config_file_path: str
    ) -> None:
        state = Path(os.environ[STATE])
        self._settings, self._door_file = launch_plan.read(state)[0], state / "run" / DOOR_KEY
        self._door_key = self._door_file.read_text().strip()
        self._error_page = Path(config_file_path).with_name("503.http")  # in place of Serve's 500
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        wanted = self._settings.doors.connections
        self._most = most = int((files - _OTHER_FILES) / _FILES) if files > 0 else sys.maxsize
        if most < wanted:
            _log.warning("doors.connections is %d, but %d files allow %d", wanted, files, most)
        super().__init__(cfg, backend_configs, config_file_path)
        write_atomically(self._error_page, ERROR_PAGE.encode())
        self._replacing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    def _generate_config_file_internal(self) -> None:
        # Serve outlives a system that was killed on a cluster, and keeps its own address.
        with suppress(OSError):
            config, _ = launch_plan.read(os.environ[STATE])
            self._settings = replace(config, serve=self._settings.serve)
            self._door_key = self._door_file.read_text().strip()
        for name, value in settings(self._settings, self._most, self._error_page).items():
            setattr(self.cfg, name, value)
        super()._generate_config_file_internal()
        file = Path(self.config_file_path)
        hardened = harden(file.read_text(), self._settings, self._door_key)
        write_atomically(file, hardened.encode())

    async def _start_and_wait_for_haproxy(self, *arguments: str, **named: Any) -> Any:
        process = await super()._start_and_wait_for_haproxy(*arguments, **named)
        self._end_watch()
        self._watch = asyncio.create_task(self._revive(process))
        return process

    async def _graceful_reload(self) -> None:
        async with self._replacing:
            await super()._graceful_reload()

    async def stop(self) -> None:
        self._end_watch()
        await super().stop()

    def _end_watch(self) -> None:
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()

    async def _revive(self, process: Any) -> None:
        """Starts HAProxy again with the newest configuration once ``process`` has died."""
        status = await process.wait()
        async with self._replacing:  # not while a reload replaces the process
            if self._proc is process:
                _log.warning("HAProxy ended with status %s: it starts again", status)
                self._proc = await self._start_and_wait_for_haproxy()


haproxy.HAProxyApi = HardenedHAProxy  # type: ignore[assignment,misc]
