"""Rehearses an app on its own log: a whole system over HTTP, at the log's time, many times as fast.

The rows before a time are imported. Then all parts run, and the viewers of the later rows ask for lists and
send their rows. The clock waits for the system: at the time of each row until it is sent, and for a viewer's
session before the viewer's next list. Afterwards a replay plays the same rows, and simple lists are asked for
them, too."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from recsys.app.definition import App
from recsys.client import Client
from recsys.clock import parse_time_ms
from recsys.config.clock_config import ClockConfig
from recsys.config.system_config import Config
from recsys.free_ports import free_ports
from recsys.process.clock_file import ClockKeeper, clock_of, start_clock
from recsys.process.open_log import create_topics, open_log
from replay.datasets.mapped_files import MappedFiles
from replay.player import Player
from replay.rehearsal import rehearsed_rows
from replay.rehearsal.http_system import HttpSystem
from replay.rehearsal.log_viewers import System
from replay.rehearsal.played_system import PlayedSystem
from replay.rehearsal.rehearsed_rows import AskedRows, RehearsalOptions
from replay.replay_run import Progress
from runtime.jobs.import_job import Importer

LIST: Final = 10  # items that are asked for
_READY_S: Final = 60.0


def config_of(settings: Config, from_ms: int) -> Config:
    """The configuration of a system that begins at the first row."""
    ports = free_ports()
    serve = replace(settings.serve, port=next(ports), dashboard=False, dashboard_port=next(ports))
    return replace(
        settings,
        clock=ClockConfig(start=str(from_ms)),  # as the machine's while it starts
        serve=serve,
        step=replace(settings.step, snapshot_s=0),  # one would be due at each step, by event time
    )


def first_row_ms(dataset: MappedFiles, rows: int, from_: str | None) -> int:
    """Time of the first row that is rehearsed. Raises ValueError for one that leaves no rows before or after
    it."""
    times = dataset.times_ms
    first_ms, last_ms = int(times[0]), int(times[-1])
    if from_ is None:  # the newest fifth at the most; other rows are shown items, or of other kinds
        if not (labelled := dataset.kinds[dataset.labels[0]]):
            raise ValueError(
                f"no row is a {dataset.labels[0]}, expected some of the first label: correct the definition"
            )
        share = labelled / len(times)
        newest = min(rows / max(share, 1 / len(times)), len(times) / 5)
        from_ms = int(times[-max(1, int(newest))])
    else:
        from_ms = parse_time_ms(from_)
    if not first_ms < from_ms <= last_ms:
        raise ValueError(
            f"--from is {from_ms}, expected a time after the first row, at {first_ms}, and no later than the "
            f"last, at {last_ms}: rows before it are imported, those from it on are rehearsed"
        )
    return from_ms


@dataclass(frozen=True)
class LogRehearsal:
    """A rehearsal in a new state folder, with the definition kept in it. ``up`` starts a configuration's
    system, ``down`` ends it."""

    app: App
    config: Config
    dataset: MappedFiles
    options: RehearsalOptions
    learn: int
    progress: Progress
    up: Callable[[Config], None]
    down: Callable[[Config], None]

    def run(self) -> dict[str, Any]:
        """Imports, plays the rows to the running system and to a replay, and returns the report."""
        players = list[Player]()
        verdict = self._import(players.append)
        live, replayed = AskedRows(), AskedRows()
        counts = self._live(live)
        (player,) = players
        player.on_scored = lambda scored: None
        self._play(PlayedSystem(player, LIST), replayed, 0.0)
        past = self.dataset.events(0, self.options.from_ms)
        report = rehearsed_rows.judged(self.app, past, live, replayed)
        return {"from_ms": self.options.from_ms, **counts, "import": verdict, **report}

    def _import(self, on_trained: Callable[[Player], None]) -> dict[str, Any] | None:
        dataset, config = self.dataset, self.config
        start_clock(config)
        with closing(open_log(config)) as log:
            create_topics(log, config)
            clock = clock_of(config)
            importer = Importer(self.app, config, log, clock, self.learn, self.progress, on_trained)
            dataset.ends_ms = self.options.from_ms
            result = importer.run(dataset, keep_times=True)
        dataset.ends_ms, dataset.learned_ms = rehearsed_rows.END_MS, 0
        retrieval: dict[str, Any] | None = result.get("retrieval")
        return None if retrieval is None else retrieval["questions"]

    def _live(self, asked: AskedRows) -> dict[str, Any]:
        try:
            self.up(self.config)
            key = (Path(self.config.state) / "run" / "admin.key").read_text().strip()
            keeper, clock = ClockKeeper(self.config.state), clock_of(self.config)
            url = f"http://127.0.0.1:{self.config.serve.port}"
            with Client(url, admin_key=key, timeout_s=30.0, clock_ms=clock) as client:
                until_s = time.monotonic() + _READY_S
                while not client.health() and time.monotonic() < until_s:
                    time.sleep(0.2)
                began_s, began_ms = time.monotonic(), clock()
                kinds, speed = self.app.features.history_of, self.options.speed
                system = HttpSystem(client, keeper, clock, speed, LIST, kinds)
                counts = self._play(system, asked, self.options.read)
                took_s = time.monotonic() - began_s
                passed_s = (clock() - began_ms) / 1000
                status = client.status()
        finally:
            self.down(self.config)
        return {
            "live": {**counts, **system.counts, "version": status["version"]},
            "speed": {"most": self.options.speed, "reached": passed_s / took_s},
            "seconds": {"all": took_s, "waits for the clock": system.waited_s},
        }

    def _play(self, system: System, asked: AskedRows, read: float) -> dict[str, Any]:
        rows = rehearsed_rows.rows_of(self.dataset, self.options)
        events: Iterator[Any] = iter(self.progress(rows))
        return dict(rehearsed_rows.play(system, events, self.app.labels[0], asked, read))
