"""kill -9 of parts under traffic: no acknowledged event is lost, and the system goes on where it stopped."""

import time

import pytest

from tests.support.fault_checks import (
    LIGHT,
    WITHIN,
    check_archive,
    check_examples_once,
    learned_all,
)
from tests.support.live_system import LiveSystem, Traffic, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]

HEAVY = ("trainer", "serve", "shards")


def test_any_part_killed_comes_back_and_nothing_acknowledged_is_lost(system: LiveSystem) -> None:
    traffic = Traffic(system)
    time.sleep(3)
    for name in LIGHT:
        system.kill_part(name)
        time.sleep(1.5)
    system.wait_ready()
    for part, words in WITHIN:
        system.kill_within(part, words)
        time.sleep(4)
    system.wait_ready()
    for name in HEAVY:
        system.kill_part(name)
        time.sleep(3)
    system.wait_ready(180)
    system.kill_part("ray")
    time.sleep(4)
    system.wait_ready(180)
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
