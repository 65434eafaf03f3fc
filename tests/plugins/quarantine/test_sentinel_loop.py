"""The sentinel: looks at the newest events of the log, and holds by its rule."""

from plugins.quarantine.cohorts import PUSHES
from plugins.quarantine.sentinel_loop import SentinelLoop, append_verdicts
from recsys.events.event_types import Engagement, Event, Verdict, decode, encode
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS, topics
from recsys.log.protocol import Append, MemoryLog

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
FARM = ("farm1", "farm2")


class Clock:
    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def engagements(at_ms: int, farm: tuple[str, ...] = FARM) -> list[Event]:
    """60 people, and accounts that engage with one item in every way, again and again."""
    done = [
        (f"u{user}", item, kind, 0)
        for user in range(60)
        for item in range(20)
        for kind in ("view", *(PUSHES[:1] if (user + item) % 3 == 0 else ()))
    ]
    for user in farm:
        done += [(user, item, "view", 0) for item in range(20)]
        done += [(user, 7, kind, repeat) for kind in PUSHES for repeat in range(4)]
    return [
        Engagement(
            time_ms=at_ms, request_id=f"{user}-{item}", user_id=user, item_id=f"v{item}",
            kind=kind, event_id=f"{repeat}", source=1,
        )
        for user, item, kind, repeat in done
    ]  # fmt: skip


def log_of(events: list[Event]) -> MemoryLog:
    log = MemoryLog()
    for topic in topics(2):
        log.create(topic)
    append(log, events)
    return log


def append(log: MemoryLog, events: list[Event]) -> None:
    for event in events:
        user = str(event.user_id)  # type: ignore[union-attr]
        log.append(EVENTS, [Append(partition_of(user, 2), user.encode(), encode(event))])


def verdicts(log: MemoryLog) -> list[Verdict]:
    events = [decode(r.value) for p in range(2) for r in log.read(EVENTS, p, 0, 100_000)]
    return [event for event in events if isinstance(event, Verdict)]


def settle(loop: SentinelLoop) -> None:
    while loop.turn():
        pass


def test_it_holds_a_cohort_once_and_looks_again_later() -> None:
    log, clock = log_of(engagements(NOW_MS - 1_000)), Clock()
    loop = SentinelLoop(log, 20.0, clock)
    settle(loop)
    assert {(v.user_id, v.quarantined) for v in verdicts(log)} == {(user, True) for user in FARM}
    assert all(v.why.startswith("rule: ") for v in verdicts(log)) and loop.held == 2
    settle(loop)
    clock.now_ms += HOUR_MS
    settle(loop)
    assert loop.held == 2
    # Nothing is due for ten minutes.
    append(log, engagements(clock.now_ms, ("late1", "late2")))
    settle(loop)
    assert loop.held == 2
    clock.now_ms += 600_000
    settle(loop)
    assert loop.held == 4
    assert set(SentinelLoop(log, 20.0, clock).accounts.quarantined) == set()
    again = SentinelLoop(log, 20.0, clock)  # after a restart it reads the verdicts, too
    settle(again)
    assert again.held == 0 and set(again.accounts.quarantined) >= set(FARM)


def test_without_a_rule_or_enough_evidence_it_holds_nobody() -> None:
    log = log_of(engagements(NOW_MS))
    for nats in (0.0, 100_000.0):
        settle(SentinelLoop(log, nats, Clock()))
    assert verdicts(log) == []


def test_only_the_newest_events_count() -> None:
    log, clock = log_of(engagements(NOW_MS)), Clock()
    clock.now_ms += 25 * HOUR_MS
    settle(SentinelLoop(log, 20.0, clock))
    assert verdicts(log) == []
    loop = SentinelLoop(log, 20.0, Clock())
    while loop.read():
        pass
    assert loop.accounts.cohorts() != []
    later = Clock()
    loop = SentinelLoop(log, 20.0, later)
    while loop.read():
        pass
    later.now_ms += 25 * HOUR_MS  # they have become old since they were read
    assert loop.hold() == [] and loop.accounts.cohorts() == []


def test_a_large_cohort_is_left_to_a_person() -> None:
    fans = tuple(f"fan{n}" for n in range(25))
    log = log_of(engagements(NOW_MS, fans))
    loop = SentinelLoop(log, 20.0, Clock())
    settle(loop)
    assert verdicts(log) == [] and len(loop.accounts.cohorts()[0].users) == 25


def test_a_verdict_stands_in_its_users_partition() -> None:
    log = log_of([])
    offsets = append_verdicts(log, ["a", "b", "a"], True, "why", 5)
    assert set(offsets) == {"a", "b"}
    for user, offset in offsets.items():
        [record] = log.read(EVENTS, partition_of(user, 2), offset, 1)
        verdict = decode(record.value)
        assert isinstance(verdict, Verdict) and verdict.user_id == user and verdict.why == "why"
