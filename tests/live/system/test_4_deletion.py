"""Forgetting a user of a running system: the session goes at once; after unlearning, and with another number
of shards, the system goes on. The last test of the shared system: it ends it."""

from dataclasses import replace

import pytest
import torch

from recsys.config.system_config import ParameterServerConfig
from recsys.events.hashing import partition_of
from recsys.events.records import EXAMPLES, non_example
from recsys.features.feature_set_file import feature_set
from recsys.process.open_log import open_log
from replay.answer_check import EQUAL, AnswerChecker
from runtime.jobs.user_deletion import Refused, forget_user
from tests.support.live_system import LiveSystem, Traffic, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_user_is_forgotten_and_unlearned_and_the_system_goes_on(system: LiveSystem) -> None:
    began = system.version()
    asked = learn_some(system, began["step"] + 5)
    assert unequal(system, asked) == []
    with system.client() as client:
        assert client.session("u1")["events"] > 0
    with pytest.raises(Refused, match="recsys down"):
        forget_user("u1", system.state, unlearn=True)
    forget_user("u1", system.state, unlearn=False)
    until(lambda: events_of(system, "u1") == 0, 20, "the session is gone")
    until(lambda: has_tombstone(system, "u1"), 20, "the joiner has written a tombstone")
    system.down()

    epoch = began["epoch"] + 1
    report = forget_user("u2", system.state, unlearn=True)
    assert any(f"are epoch {epoch} now" in line for line in report), report
    log = open_log(system.config)
    partition = partition_of("u2", log.partitions(EXAMPLES))
    assert log.keyed(EXAMPLES, partition, [b"u2"], 1 << 60) == []
    log.close()
    system.desired = replace(system.desired, parameter_server=ParameterServerConfig(shards=3))
    system.up()
    system.wait_ready(180)
    began = system.version()
    assert began["epoch"] == epoch and events_of(system, "u2") == 0
    asked = learn_some(system, began["step"] + 3)
    assert system.version()["epoch"] == epoch
    others = [answer for answer in asked if answer[1] not in ("u1", "u2")]
    assert unequal(system, others) == []  # their own events are gone, and came again
    system.down()


def learn_some(system: LiveSystem, step: int) -> list[tuple[str, str]]:
    """Last answers to viewers that came until a step after ``step`` was served."""
    traffic = Traffic(system)
    until(lambda: system.version()["step"] > step, 90, "steps are learned")
    traffic.stop()
    assert traffic.failures == 0
    return traffic.asked[-40:]


def unequal(system: LiveSystem, asked: list[tuple[str, str]]) -> list[str]:
    """Differences of answers that can't be reconstructed from what the parts wrote."""
    torch.set_num_threads(1)  # as a replica has it
    log = open_log(system.config)
    try:
        checker = AnswerChecker(log, system.config, feature_set(system.config))
        checks = [checker.explain(request_id, user) for request_id, user in asked]
        return [f"{c.why} {c.differences[:2]}" for c in checks if c.verdict != EQUAL]
    finally:
        log.close()


def has_tombstone(system: LiveSystem, user: str) -> bool:
    log = open_log(system.config)
    try:
        partition = partition_of(user, log.partitions(EXAMPLES))
        offsets = log.keyed(EXAMPLES, partition, [user.encode()], 1 << 60)
        last = log.read(EXAMPLES, partition, offsets[-1], 1)[0] if offsets else None
        return last is not None and non_example(last.value) is not None
    finally:
        log.close()


def events_of(system: LiveSystem, user: str) -> int:
    with system.client() as client:
        return client.session(user).get("events", 0)
