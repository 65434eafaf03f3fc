"""The picture that ``recsys status`` draws."""

import io
import time

from msgspec.structs import replace
from rich.console import Console

from recsys.config.system_config import Config
from recsys.process.disk_budget import Level, Space
from runtime.parts.serve import SHARDS_AWAY
from runtime.reports.status_table import status_table
from runtime.supervision.processes import Identity
from runtime.supervision.run_file import Running
from runtime.supervision.system_status import PartStatus, Status


def drawn(rates: dict[str, float] | None = None, names: list[str] | None = None, **gauges: float) -> str:
    named = {"quarantined": names or []}
    part = PartStatus(name="serve", state="ready", gauges=gauges, rates=rates or {}, names=named)
    found = Status(state="", running=False, ready=False, parts=[part])
    running = Running(supervisor=Identity(1, 0.0), config_digest="", started_ms=0, time_ms=0)
    console = Console(file=io.StringIO(), width=100)
    console.print(status_table(found, running, Config()))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_says_what_the_director_says_of_drift() -> None:
    assert "2 alarms" in drawn(alarms=2.0)
    assert "drift" not in drawn()


def test_it_says_how_many_shards_of_retrieval_are_away() -> None:
    assert "2 shards are down" in drawn(**{SHARDS_AWAY: 2.0})


def test_damaged_snapshots_are_named() -> None:
    assert "snapshots are damaged" not in drawn(snapshots_damaged=0.0)
    assert "1 snapshots are damaged; `recsys check" in drawn(snapshots_damaged=1.0)
    assert "shards" not in drawn(**{SHARDS_AWAY: 0.0}) and "shards" not in drawn()


def test_users_in_quarantine_are_named() -> None:
    assert "quarantine" not in drawn(quarantined=0.0)
    assert "2 users in quarantine: a0, a1\n" in drawn(names=["a0", "a1"], quarantined=2.0)
    assert "9 users in quarantine: a0, a1, …" in drawn(names=["a0", "a1"], quarantined=9.0)


def test_it_says_that_clients_send_no_tokens() -> None:
    assert "3.2 engagements/s teach nothing" in drawn({"unproven": 3.21})
    assert "teach nothing" not in drawn({"unproven": 0.04}) and "teach" not in drawn()


def test_it_says_that_the_supervisor_hangs() -> None:
    found = Status(state="", running=True, ready=False, stale=True)
    time_ms = int(time.time() * 1000) - 72_000
    running = Running(supervisor=Identity(1, 0.0), config_digest="", started_ms=0, time_ms=time_ms)
    console = Console(file=io.StringIO(), width=100)
    console.print(status_table(found, running, Config()))
    assert isinstance(console.file, io.StringIO)
    assert "supervisor has written nothing for 1m12s" in console.file.getvalue()


def text_of(status: Status) -> str:
    running = Running(supervisor=Identity(1, 0.0), config_digest="", started_ms=0, time_ms=0)
    console = Console(file=io.StringIO(), width=200)
    console.print(status_table(status, running, Config()))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_disk_space_has_a_line_and_a_low_level_its_effect() -> None:
    kinds = {"archive": 6_100_000_000, "log/events": 3_000_000_000, "log/examples": 2 * 10**9, "run": 1}
    space = Space(kinds=kinds, used=sum(kinds.values()), budget=20 * 10**9, free=73 * 10**9)
    status = Status(state="", running=True, ready=True, space=space)
    text = text_of(status)
    assert "disk             11.1 of 20 GB (archive 6.1, log 5.0, run 0.0), 73.0 GB free: ok" in text
    assert "disk space is low" not in text and "disk" not in text_of(replace(status, space=None))
    full = replace(space, level=Level.FULL, why="the disk has little room")
    text = text_of(replace(status, space=full, holders=["joiner holds events/3 since 41 h"]))
    assert "disk space is low: the disk has little room; events are refused" in text
    assert "can't shrink to their share of the disk: joiner holds events/3 since 41 h" in text
