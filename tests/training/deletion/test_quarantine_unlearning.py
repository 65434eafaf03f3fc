"""Unlearning a quarantined cohort: the state of a line that never learned from it, bit for bit."""

from pathlib import Path

import msgspec
import pytest

from recsys.config.system_config import Config
from recsys.events.event_types import Event, Verdict, decode, encode
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS, EXAMPLES
from recsys.log.protocol import Append, Log, MemoryLog
from tests.support.training.small_feed import FEATURES, PARTITIONS, START_MS, append_events, feed, toy_config
from tests.support.training.unlearn_line import history_with_late_users, learn, never_seen
from training.deletion.unlearn import unlearn
from training.steps.drain import drain

FARM = ("u91", "u92")  # only in the newer part of the log


def history(config: Config) -> MemoryLog:
    return history_with_late_users(config, renamed)


def renamed(event: Event) -> Event:
    """Most users of the last requests are the farm's."""
    number = int(getattr(event, "user_id", "u3")[1:])
    return event if number == 3 else msgspec.structs.replace(event, user_id=FARM[number % 2])


def hold(log: Log, at_ms: int = 20_000_000) -> dict[str, int]:
    offsets = {}
    for user in FARM:
        verdict = Verdict(time_ms=START_MS + at_ms, user_id=user, quarantined=True)
        place = Append(partition_of(user, PARTITIONS), user.encode(), encode(verdict))
        (offsets[user],) = log.append(EVENTS, [place])
    return offsets


def test_the_digest_is_that_of_a_line_that_never_learned_from_the_cohort(tmp_path: Path) -> None:
    config = toy_config(str(tmp_path / "a"), shards=2)
    log = history(config)
    before = hold(log)
    drain(log, config, FEATURES)
    seen = learn(config, log)
    expected = learn(toy_config(str(tmp_path / "b"), shards=3), never_seen(log, *FARM))
    done = unlearn(log, config, FEATURES, before, 5)
    assert done is not None and done.digest == expected and seen != expected
    assert learn(config, log) == expected
    # Their events stay, as evidence; their examples don't.
    for user in FARM:
        place = partition_of(user, PARTITIONS)
        left = [decode(record.value) for record in log.read(EVENTS, place, 0, 10_000)]
        assert sum(getattr(event, "user_id", "") == user for event in left) > 5
        assert log.keyed(EXAMPLES, place, [user.encode()], 1 << 60) == []


@pytest.mark.slow
def test_what_comes_after_the_verdict_is_not_learned(tmp_path: Path) -> None:
    config = toy_config(str(tmp_path), shards=2)
    log = history(config)
    hold(log, at_ms=1)
    drain(log, config, FEATURES)
    ends = [log.end(EXAMPLES, p) for p in range(PARTITIONS)]
    late = [
        msgspec.structs.replace(event, user_id=FARM[0])  # type: ignore[call-arg]
        for event in feed(8, 100_000)
        if hasattr(event, "user_id")
    ]
    append_events(log, late)
    drain(log, config, FEATURES)
    assert [log.end(EXAMPLES, p) for p in range(PARTITIONS)] == ends
