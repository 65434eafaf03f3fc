"""What `recsys status` reads from the log and from what parts say."""

import os
import time
from pathlib import Path

import msgspec
import pytest

from recsys.app.app_file import app_of
from recsys.events.control_records import ALONE, Definition, LineHold, Live
from recsys.events.records import CONTROL, STEPS, Step, pack
from recsys.features.feature_set import set_text
from recsys.log.protocol import Append, LogUnavailable, MemoryLog, Record, Topic
from recsys.process.open_log import create_topics
from recsys.process.part_process import write_atomically
from runtime.parts import metrics
from runtime.supervision import launch_plan, system_status
from runtime.supervision.processes import Identity, identify
from runtime.supervision.run_file import PartRecord, Running
from runtime.supervision.system_status import Version, assemble, gather, last_step, version_in, waiting
from tests.support.plan_config import config_in
from training.lines.control import append_control


def test_the_last_step_is_found_and_lag_is_counted():
    log = MemoryLog()
    log.create(Topic(STEPS))
    assert last_step(log) is None and waiting(log, STEPS, [0]) == 0
    for step in range(1, 8):
        record = Step(line="main", epoch=2, step=step, ranges=[], examples=0, lanes=1, time_ms=0, config="")
        log.append(STEPS, [Append(0, b"main", pack(record))])
    assert last_step(log) == Version("main", 2, 7)
    assert waiting(log, STEPS, [5]) == 2 and waiting(log, STEPS, None) == 7
    assert waiting(log, "nonsense", [0]) is None
    log.create(Topic("events", 2))
    log.append("events", [Append(0, b"", b""), Append(1, b"", b"")])
    assert waiting(log, "events", [0, -1]) == 1  # the other partition is another worker's


def test_the_last_step_is_found_behind_a_gap():
    class Sparse(MemoryLog):
        def end(self, topic, partition):
            return super().end(topic, partition) + 40

        def read(self, topic, partition, offset, limit=1000):
            return [r for r in self._partitions(topic)[partition] if r.offset >= offset][:limit]

    log = Sparse()
    log.create(Topic(STEPS))
    record = Step(line="main", epoch=0, step=9, ranges=[], examples=0, lanes=1, time_ms=0, config="")
    log._topics[STEPS][0].append(Record(3, b"", pack(record)))
    assert last_step(log) == Version("main", 0, 9)


def test_a_version_is_read_from_where_it_stands():
    at = {"line": "main", "epoch": 1, "step": 5, "more": True}
    assert version_in(at) == version_in({"stamp": at}) == Version("main", 1, 5)
    assert version_in({"line": 3}) is None and version_in({}) is None


class CountingLog(MemoryLog):
    """Counts the records that were read of ``control``; can't be read while ``away``."""

    read_of_control, away = 0, False

    def read(self, topic, partition, offset, limit=1000):
        if self.away:
            raise LogUnavailable("away")
        records = super().read(topic, partition, offset, limit)
        self.read_of_control += len(records) if topic == CONTROL else 0
        return records

    def close(self):
        pass


def test_a_scrape_reads_nothing_of_control_which_only_grows(tmp_path, monkeypatch):
    log, config = CountingLog(), config_in(tmp_path)
    create_topics(log, config)
    text = "fields: {item: {brand: category}}\n"
    features = set_text(app_of(text).feature_set())
    change = Definition(
        digest="d" * 12, stage=ALONE, app=text, time_ms=1, reads=features, logged=features, before=features
    )
    append_control(log, *(Live(line="main", epoch=epoch) for epoch in range(50)), change)
    hold = LineHold(line="main", epoch=49, kind="behind", reason="popularity hits more")
    append_control(log, hold)
    monkeypatch.setattr(system_status, "open_log", lambda config: log)
    launch_plan.write(*launch_plan.resolve(config))
    (tmp_path / "log").mkdir()
    running = Running(supervisor=DEAD, config_digest="", started_ms=0, time_ms=0)
    write_atomically(tmp_path / "run" / "up.json", msgspec.json.encode(running))
    for away in (False, True, False):  # a log that fails for a moment is no end
        log.away = away
        scraped = metrics.text(tmp_path)
        assert (b"recsys_dead_letters 0.0" in scraped) and log.read_of_control == 0
    assert gather(tmp_path).change == "definition dddddddd: logged, no candidate yet"
    assert log.read_of_control == 52
    assert gather(tmp_path).hold == hold
    log.away = True
    assert gather(tmp_path).change == ""


ME, DEAD = identify(os.getpid()), Identity(2**22 + 1, 1e9)


def test_delays_are_those_of_the_replica(tmp_path: Path) -> None:
    """A part's delay of a like name starts at another moment."""
    delays = {"click_to_session_p95_ms": 9.0, "click_to_served_p95_ms": None}
    running = Running(supervisor=ME, config_digest="", started_ms=0, time_ms=0)
    status = assemble(tmp_path, running, True, {}, None, delays)
    assert (status.click_to_session_p95_ms, status.click_to_served_p95_ms) == (9.0, None)


@pytest.mark.parametrize(
    ("age_s", "state", "process", "ready", "stale", "shown"),
    [
        (0, "ready", ME, True, False, "ready"),
        (0, "ready", DEAD, False, False, "gone"),
        (0, "unchecked", ME, False, False, "unchecked"),
        (60, "ready", ME, False, True, "ready"),
        (60, "ready", DEAD, False, True, "gone"),
    ],
)
def test_ready_is_neither_an_old_run_file_nor_a_dead_process(age_s, state, process, ready, stale, shown):
    part = PartRecord(name="joiner", state=state, process=process)
    now_ms = int(time.time() * 1000) - 1000 * age_s
    running = Running(supervisor=ME, config_digest="", started_ms=1, time_ms=now_ms, parts=[part])
    status = assemble(Path(), running, True, {"joiner": None}, None, {})
    assert (status.ready, status.stale, status.parts[0].state) == (ready, stale, shown)
    stopped = msgspec.structs.replace(running, supervisor=DEAD)
    status = assemble(Path(), stopped, False, {"joiner": None}, None, {})
    assert status.parts[0].state == ("orphaned" if process is ME else "stopped")
    assert not status.ready and not status.stale
