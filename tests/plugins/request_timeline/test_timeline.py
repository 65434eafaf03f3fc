"""The life of a swipe, from the log that a real run in one process left."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from benchmarks.harness.local_system import LocalSystem, small_config
from plugins.request_timeline.timeline import TimelineReader
from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Impression, decode
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, STEPS, Example, Step, pack, unpack
from recsys.log.protocol import Append, MemoryLog, Record
from recsys.log.sqlite_log import SqliteLog
from recsys.process.open_log import create_topics
from runtime.cli.main import app
from runtime.supervision import launch_plan as plans
from runtime.supervision.launch_plan import Plan, RayPorts
from tests.support.observability.traced_swipe import swipe_and_learn

PARTS = ["impression", "engagement", "example", "step", "delta", "stamp"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("life")
    config = small_config(folder)
    system = LocalSystem(config)
    asked = asyncio.run(swipe_and_learn(system, 20))
    plans.write(config, Plan(ray=RayPorts(*range(len(RayPorts.__struct_fields__)))))
    return folder, asked


@pytest.fixture
def log(ran: tuple[Path, list[str]]) -> Iterator[SqliteLog]:
    its = SqliteLog(ran[0] / "log")
    yield its
    its.close()


def test_a_life_has_all_its_moments_in_order(ran: tuple[Path, list[str]], log: SqliteLog) -> None:
    life = TimelineReader(log, JoinConfig()).life(ran[1][2])
    assert not life.missing and {moment.what for moment in life.moments} == set(PARTS)
    firsts = [min(moment.at_ms for moment in life.of(what)) for what in PARTS]
    assert firsts == sorted(firsts)
    assert len(life.of("impression")) == 1 and len(life.of("example")) == 8
    assert len(life.of("delta")) == 2 * len(life.of("step")), "two shards"


def test_moments_are_what_stands_on_the_log(ran: tuple[Path, list[str]], log: SqliteLog) -> None:
    life = TimelineReader(log, JoinConfig()).life(ran[1][2])
    for moment in life.moments:
        topic, partition, offset = moment.place
        [record] = log.read(topic, partition, offset, 1)
        assert log.appended_ms(*moment.place) == moment.at_ms
        if moment.what == "example":
            assert unpack(record.value, Example).request_id == life.request_id
        elif moment.what == "step":
            step = unpack(record.value, Step)
            own = [its.place for its in life.of("example")]
            inside = [
                place
                for place in own
                for its in step.ranges
                if its.partition == place[1] and its.start <= place[2] < its.stop
            ]
            assert len(inside) == moment.about["own"] > 0
        elif moment.what == "stamp":
            event = decode(record.value)
            assert isinstance(event, Impression) and event.stamp is not None
            assert event.stamp.step >= moment.about["of_step"]
            check_first(log, moment.about["of_step"], moment.at_ms)
    assert sum(moment.about["own"] for moment in life.of("step")) == len(life.of("example"))


def check_first(log: SqliteLog, step: int, at_ms: int) -> None:
    """No answer before it knew the step."""
    for partition in range(log.partitions(EVENTS)):
        for record in log.read(EVENTS, partition, 0, 10_000):
            event = decode(record.value)
            earlier = log.appended_ms(EVENTS, partition, record.offset) or 0
            if isinstance(event, Impression) and event.stamp and earlier < at_ms:
                assert event.stamp.step < step


def test_the_newest_that_was_learned(ran: tuple[Path, list[str]], log: SqliteLog) -> None:
    finder = TimelineReader(log, JoinConfig())
    newest = finder.latest()
    assert newest in ran[1][-3:]
    what = {moment.what for moment in finder.life(newest).moments}
    assert {"impression", "example", "step", "delta"} <= what


def test_what_is_missing_is_said(ran: tuple[Path, list[str]], log: SqliteLog) -> None:
    copy = MemoryLog()
    create_topics(copy, small_config(ran[0]))
    for topic in (EVENTS, EXAMPLES, STEPS, DELTAS):
        finder = TimelineReader(copy, JoinConfig())
        if topic == EVENTS:
            with pytest.raises(KeyError, match="no impression of request"):
                finder.life(ran[1][2])
            with pytest.raises(KeyError, match="no answer is on events"):
                finder.latest()
        else:
            assert finder.life(ran[1][2]).missing
        for partition in range(log.partitions(topic)):
            for record in log.read(topic, partition, 0, 10_000):
                value = record.value
                if topic == STEPS:
                    value = pack(replace(unpack(value, Step), filled=1))
                copy.append(topic, [Append(partition, record.key, value)])
    whole = TimelineReader(copy, JoinConfig()).life(ran[1][2])
    assert not whole.missing and {moment.what for moment in whole.moments} == set(PARTS)
    assert {moment.about["lanes"] for moment in whole.of("step")} == {1}


class ShortReads(MemoryLog):
    """Gives less than it is asked for, as a broker does whose answer has a size."""

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        return super().read(topic, partition, offset, min(limit, 3))


def test_the_newest_is_found_where_reads_are_short(ran: tuple[Path, list[str]], log: SqliteLog) -> None:
    copy = ShortReads()
    create_topics(copy, small_config(ran[0]))
    newest = TimelineReader(log, JoinConfig()).latest()
    for topic in (EVENTS, EXAMPLES, STEPS, DELTAS):
        for partition in range(log.partitions(topic)):
            for record in log.read(topic, partition, 0, 10_000):
                copy.append(topic, [Append(partition, record.key, record.value)])
        if topic == EVENTS:
            assert TimelineReader(copy, JoinConfig()).latest() == ran[1][-1], "the newest answer"
    assert TimelineReader(copy, JoinConfig()).latest() == newest


def test_the_command(ran: tuple[Path, list[str]]) -> None:
    def invoke(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["trace", *arguments, "--state", str(ran[0])])
        return done.exit_code, done.output

    status, text = invoke(ran[1][2])
    assert status == 0 and all(what in text for what in PARTS)
    status, text = invoke("--latest", "--json", "-")
    told = json.loads(text)
    assert status == 0 and told["moments"][0]["after_ms"] == 0 and len(told["trace_id"]) == 32
    assert invoke("nobody")[0] == 2 and invoke()[0] == 2 and invoke("x", "--latest")[0] == 2
