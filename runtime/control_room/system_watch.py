"""What the control room sees of a system: as `recsys status`, but over a log and a connection that stay open.

Ends of topics are asked once for each picture, and ``control`` and dead letters are folds that read on.
"""

import http.client
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from recsys.config.system_config import Config
from recsys.log.protocol import Log, Record
from recsys.process.open_log import open_log
from recsys.process.part_process import Beat, read_beat
from runtime.control_room.api_client import Door
from runtime.control_room.control_history import ControlStory, LettersStory
from runtime.control_room.experiment_folds import Trials
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file as runs
from runtime.supervision.part_metrics import families
from runtime.supervision.processes import Identity, alive
from runtime.supervision.system_status import Status, judged
from serving.control_room import exposition
from serving.control_room.exposition import Samples

_ALIVE_S: Final = 5.0  # between two looks at the supervisor's process
_ASKED_S: Final = 1.0  # for all that the API is asked for one picture
_KEPT_S: Final = 60.0  # of what it said, where it says nothing now
_QUIET: Final = ("trainer", "joiner", "session-fold")  # whose curves go on while nobody looks


class Watch:
    """One system. One thread at a time asks; ``inspect`` may be asked by others meanwhile."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config, self._state = config, Path(config.state)
        self._log = log
        url = plans.feed_url(config)
        self._api, self._inspected = Door(url), Door(url)
        self._control, self._letters = ControlStory(log), LettersStory(log)
        self._trials = Trials(config, lambda: open_log(config))
        self._status = Status(state=config.state, running=False, ready=False)
        self._alive_until_s, self._up = 0.0, False
        self._told, self._told_s = Samples(), 0.0

    def samples(self) -> Samples:
        """Of the parts, and of the replica that answers: where it says nothing, what it said within the last
        minute, since that is when one looks."""
        until_s = time.monotonic() + _ASKED_S
        self._status = self._gathered(until_s)
        told = exposition.read(self._api.text("/metrics", until_s)) if self._up else {}
        if told or not self._up or time.monotonic() - self._told_s > _KEPT_S:
            # A picture keeps for itself what a named replica said, with its age.
            self._told = {s: v for s, v in told.items() if 'replica="' not in s}
            self._told_s = time.monotonic()
        return self._told | told | exposition.keyed(families(self._status))

    def quiet(self) -> Samples:
        """What is worth a curve, of heartbeats alone: a look that costs next to nothing."""
        beats = {name: read_beat(self._beat(name)) for name in _QUIET}
        parts = [runs.PartRecord(name=name, state="ready") for name in _QUIET]
        running = runs.Running(supervisor=_NOBODY, asked="", started_ms=0, time_ms=0, parts=parts)
        status = judged(self._state, running, True, beats, None, {})
        said = exposition.keyed(families(status))
        return {series: v for series, v in said.items() if not series.startswith("recsys_part")}

    def panels(self) -> Mapping[str, Any]:
        self._control.turn()
        self._letters.turn()
        status, control = self._status, self._control.panel()
        return {
            "running": status.running,
            "feed": plans.feed_url(self._config),
            "served": status.served and msgspec.to_builtins(status.served),
            "cut": status.cut and msgspec.to_builtins(status.cut),
            "lost": status.lost,
            "parts": [
                {"name": its.name, "state": its.state, "failure": its.failure}
                for its in status.parts
            ],
            "control": control,
            "letters": self._letters.panel(),
            "experiments": self._trials.panel(list(self._control.revisions)),
            "experiments_left_out": self._trials.left_out,
        }

    def inspect(self, kind: str, name: str) -> tuple[int, bytes]:
        """An item or a user, as the API tells who has the admin key."""
        key = (self._state / "run" / "admin.key").read_text().strip()
        try:
            path = f"/v1/inspect/{kind}/{quote(name, safe='')}"
            return self._inspected.get(path, {"x-admin-key": key})
        except (OSError, http.client.HTTPException):
            return 503, b'{"error": "the API does not answer"}'

    def _gathered(self, until_s: float) -> Status:
        running = runs.read(self._state)
        if running is None:
            return Status(state=self._config.state, running=False, ready=False)
        if time.monotonic() >= self._alive_until_s:
            self._up = alive(running.supervisor)
            self._alive_until_s = time.monotonic() + _ALIVE_S
        beats: dict[str, Beat | None] = {
            part.name: read_beat(self._beat(part.name)) for part in running.parts
        }
        server = _object(self._api.text("/v1/status", until_s)) if self._up else {}
        return judged(self._state, running, self._up, beats, _Once(self._log), server)

    def _beat(self, part: str) -> Path:
        return self._state / "run" / f"{part}.json"


class _Once:
    """A log whose ends are asked once: many parts read the same topics."""

    def __init__(self, log: Log) -> None:
        self._log, self._known = log, dict[tuple[str, str, int], int]()

    def partitions(self, topic: str) -> int:
        return self._ask("partitions", topic, -1)

    def begin(self, topic: str, partition: int) -> int:
        return self._ask("begin", topic, partition)

    def end(self, topic: str, partition: int) -> int:
        return self._ask("end", topic, partition)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        return self._log.read(topic, partition, offset, limit)

    def _ask(self, what: str, topic: str, partition: int) -> int:
        key = what, topic, partition
        if key not in self._known:
            asked = (topic,) if partition < 0 else (topic, partition)
            self._known[key] = getattr(self._log, what)(*asked)
        return self._known[key]


_NOBODY: Final = Identity(pid=0, started=0.0)


def _object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
