"""``recsys forget`` on a stopped state folder, and what it refuses."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from recsys.config.log_config import LogConfig
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Erasure, Unlearning
from recsys.events.event_types import Engagement, Impression, User, decode
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EVENTS, EXAMPLES, pack, unpack
from recsys.features.feature_set_file import write_feature_set
from recsys.log.protocol import Append, Log
from recsys.process.log_consumer import readable
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import write_atomically
from runtime.cli.main import app
from runtime.jobs.user_deletion import Refused, forget_users
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.processes import identify
from tests.support.plan_config import FREE
from tests.support.training.small_feed import FEATURES, PARTITIONS, append_events, feed, toy_config
from tests.support.training.unlearn_line import learn
from training.lines.control import append_live_record, live_epoch
from training.steps.drain import drain

USER, OTHER = "u3", "u5"
WHERE = partition_of(USER, PARTITIONS)


def started(folder: Path, kafka: bool = False) -> Config:
    """A state folder as `up` leaves it behind."""
    config = replace(toy_config(str(folder)), serve=FREE, log=LogConfig(partitions=PARTITIONS))
    if kafka:
        config = replace(config, log=replace(config.log, url=plans.EMBEDDED_KAFKA))
    config, plan = plans.resolve(config)
    plans.write(config, plan)
    write_feature_set(config, FEATURES)
    return config


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[tuple[Config, Log]]:
    config = started(tmp_path)
    log = open_log(config)
    create_topics(log, config)
    append_events(log, feed(24))
    drain(log, config, FEATURES)
    learn(config, log)
    yield config, log
    log.close()


def test_a_stopped_system_is_told_and_unlearns(stopped: tuple[Config, Log], tmp_path: Path) -> None:
    config, log = stopped
    keyed = log.keyed(EXAMPLES, WHERE, [USER.encode()], 1 << 60)
    done = CliRunner().invoke(app, ["forget", USER, "--state", str(tmp_path), "--unlearn"])
    assert done.exit_code == 0, done.output
    assert f"unlearned {len(keyed)} of the users' examples" in done.output and "epoch 1" in done.output
    tombstone = log.read(EVENTS, WHERE, log.end(EVENTS, WHERE) - 1)[0]
    event = decode(tombstone.value)
    assert isinstance(event, User) and event.removed and str(event.user_id) == USER
    [said] = [
        its
        for its in (r.value for r in log.read(CONTROL, 0, 0))
        if (b"erasure" in its and unpack(its, Erasure).offset == tombstone.offset)
    ]
    assert unpack(said, Erasure).user_id == USER
    assert live_epoch(log) == 1
    assert log.keyed(EXAMPLES, WHERE, [USER.encode()], 1 << 60) == []
    assert learn(config, log) in done.output
    again = forget_users([USER], tmp_path, unlearn=True)
    assert "no step of the live model has learned from them" in again[-1] and live_epoch(log) == 1


@pytest.mark.slow
def test_of_whom_nobody_has_seen_anything_nothing_is_unlearned(
    stopped: tuple[Config, Log], tmp_path: Path
) -> None:
    said = forget_users(["nobody"], tmp_path, unlearn=True)
    assert "no step of the live model has learned from them: it stays unchanged" in said[-1]
    assert live_epoch(stopped[1]) == 0


@pytest.mark.slow
def test_what_cannot_be_unlearned_is_said_in_one_line(stopped: tuple[Config, Log], tmp_path: Path) -> None:
    for partition in range(PARTITIONS):
        stopped[1].trim(EXAMPLES, partition, 3)
    done = CliRunner().invoke(app, ["forget", USER, "--state", str(tmp_path), "--unlearn"])
    assert done.exit_code == 2 and "can't be unlearned: the newest snapshot" in done.output
    noted = tmp_path / "parts" / "unlearning" / "state.msgpack"
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.write_bytes(b"broken")
    done = CliRunner().invoke(app, ["forget", USER, "--state", str(tmp_path), "--unlearn"])
    assert done.exit_code == 2 and "can't be unlearned" in done.output
    assert "can't be read" in done.output and live_epoch(stopped[1]) == 0


@pytest.mark.slow
def test_without_unlearn_the_model_stays_as_it_is(stopped: tuple[Config, Log], tmp_path: Path) -> None:
    config, log = stopped
    seen = learn(config, log)
    said = forget_users([USER], tmp_path, unlearn=False)
    assert len(said) == 2 and "when the system runs again" in said[0]
    assert learn(config, log) == seen and live_epoch(log) == 0
    events = (decode(r.value) for r in log.read(EVENTS, WHERE, 0))
    assert any(isinstance(e, Impression | Engagement) and e.user_id == USER for e in events)


def test_a_folder_in_which_nothing_was_started_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["forget", USER, "--state", str(tmp_path / "no")])
    assert done.exit_code == 2 and "nothing was started" in done.output


def test_a_log_that_was_in_memory_is_gone_already(tmp_path: Path) -> None:
    started(tmp_path, kafka=True)
    with pytest.raises(Refused, match="memory of a broker"):
        forget_users([USER], tmp_path, unlearn=True)


def running(folder: Path) -> None:
    """A state folder as of a system whose supervisor is this process."""
    now_ms = int(time.time() * 1000)
    here = identify(os.getpid())
    file = run_file.Running(supervisor=here, config_digest="", started_ms=now_ms, time_ms=now_ms)
    write_atomically(folder / "run" / "up.json", msgspec.json.encode(file))


@pytest.mark.parametrize(
    "outcome, text",
    [
        ("live", "steps 3 to 9 were replayed beside the live model and are epoch 4 now, SHA-256 ab"),
        ("done", "no step of the live model has learned from them"),
        ("ended", "goes on once it runs again"),
        ("refused", "can't be unlearned: too far back"),
    ],
)
def test_a_running_system_is_asked_over_its_log(tmp_path: Path, outcome: str, text: str) -> None:
    config = started(tmp_path)
    running(tmp_path)
    with closing(open_log(config)) as log:
        create_topics(log, config)

        def answers() -> None:
            """As director and shadow; another request stands before this one."""
            while not (requests := list(readable(log, CONTROL, Unlearning))):
                time.sleep(0.01)
            (asked,) = requests
            if outcome == "ended":
                (tmp_path / "run" / "up.json").unlink()
                return
            state = "replayed" if outcome == "live" else outcome
            why = {"live": "SHA-256 ab", "refused": "too far back"}.get(outcome, "")
            epoch = 4 if outcome == "live" else 0
            answer = Unlearning(id=asked.id, state=state, epoch=epoch, base_step=2, step=9, why=why)
            log.append(CONTROL, [Append(0, b"", pack(answer))])
            if outcome == "live":
                append_live_record(log, "main", 4, "", 0, 9)

        thread = threading.Thread(target=answers)
        thread.start()
        arguments = ["forget", USER, OTHER, USER, "--state", str(tmp_path), "--unlearn"]
        done = CliRunner().invoke(app, arguments)
        thread.join()
        (asked,) = [u for u in readable(log, CONTROL, Unlearning) if u.users]
        assert asked.users == {
            str(record.user_id): record.offset for record in readable(log, CONTROL, Erasure)
        } and asked.users.keys() == {USER, OTHER}
        assert text in done.output and done.exit_code == (2 if outcome == "refused" else 0)
        kinds = [type(record) for record in readable(log, CONTROL, Control)][:3]
        assert kinds == [Unlearning, Erasure, Erasure]  # who reads an erasure knows of the request
