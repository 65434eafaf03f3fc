"""Source of the control room's data: the same as `recsys status`, over a log and a connection that stay open.

Topic ends are queried once per picture; ``control`` and dead letters are read incrementally.
"""

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from recsys.app.kept_definition import kept_app
from recsys.config.system_config import Config
from recsys.log.protocol import Log
from recsys.observability.catching_up import said
from recsys.process.open_log import open_log
from runtime.control_room.control_history import ControlHistory, newest_dead_letters
from runtime.control_room.experiment_panel import ExperimentPanel
from runtime.supervision import run_file
from runtime.supervision.api_client import ApiConnection
from runtime.supervision.part_metrics import families
from runtime.supervision.processes import alive
from runtime.supervision.system_status import Status, observe_system
from serving.control_room import exposition
from serving.control_room.exposition import Samples

_ALIVE_S: Final = 5.0  # between two checks of the supervisor's process
_API_S: Final = 1.0  # for all API requests of one picture
_REUSE_S: Final = 60.0  # how long the API's last samples stand in for missing ones


class SystemWatch:
    """Data of one system. Called by one thread at a time, except ``inspect``."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config, self._state = config, Path(config.state)
        self._app = kept_app(config).name
        self._log, self._api = log, ApiConnection(config)
        self._control = ControlHistory(log)
        self._experiments = ExperimentPanel(config, lambda: open_log(config))
        self._status = Status(state=config.state, running=False, ready=False)
        self._alive_until_s, self._up = 0.0, False
        self._cached, self._cached_s = Samples(), 0.0

    def samples(self) -> Samples:
        """Samples of the parts and of the replica that answers.

        While it doesn't answer, its samples of the last minute are reused: that is when an operator looks.
        """
        until_s = time.monotonic() + _API_S
        self._status = self._gather(until_s)
        scraped = exposition.parse(self._api.text("/metrics", until_s)) if self._up else {}
        if scraped or not self._up or time.monotonic() - self._cached_s > _REUSE_S:
            # ``PictureBuilder`` caches the samples of named replicas, with their age.
            self._cached = {s: v for s, v in scraped.items() if 'replica="' not in s}
            self._cached_s = time.monotonic()
        return self._cached | scraped | exposition.samples_of(families(self._status))

    def panels(self) -> Mapping[str, Any]:
        """Everything of a picture that isn't a sample."""
        self._control.turn()
        status, control = self._status, self._control.panel()
        return {
            "app": self._app,
            "running": status.running,
            "served": status.served and msgspec.to_builtins(status.served),
            "lost": status.lost,
            "logs": str((self._state / "run").resolve()),
            "parts": [
                {"name": part.name, "state": part.state, "failure": part.failure or said(part.catching_up)}
                for part in status.parts
            ],
            "quarantined": [name for part in status.parts for name in part.names.get("quarantined", ())],
            "control": control,
            "letters": newest_dead_letters(self._log),
            "experiments": self._experiments.panel(self._control.experiments, self._control.starts),
            "experiments_left_out": self._experiments.left_out,
        }

    def inspect(self, kind: str, name: str) -> tuple[int, bytes]:
        """Status and JSON of an item or a user, from the API with the admin key."""
        try:
            return self._api.get(f"/v1/inspect/{kind}/{quote(name, safe='')}")
        except httpx.RequestError:
            return 503, b'{"error": "the API does not answer"}'

    def _gather(self, until_s: float) -> Status:
        running = run_file.read(self._state)
        if running is None:
            return Status(state=self._config.state, running=False, ready=False)
        if time.monotonic() >= self._alive_until_s:
            self._up = alive(running.supervisor)
            self._alive_until_s = time.monotonic() + _ALIVE_S
        server = self._api.json_object("/v1/status", until_s) if self._up else {}
        offsets = _CachedOffsets(self._log)
        return observe_system(self._state, running, self._up, self._log, offsets, server)


class _CachedOffsets:
    """A log whose offsets are queried once each: many parts read the same topics."""

    def __init__(self, log: Log) -> None:
        self.partitions = cache(log.partitions)
        self.begin = cache(log.begin)
        self.end = cache(log.end)
        self.read = log.read
