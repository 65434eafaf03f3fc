"""Session store in memory, for benchmarks and tests of a system in one process."""

from collections.abc import Collection, Mapping, Sequence

from recsys.events.hashing import Id
from serving.sessions.session_store import FoldPosition, check_position


class MemorySessions:
    """SessionReader and FoldStore."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self._position: FoldPosition | None = None
        self._sets: dict[str, MemorySessions] = {}

    def of_set(self, name: str) -> "MemorySessions":
        """The sessions of another feature set."""
        return self._sets.setdefault(name, MemorySessions()) if name else self

    def remove(self) -> None:
        self.blobs.clear()
        self._position = None

    async def get(self, user_id: Id) -> bytes | None:
        return self.blobs.get(str(user_id))

    async def close(self) -> None: ...

    def position(self) -> FoldPosition | None:
        return self._position

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        return [self.blobs.get(str(user_id)) for user_id in user_ids]

    def commit(
        self,
        before: FoldPosition | None,
        after: FoldPosition,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
    ) -> None:
        check_position(before, self._position)
        self.blobs.update(sessions)
        for user_id in gone:
            self.blobs.pop(user_id, None)
        self._position = after
