"""A replica knows how far sessions and counters are behind, and whose lists lack events."""

from types import SimpleNamespace
from typing import Any

from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS, topics
from recsys.log.protocol import Append, MemoryLog
from serving.followers.folds import FoldsFollower

PARTITIONS = 4


class Folded:
    """A log with events, a replica's counters, and the clocks of a follower."""

    def __init__(self) -> None:
        self.log, self.replica, self.now_s = MemoryLog(), SimpleNamespace(counted=[0] * PARTITIONS), 100.0
        for topic in topics(PARTITIONS):
            self.log.create(topic)
        replica: Any = self.replica
        self.follower = FoldsFollower(self.log, replica, lambda: int(1000 * self.now_s), lambda: self.now_s)

    def put(self, partition: int, events: int) -> None:
        self.log.append(EVENTS, [Append(partition, b"", b"")] * events)

    def turn(self, sessions: list[int] | None, counted: list[int], seconds: float = 1.0) -> dict[str, Any]:
        self.now_s += seconds
        self.replica.counted, self.follower.sessions_at = counted, sessions
        self.follower.apply(self.follower.read(100))
        return {name: (it.behind, it.per_s) for name, it in self.follower.catching_up.items()}


def user_of(partition: int) -> str:
    return next(f"u{n}" for n in range(100) if partition_of(f"u{n}", PARTITIONS) == partition)


def test_what_is_behind_is_named_with_its_rate_until_it_is_there() -> None:
    folded = Folded()
    folded.put(1, 5_000)
    assert folded.turn([0, 0, 0, 0], []) == {"counters": (5_000, 0.0), "sessions": (5_000, 0.0)}
    assert folded.turn([0, 200, 0, 0], [0, 400, 0, 0], 2.0) == {
        "counters": (4_600, 200.0), "sessions": (4_800, 100.0),
    }  # fmt: skip
    follower = folded.follower
    assert not follower.has_caught_up
    assert follower.lacks_events(user_of(1)) and not follower.lacks_events(user_of(2))
    assert folded.turn([0, 4_900, 0, 0], [0, 5_000, 0, 0]) == {}
    assert follower.has_caught_up and not follower.lacks_events(user_of(1))


def test_it_is_measured_once_a_second_and_not_without_the_store() -> None:
    folded = Folded()
    assert folded.turn(None, [0, 0, 0, 0]) == {} and not folded.follower.has_caught_up
    folded.put(0, 2_000)
    assert not folded.follower.read(100)
    assert folded.turn(None, [0, 0, 0, 0]) == {"counters": (2_000, 0.0)}
    assert folded.turn([2_000, 0, 0, 0], [2_000, 0, 0, 0]) == {} and folded.follower.has_caught_up
