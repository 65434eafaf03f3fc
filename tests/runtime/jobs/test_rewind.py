"""Rewinding the line of a stopped system: the digest is that of a line that never saw what is named."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from recsys.config.log_config import LogConfig
from recsys.config.system_config import Config
from recsys.events.control_records import ApiKey, Candidate, Decision, Unlearning
from recsys.events.event_types import Engagement, Event, Withdrawal, decode
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EVENTS, EXAMPLES, Example
from recsys.features.feature_set_file import write_feature_set
from recsys.log.protocol import Log
from recsys.process.log_consumer import readable
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import write_atomically
from runtime.cli.main import app
from runtime.jobs.rewind import rewind
from runtime.jobs.user_deletion import Refused
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.processes import identify
from serving.access.caller import source_of
from serving.access.key_files import SOURCE_KEY
from tests.support.plan_config import FREE
from tests.support.training.small_feed import FEATURES, PARTITIONS, START_MS, append_events, toy_config
from tests.support.training.unlearn_line import (
    BATCH,
    BATCH_MS,
    examples_of,
    fill,
    follow,
    learn,
    without_examples,
)
from training.deletion.log_without import LogWithout
from training.deletion.rewind_scope import ServedList
from training.deletion.unlearn import Replay
from training.lines.control import append_control, append_live_record, lifecycle_of, live_epoch
from training.steps.drain import drain

SECRET = b"secret-of-sources"
TIME_MS = START_MS + 2 * BATCH_MS + 20_000  # in the third of five batches
NOW_MS = START_MS + 10 * BATCH_MS
KEY, NETWORK = "k1", "10.1.2.0/24"
OF_KEY, OF_NETWORK = source_of("", KEY, SECRET), source_of("10.1.2.3", "", SECRET)
OTHERS = source_of("10.9.9.9", "", SECRET)


def source(event: Event) -> int:
    """The key likes in lists of even users; the network shows what u7 and u1 see."""
    if event.kind == "like" and int(str(event.user_id)[1:]) % 2 == 0:  # type: ignore[union-attr]
        return OF_KEY
    return OF_NETWORK if event.user_id in ("u1", "u7") else OTHERS  # type: ignore[union-attr]


@dataclass
class System:
    """A stopped system that has learned all of its log."""

    config: Config
    log: Log
    digest: str

    @property
    def state(self) -> Path:
        return Path(self.config.state)

    def without(self, is_left_out: Callable[[Example], bool]) -> Log:
        """Its log as it is now, as if some examples had never been."""
        return without_examples(self.log, is_left_out)

    def learned(self, copy: Log) -> str:
        """The digest of a line that learns a copy, and what was appended since, from the beginning."""
        lives = lifecycle_of(self.log).lives
        replay = Replay(follow(copy, self.log), self.config, FEATURES, lives, None)  # type: ignore[arg-type]
        while replay.turn():
            pass
        return replay.digest()


@pytest.fixture
def system(tmp_path: Path) -> "System":
    config = toy_config(str(tmp_path / "state"), shards=2)
    config = replace(config, serve=FREE, log=LogConfig(partitions=PARTITIONS))
    config, plan = plans.resolve(config)
    plans.write(config, plan)
    write_feature_set(config, FEATURES)
    run = tmp_path / "state" / "run"
    run.mkdir(exist_ok=True)
    (run / SOURCE_KEY).write_bytes(SECRET)
    log = open_log(config)
    create_topics(log, config)
    fill(log, config, source)
    return System(config, log, learn(config, log))


def engaged(log: Log, source: int) -> set[tuple[str, str]]:
    """Request and item of engagements from a source since the time."""
    events = (
        decode(record.value)
        for partition in range(PARTITIONS)
        for record in log.read(EVENTS, partition, 0, 100_000)
    )
    return {
        (event.request_id, str(event.item_id))  # type: ignore[union-attr]
        for event in events
        if getattr(event, "source", None) == source and event.time_ms >= TIME_MS
    }


def test_a_user_is_left_out_from_that_time_on(system: System, tmp_path: Path) -> None:
    log, answers = system.log, tmp_path / "answers.jsonl"
    copy = system.without(lambda e: e.user_id == "u3" and e.closed_ms >= TIME_MS)
    arguments = ["rewind", str(TIME_MS), "--without", "u3", "--answers", str(answers)]
    done = CliRunner().invoke(app, [*arguments, "--state", str(system.state)])
    assert done.exit_code == 0, done.output
    expected = system.learned(copy)
    assert expected in done.output and expected != system.digest
    assert "events of 1 users since 2023-11-14 22:20:20Z are left out" in done.output
    assert "steps 6 to 18 were learned again without 5 examples and are epoch 1" in done.output
    assert learn(system.config, log) == expected  # the epoch's shards begin from its snapshot
    left = [example.closed_ms for example in examples_of(log) if example.user_id == "u3"]
    assert left and max(left) < TIME_MS
    # The lists of the last two batches were served since, and none before.
    served = [msgspec.json.decode(line, type=ServedList) for line in answers.read_text().split()]
    assert "has answered 16 lists since that time" in done.output and len(served) == 2 * BATCH
    assert min(answer.time_ms for answer in served) >= TIME_MS
    assert (served[0].line, served[0].epoch, len(served[0].items)) == ("main", 0, 3)
    again = rewind(system.state, TIME_MS, ["u3"], NOW_MS)
    assert "the model stays unchanged" in again.lines[-1] and live_epoch(log) == 1


def test_the_log_tells_what_was_left_out_and_a_replay_follows(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a log that can't be changed, such as Kafka's, examples stay, and later replays leave them out."""
    monkeypatch.setattr("training.deletion.removal.changes_records", lambda log: False)
    log = system.log
    copy = system.without(
        lambda e: (
            (e.user_id == "u3" and e.closed_ms >= TIME_MS)
            or (e.user_id == "u5" and e.closed_ms >= TIME_MS + BATCH_MS)
        )
    )
    number = len(examples_of(log))
    rewind(system.state, TIME_MS, ["user:u3"], NOW_MS)
    result = rewind(system.state, TIME_MS + BATCH_MS, ["user:u5"], NOW_MS)
    expected = system.learned(copy)
    assert expected in result.lines[-1] and live_epoch(log) == 2
    assert len(examples_of(log)) == number
    lifecycle = lifecycle_of(log)
    requests = lifecycle.unlearnings.done
    assert [(r.rewind_ms, [*r.users], r.epoch) for r in requests] == [
        (TIME_MS, ["u3"], 1),
        (TIME_MS + BATCH_MS, ["u5"], 2),
    ]
    replay = Replay(LogWithout(log, requests), system.config, FEATURES, lifecycle.lives, None)
    while replay.turn():
        pass
    assert replay.digest() == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, source",
    [
        ("account:k1", OF_KEY),
        ("crawler", OF_KEY),
        (NETWORK, OF_NETWORK),
        ("10.1.2.77", OF_NETWORK),
        ("network:10.1.0.0/16", OF_NETWORK),
    ],
)
def test_what_came_from_a_source_is_left_out(system: System, text: str, source: int) -> None:
    append_control(system.log, ApiKey(id=KEY, digest="", scopes=[], name="crawler"))
    pairs = engaged(system.log, source)
    copy = system.without(lambda e: (e.request_id, str(e.item_id)) in pairs and e.closed_ms >= TIME_MS)
    left_out = len(examples_of(system.log)) - len(examples_of(copy))
    result = rewind(system.state, TIME_MS, [text], NOW_MS)
    expected = system.learned(copy)
    assert left_out > 0 and f"without {left_out} examples" in result.lines[-1]
    assert expected in result.lines[-1] and expected != system.digest
    assert learn(system.config, system.log) == expected


