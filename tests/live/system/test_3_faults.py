"""kill -9 of parts under traffic: no acknowledged event is lost, and the system goes on where it stopped."""

import time

import pytest

from tests.support.systems.fault_checks import (
    RAY_PAUSE_S,
    check_archive,
    check_examples_once,
    kill_light_parts,
    kill_within_ray,
    learned_all,
)
from tests.support.systems.live_system import LiveSystem, Traffic, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]

HEAVY = ("trainer", "serve", "shards")


def test_any_part_killed_comes_back_and_nothing_acknowledged_is_lost(system: LiveSystem) -> None:
    traffic = Traffic(system)
    until(lambda: len(traffic.acknowledged) > 50, 60, "events are taken")
    kill_light_parts(system)
    system.wait_ready()
    kill_within_ray(system)
    for name in HEAVY:
        system.kill_part(name)
        time.sleep(RAY_PAUSE_S)
    system.wait_ready()
    system.kill_part("ray")
    time.sleep(4)
    system.wait_ready()
    flowing = len(traffic.acknowledged)
    until(lambda: len(traffic.acknowledged) > flowing, 30, "events are accepted again")
    traffic.stop()
    before = learned_all(system)
    check_archive(system, traffic.acknowledged)
    check_examples_once(system)

    with system.client() as client:
        session = client.session("u1")
    system.kill_everything()
    system.up()
    system.wait_ready()
    with system.client() as client:
        again = client.session("u1")
    version = system.version()
    assert again["events"] == session["events"] > 0
    assert version["step"] >= before
    later = Traffic(system)
    until(lambda: system.version()["step"] > version["step"], 60, "the model goes on learning")
    later.stop()
