"""kill -9 of parts of a system whose log is the embedded Kafka broker, and the loss of that broker."""

import time
from pathlib import Path

import pytest

from recsys.client import ApiError
from recsys.config.system_config import ParameterServerConfig, TrainerConfig
from recsys.events.event_types import Engagement
from runtime.supervision.launch_plan import EMBEDDED_KAFKA
from runtime.supervision.system_status import gather
from tests.support.systems.fault_checks import (
    check_archive,
    check_examples_once,
    kill_light_parts,
    kill_within_ray,
)
from tests.support.systems.live_system import LiveSystem, Traffic, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]


def test_over_a_broker_parts_come_back_and_its_own_loss_is_reported(tmp_path: Path) -> None:
    system = LiveSystem(  # small, since most of the time goes into restarts
        tmp_path / "state",
        log=EMBEDDED_KAFKA,
        trainer=TrainerConfig(workers=1),
        parameter_server=ParameterServerConfig(shards=1),
    )
    try:
        system.up()
        system.publish_world()
        traffic = Traffic(system)
        until(lambda: len(traffic.acknowledged) > 50, 60, "events are taken")
        kill_light_parts(system)
        kill_within_ray(system)
        flowing = len(traffic.acknowledged)
        until(lambda: len(traffic.acknowledged) > flowing, 30, "events are taken again")
        traffic.stop()
        check_archive(system, traffic.acknowledged)
        check_examples_once(system)

        system.kill_within("broker", "--listener-url")
        until(lambda: "broker" in gather(system.state).lost, 30, "status says what is lost")
        status = gather(system.state)
        assert not status.ready and "new state folder" in status.lost["broker"]
        with system.client() as client:  # an event that no log keeps isn't acknowledged
            with pytest.raises(ApiError):
                client.send_events([_like("u1", "late")])
            assert client.recommend("u1", 3).items, "the feed still answers"
        system.down()
        with pytest.raises(AssertionError):
            system.up()  # with a broker that has another log
        assert "holds the state of log" in gather(system.state).lost["log"]
    finally:
        system.down()


def _like(user_id: str, event_id: str) -> Engagement:
    now_ms = time.time_ns() // 1_000_000
    return Engagement(
        time_ms=now_ms, request_id="r", user_id=user_id, item_id="i", kind="like", event_id=event_id
    )
