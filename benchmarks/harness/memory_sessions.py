"""Session store in memory, for benchmarks and tests of a system in one process."""

from collections.abc import Collection, Mapping, Sequence

from recsys.events.hashing import Id
from recsys.process.worker_share import Share
from serving.sessions.session_store import FoldPosition, check_position, joined_position


class MemorySessions:
    """SessionReader and FoldStore."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}  # none expires
        self.lasting: dict[str, bytes] = {}  # what would outlive them; empty: nothing
        self._position: FoldPosition | None = None
        self._sets: dict[str, MemorySessions] = {}
        self.places: dict[int, FoldPosition] = {}

    def of_set(self, name: str) -> "MemorySessions":
        """The sessions of another feature set."""
        return self._sets.setdefault(name, MemorySessions()) if name else self

    def remove(self) -> None:
        self.blobs.clear()
        self.lasting.clear()
        self.places.clear()
        self._position = None

    async def get(self, user_id: Id) -> bytes | None:
        return self.load([user_id])[0]

    async def folded_to(self, partitions: int) -> FoldPosition | None:
        return joined_position(self._position, {p: self.places.get(p) for p in range(partitions)}, partitions)

    async def close(self) -> None: ...

    def position(self) -> FoldPosition | None:
        return self._position

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        names = map(str, user_ids)
        return [self.blobs.get(name) or self.lasting.get(name) or None for name in names]

    def commit(
        self,
        before: FoldPosition | None,
        after: FoldPosition,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
        lasting: Mapping[str, bytes] = {},
    ) -> None:
        check_position(before, self._position)
        self.put(sessions, gone, lasting)
        self._position = after

    def put(self, sessions: Mapping[str, bytes], gone: Collection[str], lasting: Mapping[str, bytes]) -> None:
        self.blobs.update(sessions)
        self.lasting.update({user_id: lasting.get(user_id, b"") for user_id in sessions})
        for user_id in gone:
            self.blobs.pop(user_id, None)
            self.lasting.pop(user_id, None)


class MemoryShare:
    """FoldStore of one worker over the same sessions, with a place of each partition."""

    def __init__(self, sessions: MemorySessions, share: Share, partitions: int) -> None:
        self._sessions, self._share, self._count = sessions, share, partitions
        self.load, self.remove = sessions.load, sessions.remove

    def position(self) -> FoldPosition | None:
        places = {p: self._sessions.places.get(p) for p in self._share.partitions(self._count)}
        return joined_position(self._sessions.position(), places, self._count)

    def commit(
        self,
        before: FoldPosition | None,
        after: FoldPosition,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
        lasting: Mapping[str, bytes] = {},
    ) -> None:
        check_position(before, self.position())
        if self._share.whole:
            self._sessions.commit(self._sessions.position(), after, sessions, gone, lasting)
            return
        self._sessions.put(sessions, gone, lasting)
        places = {p: after.of(p) for p in self._share.partitions(self._count)}
        self._sessions.places.update(places)