@pytest.mark.slow
def test_requests_are_left_out_with_all_of_their_items(system: System, tmp_path: Path) -> None:
    named = {f"r{number}" for number in (25, 30, 33, 1)}  # the last is from before that time
    file = tmp_path / "requests.txt"
    file.write_text("\n".join(sorted(named)) + "\n")
    copy = system.without(lambda e: e.request_id in named and e.closed_ms >= TIME_MS)
    result = rewind(system.state, TIME_MS, [str(file)], NOW_MS)
    expected = system.learned(copy)
    assert result.lines[0].startswith("1 of 4 requests") and expected in result.lines[-1]
    assert learn(system.config, system.log) == expected != system.digest


@pytest.mark.slow
def test_without_everything_nothing_since_is_learned(system: System) -> None:
    copy = system.without(lambda e: e.closed_ms >= TIME_MS)
    result = rewind(system.state, TIME_MS, ["everything"], NOW_MS)
    assert system.learned(copy) in result.lines[-1]
    assert max(example.closed_ms for example in examples_of(system.log)) < TIME_MS


@pytest.mark.slow
def test_without_nothing_all_is_learned_again(system: System) -> None:
    """With the configuration of today: here it is the same, and so are the weights."""
    ends = [system.log.end(EVENTS, partition) for partition in range(PARTITIONS)]
    result = rewind(system.state, TIME_MS, [], NOW_MS)
    assert f"without 0 examples and are epoch 1 now, SHA-256 {system.digest}" in result.lines[-1]
    assert learn(system.config, system.log) == system.digest
    assert ends == [system.log.end(EVENTS, partition) for partition in range(PARTITIONS)]


