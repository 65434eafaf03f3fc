"""kill -9 while events flow: what was acknowledged is kept, and the system goes on where it was."""

import time

import pytest

from recsys.client import ApiError
from recsys.events.event_types import Engagement, decode
from recsys.events.records import EVENTS, EXAMPLES, Example, unpack
from recsys.process.open_log import open_log
from runtime.supervision.launch_plan import EMBEDDED_KAFKA
from runtime.supervision.system_status import gather
from tests.support.live_system import LiveSystem, Traffic, until
from training.archive.writer import archived_rows

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]

# Parts that come back in a moment, killed one every few seconds; then those that Ray has to start again.
LIGHT = ("session-fold", "counters", "joiner", "archive", "sequencer", "director", "valkey")
# A process that Ray runs: by part and by what its command line says.
WITHIN = (
    ("ray", "ShardActor"),
    ("ray", "ServeReplica"),
    ("ray", "RayTrainWorker"),
    ("ray", "haproxy.cfg"),
)
HEAVY = ("trainer", "serve", "shards")


def test_any_part_killed_comes_back_and_nothing_acknowledged_is_lost(tmp_path):
    system = LiveSystem(tmp_path / "state")
    try:
        system.up()
        system.publish_world()
        traffic = Traffic(system)
        time.sleep(5)
        for name in LIGHT:
            system.kill_part(name)
            time.sleep(2)
        system.wait_ready()
        for part, words in WITHIN:
            assert system.kill_within(part, words), f"no process {words} to kill"
            time.sleep(5)
        system.wait_ready()
        for name in HEAVY:
            system.kill_part(name)
            time.sleep(4)
        system.wait_ready(180)
        system.kill_part("ray")
        time.sleep(4)
        system.wait_ready(180)
        flowing = len(traffic.acknowledged)
        time.sleep(3)
        traffic.stop()
        assert len(traffic.acknowledged) > flowing, "no event was taken after the last kill"
        before = _learned_all(system)
        _check_archive(system, traffic.acknowledged)
        _check_examples_once(system)

        with system.client() as client:
            session = client.session("u1")
        system.kill_everything()
        system.up()
        system.wait_ready()
        with system.client() as client:
            again = client.session("u1")
            version = client.status()["version"]
        assert again["events"] == session["events"] > 0
        assert version["step"] >= before
        later = Traffic(system)
        until(lambda: _step(system) > version["step"], 60, "the model goes on learning")
        later.stop()
    finally:
        system.down()


def test_over_a_broker_parts_come_back_and_its_own_loss_is_told(tmp_path):
    system = LiveSystem(tmp_path / "state", log=EMBEDDED_KAFKA)
    try:
        system.up()
        system.publish_world()
        traffic = Traffic(system)
        time.sleep(4)
        for name in LIGHT:
            system.kill_part(name)
            time.sleep(1.5)
        for part, words in WITHIN:
            assert system.kill_within(part, words), f"no process {words} to kill"
            time.sleep(4)
        system.wait_ready()
        flowing = len(traffic.acknowledged)
        until(lambda: len(traffic.acknowledged) > flowing, 30, "events are taken again")
        traffic.stop()
        _check_archive(system, traffic.acknowledged)
        _check_examples_once(system)

        assert system.kill_within("broker", "--listener-url")
        until(lambda: "broker" in gather(system.state).lost, 30, "status says what is lost")
        told = gather(system.state)
        assert not told.ready and "new state folder" in told.lost["broker"]
        with system.client() as client:  # nothing is acknowledged that nobody keeps
            with pytest.raises(ApiError):
                client.send_events([_like("u1", "late")])
            assert client.recommend("u1", 3).items, "the feed still answers"
        system.down()
        with pytest.raises(AssertionError):
            system.up()  # with a broker that has another log
        assert "holds the state of log" in gather(system.state).lost["log"]
    finally:
        system.down()


def _like(user_id, event_id):
    now_ms = time.time_ns() // 1_000_000
    return Engagement(
        time_ms=now_ms, request_id="r", user_id=user_id, item_id="i", kind="like", event_id=event_id
    )


def _learned_all(system):
    """Waits until every event is joined, learned and served; the step that is served then."""
    log = open_log(system.config)
    try:

        def settled():
            ends = [
                log.end(topic, p) for topic in (EXAMPLES,) for p in range(log.partitions(topic))
            ]
            time.sleep(1.5)
            return ends == [log.end(EXAMPLES, p) for p in range(log.partitions(EXAMPLES))]

        until(settled, 60, "examples settle")
    finally:
        log.close()
    time.sleep(3)
    return _step(system)


def _step(system):
    with system.client() as client:
        return client.status()["version"]["step"]


def _check_archive(system, acknowledged):
    def missing():
        rows = archived_rows(system.state / "archive", EVENTS, ["value"])
        events = (decode(value) for (value,) in rows)
        found = {e.event_id for e in events if isinstance(e, Engagement)}
        return acknowledged - found

    until(lambda: not missing(), 30, "the archive has all that was acknowledged")
    assert len(acknowledged) > 100


def _check_examples_once(system):
    log = open_log(system.config)
    try:
        for partition in range(log.partitions(EXAMPLES)):
            found, offset = [], log.begin(EXAMPLES, partition)
            while records := log.read(EXAMPLES, partition, offset):
                found += [unpack(record.value, Example) for record in records]
                offset = records[-1].offset + 1
            assert [e.sequence for e in found] == list(range(1, len(found) + 1)), (
                "each once, in order"
            )
            first = [(e.offset, e.index) for e in found if not e.correction]
            assert len(first) == len(set(first)), "no shown item twice"
    finally:
        log.close()
