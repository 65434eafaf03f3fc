"""Forgetting in a real system: the session goes at once; unlearned, and with other shards, it goes on."""

import time
from dataclasses import replace

import pytest
import torch

from recsys.blueprint import feature_set
from recsys.cli.explainer import EQUAL, Explainer
from recsys.cli.forget import Refused, forget_user
from recsys.config import ParameterServerConfig
from recsys.hashing import partition_of
from recsys.open_log import open_log
from recsys.records import EXAMPLES, without_example
from tests.live_system import LiveSystem, Traffic

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_user_is_forgotten_and_unlearned_and_the_system_goes_on(tmp_path):
    system = LiveSystem(tmp_path / "state")
    try:
        system.up()
        system.publish_world()
        system.wait_ready(180)
        traffic = Traffic(system)
        until(lambda: version(system)["step"] >= 15, 90, "steps are learned")
        traffic.stop()
        assert unequal(system, traffic.asked[-40:]) == []
        with system.client() as client:
            assert client.session("u1")["events"] > 0
        with pytest.raises(Refused, match="recsys down"):
            forget_user("u1", system.state, unlearn=True)
        forget_user("u1", system.state, unlearn=False)
        until(lambda: events_of(system, "u1") == 0, 20, "the session is gone")
        until(lambda: said_in_examples(system, "u1"), 20, "the joiner has said so")
        system.down()

        said = forget_user("u2", system.state, unlearn=True)
        assert any("are epoch 1 now" in line for line in said), said
        log = open_log(system.config)
        partition = partition_of("u2", log.partitions(EXAMPLES))
        assert log.keyed(EXAMPLES, partition, [b"u2"], 1 << 60) == []
        log.close()
        system._config = replace(system._config, parameter_server=ParameterServerConfig(shards=3))
        system.up()
        system.wait_ready(180)
        began = version(system)
        assert began["epoch"] == 1 and events_of(system, "u2") == 0
        traffic = Traffic(system)
        until(lambda: version(system)["step"] > began["step"] + 3, 90, "the epoch goes on")
        traffic.stop()
        assert version(system)["epoch"] == 1
        others = [its for its in traffic.asked[-40:] if its[1] not in ("u1", "u2")]
        assert unequal(system, others) == []  # their own events are gone, and came again
    finally:
        system.down()


def unequal(system: LiveSystem, asked: list[tuple[str, str]]) -> list[str]:
    """The answers of a running system that can't be made again from what its parts wrote."""
    torch.set_num_threads(1)  # as a replica has it
    log = open_log(system.config)
    try:
        explainer = Explainer(log, system.config, feature_set(system.config))
        found = [explainer.explain(request_id, user) for request_id, user in asked]
        return [f"{its.why} {its.differences[:2]}" for its in found if its.verdict != EQUAL]
    finally:
        log.close()


def said_in_examples(system: LiveSystem, user: str) -> bool:
    log = open_log(system.config)
    try:
        partition = partition_of(user, log.partitions(EXAMPLES))
        offsets = log.keyed(EXAMPLES, partition, [user.encode()], 1 << 60)
        last = log.read(EXAMPLES, partition, offsets[-1], 1)[0] if offsets else None
        return last is not None and without_example(last.value) is not None
    finally:
        log.close()


def version(system: LiveSystem) -> dict[str, int]:
    with system.client() as client:
        return client.status()["version"]


def events_of(system: LiveSystem, user: str) -> int:
    with system.client() as client:
        return client.session(user).get("events", 0)


def until(true, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.3)