@pytest.mark.slow
def test_what_comes_later_for_a_named_list_is_not_learned(system: System) -> None:
    """A correction of an example that is left out would teach only the change of its labels."""
    log = system.log
    last = [e for e in examples_of(log) if e.request_id in ("r38", "r39") and not e.correction]
    named, other = (next(e for e in last if e.request_id == r) for r in ("r38", "r39"))
    rewind(system.state, TIME_MS, ["requests:r38"], NOW_MS)
    number = len(examples_of(log))
    for example in (named, other):
        late = Engagement(
            time_ms=NOW_MS, request_id=example.request_id, user_id=example.user_id,
            item_id=example.item_id, kind="like",
        )  # fmt: skip
        append_events(log, [late])
    drain(log, system.config, FEATURES)
    new = examples_of(log)
    assert len(new) == number + 1
    assert all(e.request_id != "r38" for e in new)
    assert any(e.request_id == "r39" and e.correction and e.closed_ms >= NOW_MS for e in new)


def states(system: System) -> list[int]:
    """Ends of all that a rewind writes."""
    log = system.log
    ends = [log.end(topic, p) for topic in (EVENTS, EXAMPLES) for p in range(PARTITIONS)]
    return [*ends, log.end(CONTROL, 0)]


@pytest.mark.slow
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(system: System) -> None:
    log, before = system.log, states(system)
    refused: list[tuple[int, list[str], str]] = [
        (NOW_MS + 1, ["u3"], "name a past time"),
        (0, ["u3"], "name a past time"),
        (TIME_MS, ["nobody"], "nothing is left out"),
        (TIME_MS, ["u3", "account:k9"], "account:k9: no event"),
        (TIME_MS, ["10.1.2.0/28"], "name that, 10.1.2.0/24"),
        (TIME_MS, ["network:here"], "expected an address or a network"),
        (TIME_MS, ["user:"], "names nothing"),
    ]
    for time_ms, without, text in refused:
        with pytest.raises(ValueError, match=text):
            rewind(system.state, time_ms, without, NOW_MS)
    (system.state / "run" / SOURCE_KEY).unlink()
    with pytest.raises(ValueError, match="bring it back from a backup"):
        rewind(system.state, TIME_MS, [NETWORK], NOW_MS)
    assert states(system) == before and live_epoch(log) == 0
    for partition in range(PARTITIONS):
        log.trim(EXAMPLES, partition, log.end(EXAMPLES, partition) - 4)
    with pytest.raises(Refused, match="can't return to .* name a later time"):
        rewind(system.state, START_MS + 1, ["u3"], NOW_MS)
    assert states(system) == before and live_epoch(log) == 0


