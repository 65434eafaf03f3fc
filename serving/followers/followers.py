"""Everything that one replica follows: a thread reads, and the event loop applies between two requests.

A batch is small, and what is large is only swapped in, so that no request waits long.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from recsys.clock import is_due
from recsys.log.protocol import Log
from serving.followers.follower import Follower
from serving.followers.index import IndexFollower
from serving.followers.items import ItemsFollower
from serving.followers.weights import WeightsFollower
from serving.replica.catalogue_snapshot import CatalogueSnapshot

_STARTING: Final = 20  # factor on the records of a batch while the replica doesn't answer yet
_LAG_EVERY_MS: Final = 1_000


@dataclass(frozen=True)
class Batch:
    """Changes that were read at once, each with its follower. True if there is something to apply."""

    changes: list[tuple[Follower[Any], Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(change for _, change in self.changes)

    @property
    def full(self) -> bool:
        """Whether there may be more of the state that answers depend on."""
        return any(change for follower, change in self.changes if follower.topic)


class Followers:
    """Followers of one replica. ``read`` and ``catch_up`` belong to one thread, all else to another; each
    batch is applied before the next ``read``.

    ``all`` of them read, and then apply, in this order:

    - control before weights: it names the line and the line's model.
    - Items before counters and weights: an item is there when its counters and its vector change.
    - Weights before progress. A step is recorded before its deltas, so that the records of all deltas of a
      batch are read. When the steps are measured, they are applied.
    - The index last: no error of the log comes after its turn.

    Before the first ``apply`` of a batch, all of them ``swap``: another version's rows and vectors are made
    for the items applied when they were read, not for those of the batch. A built index comes after them, and
    is dropped if they replaced its vectors.
    """

    def __init__(
        self, log: Log, followers: Sequence[Follower[Any]], items: ItemsFollower, weights: WeightsFollower,
        index: IndexFollower, now_ms: Callable[[], int], catalogue: CatalogueSnapshot | None = None,
        applied: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """``followers``: all. ``catalogue``: to start from. ``applied``: called after each batch."""
        self.all, self.items, self.weights, self._index = followers, items, weights, index
        self._log, self._now_ms, self._applied = log, now_ms, applied
        self.catalogue = catalogue
        self.ready = False
        self.lag: dict[str, int] = {}  # unread records by topic, as of about a second ago
        self._lagged_ms = 0

    @property
    def unreadable(self) -> int:
        """Number of records that couldn't be read."""
        return sum(follower.unreadable for follower in self.all)

    def read(self) -> Batch:
        """Reads on in all topics. Raises LogUnavailable, and LogLost where the catalogue is gone."""
        scale = 1 if self.ready else _STARTING
        batch = Batch([(follower, follower.read(scale * follower.at_once)) for follower in self.all])
        now_ms = self._now_ms()
        if is_due(now_ms, self._lagged_ms + _LAG_EVERY_MS, _LAG_EVERY_MS):
            self._lagged_ms = now_ms
            self.lag = {f.topic: self._log.end(f.topic, 0) - f.offset for f in self.all if f.topic}
        return batch

    def apply(self, batch: Batch) -> None:
        """Changes the replica. Never during a request."""
        for follower, change in batch.changes:
            follower.swap(change)
        for follower, change in batch.changes:
            follower.apply(change)
        self._applied()

    def catch_up(self, stopped: Callable[[], bool]) -> None:
        """Reads and applies up to the end of the log, in this thread: before the first answer. A large
        catalogue is read on from a snapshot, and one that lacks much is replaced, by one replica of those
        that start together."""
        saved, end = self.catalogue, self._log.end(self.items.topic, 0)
        if saved is None:
            return self._read_to_end(stopped)
        saved.prune()
        self._restore(saved, end)
        try:
            if saved.lacks(end):
                # Otherwise reading on takes less time than waiting.
                lacks_most = 2 * saved.offset < end
                saved.acquire(self._now_ms(), lambda: lacks_most and not stopped())
                self._restore(saved, end)  # another replica may have written one meanwhile
                if not saved.lacks(end):
                    saved.release()
            self._read_to_end(stopped)
        finally:
            saved.release()

    def _restore(self, saved: CatalogueSnapshot, end: int) -> None:
        before = saved.offset
        if saved.lacks(end):
            saved.restore()
        if saved.offset != before:
            self.items.skip_to(saved.offset)
            self.weights.restart()

    def _read_to_end(self, stopped: Callable[[], bool]) -> None:
        while not stopped():
            batch = self.read()
            self.apply(batch)
            if not batch.full:
                if self.catalogue is not None:
                    self.catalogue.restore_index()
                self._index.build()
                if self.catalogue is not None:
                    self.catalogue.save(self._now_ms())
                self.ready = True
                return
