"""Forgetting users of a running system: the session goes at once, unlearning runs beside live and is swapped
in. After unlearning a stopped one, and with another number of shards, it goes on. The last tests of the
shared system: they end it."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parameter_server.rpc.parameter_client import fresh_shards
from parameter_server.shard.shard import digest_of_shards
from parameter_server.storage import snapshots
from parameter_server.storage.durable_shard import load_shard
from plugins.answer_explanation.answer_check import EQUAL, AnswerChecker
from recsys.config.system_config import ParameterServerConfig
from recsys.events.control_records import Unlearning
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EXAMPLES, non_example
from recsys.features.feature_set_file import feature_set
from recsys.model.model import build_model
from recsys.process.log_consumer import readable
from recsys.process.open_log import open_log
from runtime.jobs.user_deletion import forget_users
from tests.support.systems.live_system import LiveSystem, Traffic, until
from training.deletion.log_without import LogWithout
from training.deletion.unlearn import Replay
from training.lines.control import ControlReader
from training.lines.line import MAIN, spec_of

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]


def test_users_are_unlearned_while_the_system_runs_and_learns(system: LiveSystem) -> None:
    """The shadow part is killed meanwhile, and goes on."""
    began, users = system.version(), ["u3", "u4"]
    traffic = Traffic(system)
    until(lambda: system.version()["step"] > began["step"] + 5, 90, "steps are learned")
    report: list[str] = []
    asked = threading.Thread(target=lambda: report.extend(forget_users(users, system.state, unlearn=True)))
    asked.start()
    until(lambda: unlearning(system) is not None, 30, "the request is on the log")
    removed = unlearned_users(system)
    assert list(removed) == users
    system.kill_part("shadow")
    asked.join(240)
    assert report and "were replayed beside the live model" in report[-1], report
    done = unlearning(system)
    assert done is not None and done.epoch > began["epoch"] and done.first > 0
    until(lambda: system.version()["epoch"] == done.epoch, 60, "the replicas serve the new epoch")
    until(lambda: unlearning(system).state == "done", 60, "what was replaced is removed")  # type: ignore[union-attr]
    until(lambda: epoch_snapshots(system, done.epoch)[-1:] > [done.step], 120, "a snapshot")
    traffic.stop()
    assert traffic.failures == 0
    step = epoch_snapshots(system, done.epoch)[-1]
    assert digest_at(system, done.epoch, step) == digest_without(system, removed, step)
    until(lambda: all_before(system, done) < done.first, 20, "no replaced snapshot is left")


def unlearning(system: LiveSystem) -> Unlearning | None:
    """The newest state of the request."""
    log = open_log(system.config)
    try:
        return next(reversed(list(readable(log, CONTROL, Unlearning))), None)
    finally:
        log.close()


def epoch_snapshots(system: LiveSystem, epoch: int) -> list[int]:
    return snapshots.complete_steps(Path(system.state) / "snapshots", MAIN, epoch)


def all_before(system: LiveSystem, done: Unlearning) -> int:
    """The newest step of a snapshot of earlier epochs."""
    return max([0, *(step for e in range(done.epoch) for step in epoch_snapshots(system, e))])


def digest_at(system: LiveSystem, epoch: int, step: int) -> str:
    """The digest of a snapshot of the live line."""
    config = system.config
    shards = fresh_shards(spec_of(config), build_model(feature_set(config), config.model).read_dense())
    snapshot = snapshots.latest(Path(system.state) / "snapshots", MAIN, epoch, step).snapshot
    assert snapshot is not None
    for shard in shards:
        load_shard(shard, snapshot)
    return digest_of_shards(shards)


def digest_without(system: LiveSystem, removed: dict[str, int], step: int) -> str:
    """The digest of a line that learned all steps from the first to this one without the users."""
    log = open_log(system.config)
    try:
        control = ControlReader(log)
        control.turn()
        lives = control.lifecycle.lives
        line = Replay(
            LogWithout(log, [Unlearning(id="", users=removed)]),
            system.config,
            feature_set(system.config),
            lives,
            None,
        )
        while line.step < step:
            line.turn(step)
        return line.digest()
    finally:
        log.close()


def unlearned_users(system: LiveSystem) -> dict[str, int]:
    """The users of the request, before it is anonymous."""
    log = open_log(system.config)
    try:
        users: dict[str, int]
        (users,) = [u.users for u in readable(log, CONTROL, Unlearning) if u.users]
        return users
    finally:
        log.close()


def test_a_user_is_forgotten_and_unlearned_and_the_system_goes_on(system: LiveSystem) -> None:
    began = system.version()
    asked = learn_some(system, began["step"] + 5)
    assert unequal(system, asked) == []
    with system.client() as client:
        assert client.session("u1")["events"] > 0
    forget_users(["u1"], system.state, unlearn=False)
    until(lambda: events_of(system, "u1") == 0, 20, "the session is gone")
    until(lambda: has_tombstone(system, "u1"), 20, "the joiner has written a tombstone")
    system.down()

    epoch = began["epoch"] + 1
    report = forget_users(["u2"], system.state, unlearn=True)
    assert any(f"are epoch {epoch} now" in line for line in report), report
    log = open_log(system.config)
    partition = partition_of("u2", log.partitions(EXAMPLES))
    assert log.keyed(EXAMPLES, partition, [b"u2"], 1 << 60) == []
    log.close()
    system.desired = replace(system.desired, parameter_server=ParameterServerConfig(shards=3))
    system.up()
    system.wait_ready()
    began = system.version()
    assert began["epoch"] == epoch and events_of(system, "u2") == 0
    asked = learn_some(system, began["step"] + 3)
    assert system.version()["epoch"] == epoch
    others = [answer for answer in asked if answer[1] not in ("u1", "u2", "u3", "u4")]
    assert unequal(system, others) == []  # their own events are gone, and came again
    system.down()


def learn_some(system: LiveSystem, step: int) -> list[tuple[str, str]]:
    """Last answers to viewers that came until a step after ``step`` was served."""
    traffic = Traffic(system)
    until(lambda: system.version()["step"] > step, 90, "steps are learned")
    traffic.stop()
    assert traffic.failures == 0
    return traffic.asked[-20:]


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