@pytest.mark.slow
def test_events_that_the_log_dropped_cannot_be_named(system: System) -> None:
    for partition in range(PARTITIONS):
        system.log.release("joiner", EVENTS)
        system.log.trim(EVENTS, partition, system.log.end(EVENTS, partition) - 2)
    with pytest.raises(Refused, match="no longer has all events .* name a later time"):
        rewind(system.state, TIME_MS, ["u3"], NOW_MS)


@pytest.mark.slow
def test_it_waits_for_a_canary_and_for_an_earlier_request(system: System) -> None:
    log = system.log
    append_control(log, Candidate(line="c1", registry=""))
    append_control(log, Decision(line="c1", verdict="promote", to="canary", share=0.1))
    with pytest.raises(Refused, match="end it with `recsys rollback c1`"):
        rewind(system.state, TIME_MS, ["u3"], NOW_MS)
    append_control(log, Decision(line="c1", verdict="rollback"))
    append_control(log, Unlearning(id="a", rewind_ms=TIME_MS, state="replaying"))
    with pytest.raises(Refused, match="a rewind is replaying"):
        rewind(system.state, TIME_MS, ["u3"], NOW_MS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "outcome, text",
    [
        ("live", "steps 3 to 9 were learned again beside the live model and are epoch 4 now"),
        ("done", "the model stays unchanged"),
        ("ended", "goes on once it runs again"),
        ("refused", "but the model stays as it was: too far back"),
    ],
)
def test_a_running_system_is_asked_over_its_log(system: System, outcome: str, text: str) -> None:
    log, state = system.log, system.state
    here = identify(os.getpid())
    now_ms = int(time.time() * 1000)
    file = run_file.Running(supervisor=here, config_digest="", started_ms=now_ms, time_ms=now_ms)
    write_atomically(state / "run" / "up.json", msgspec.json.encode(file))

    def answers() -> None:
        """As director and shadow."""
        while not (requests := list(readable(log, CONTROL, Unlearning))):
            time.sleep(0.01)
        if outcome == "ended":
            (state / "run" / "up.json").unlink()
            return
        first, epoch = (3, 4) if outcome == "live" else (0, 0)
        state_now = "replayed" if outcome == "live" else outcome
        why = "too far back" if outcome == "refused" else ""
        answer = msgspec.structs.replace(
            requests[0], state=state_now, users={}, epoch=epoch, base_step=2, first=first, step=9, why=why
        )
        append_control(log, answer)
        if outcome == "live":
            append_live_record(log, "main", 4, "", 0, 9)

    thread = threading.Thread(target=answers)
    thread.start()
    arguments = ["rewind", str(TIME_MS), "--without", "u3", "--state", str(state)]
    done = CliRunner().invoke(app, arguments)
    thread.join()
    assert text in done.output and done.exit_code == (2 if outcome == "refused" else 0)
    (asked, *_) = readable(log, CONTROL, Unlearning)
    (offset,) = asked.users.values()
    (record,) = log.read(EVENTS, partition_of("u3", PARTITIONS), offset, 1)
    expected = Withdrawal(time_ms=asked.time_ms, user_id="u3", from_ms=TIME_MS)
    assert decode(record.value) == expected
    assert asked.rewind_ms == TIME_MS


def test_a_folder_in_which_nothing_was_started_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["rewind", "5", "--state", str(tmp_path / "no")])
    assert done.exit_code == 2 and "nothing was started" in done.output
