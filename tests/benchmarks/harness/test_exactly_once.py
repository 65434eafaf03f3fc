"""The audit of a log finds nothing in an undisturbed system, and each loss and repeat that is planted."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness import exactly_once
from benchmarks.harness.local_system import START_MS, LocalSystem, small_config
from recsys.config.system_config import Config, JoinConfig
from recsys.events.event_types import Engagement, Item, decode, event_id_of
from recsys.events.records import EVENTS, EXAMPLES, STEPS
from recsys.log.protocol import Append
from recsys.process.open_log import open_log
from serving.request import Request

pytestmark = pytest.mark.slow
ZERO = (
    "lost", "sessions_differ", "session_events_differ", "counters_differ", "examples_differ",
    "examples_twice", "steps_missing", "examples_in_no_step", "examples_in_two_steps",
    "steps_unlearned", "weights_differ",
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(small_config(tmp_path), join=JoinConfig(window_s=5.0, horizon_s=60.0))


def ran(config: Config) -> tuple[dict[str, bool], dict[str, bytes]]:
    """Runs a small system; returns ids of its events, and its sessions."""
    system = LocalSystem(config)

    async def run() -> None:
        system.publish([Item(time_ms=START_MS, item_id=f"v{n}", fields={}) for n in range(40)])
        await system.start()
        for number in range(24):
            answer = await system.ask(Request(user_id=f"u{number % 5}", n=4))
            await system.watch(answer)
            system.turn()
        for _ in range(3):
            system.now_ms += 70_000
            system.turn()
        system.counters.oldest.publish()
        for shard in system.shards.durable:
            shard.stop()
        await system.stop()

    asyncio.run(run())
    log = open_log(config)
    ids = {event_id_of(e) for e in exactly_once.events_of(log) if isinstance(e, Engagement)}
    log.close()
    return dict.fromkeys(ids, False), dict(system.sessions.blobs)


def wrong(figures: dict[str, object]) -> set[str]:
    return {name for name in ZERO if figures[name]}


def repeat(config: Config, topic: str, partition: int = 0) -> None:
    """Appends the last record of a partition again."""
    log = open_log(config)
    (*_, last) = exactly_once.records(log, topic, partition)
    log.append(topic, [Append(partition, last.key, last.value)])
    log.close()


def partition_with(config: Config, topic: str) -> int:
    log = open_log(config)
    try:
        for partition in range(log.partitions(topic)):
            for record in exactly_once.records(log, topic, partition):
                if topic != EVENTS or isinstance(decode(record.value), Engagement):
                    return partition
        raise AssertionError(f"{topic} is empty")
    finally:
        log.close()


def test_what_is_lost_repeated_or_changed_is_found(config: Config) -> None:
    acknowledged, sessions = ran(config)
    whole = exactly_once.audit(config, acknowledged, sessions)
    assert wrong(whole) == set() and whole["twice_on_log"] == 0
    assert whole["examples"] > 50 and whole["steps"] > 1 and whole["sessions"] == 5
    assert whole["steps_learned"] == whole["steps"]

    # An acknowledged event that isn't on the log, and a session that lacks one.
    lost = exactly_once.audit(config, acknowledged | {"gone": True}, sessions)
    assert wrong(lost) == {"lost"} and lost["sent_again"] == 1
    (user, blob), other = next(iter(sessions.items())), sessions["u4"]
    assert blob != other
    assert "sessions_differ" in wrong(exactly_once.audit(config, acknowledged, sessions | {user: other}))
    # A step that is on the log twice, then an example.
    repeat(config, STEPS)
    assert {"steps_missing", "examples_in_two_steps"} <= wrong(
        exactly_once.audit(config, acknowledged, sessions)
    )
    repeat(config, EXAMPLES, partition_with(config, EXAMPLES))
    assert {"examples_differ", "examples_twice", "examples_in_no_step"} <= wrong(
        exactly_once.audit(config, acknowledged, sessions)
    )


def test_an_event_that_is_on_the_log_twice_counts_once(config: Config) -> None:
    acknowledged, sessions = ran(config)
    log = open_log(config)
    for partition in range(log.partitions(EVENTS)):
        engagements = [
            record
            for record in exactly_once.records(log, EVENTS, partition)
            if isinstance(decode(record.value), Engagement)
        ]
        log.append(EVENTS, [Append(partition, r.key, r.value) for r in engagements[-1:]])
    log.close()
    figures = exactly_once.audit(config, acknowledged, sessions)
    assert figures["twice_on_log"] == figures["twice_on_log_sent_once"] > 0
    assert not wrong(figures) - {"sessions_differ"}  # their offsets stand before the repeat
