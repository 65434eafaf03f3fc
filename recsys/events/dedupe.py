"""Remembers the newest event ids, so that an event that arrives twice counts once."""

from collections.abc import Iterable


class Recent:
    """The newest ``limit`` ids. A repeat older than that is taken for new: the stated horizon of ids."""

    def __init__(self, limit: int, ids: Iterable[str] = ()) -> None:
        self.limit = limit
        self._ids: dict[str, None] = dict.fromkeys(ids)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id_: str) -> bool:
        """Remembers an id; False where it is remembered already."""
        if id_ in self._ids:
            return False
        self._ids[id_] = None
        if len(self._ids) > self.limit:
            del self._ids[next(iter(self._ids))]
        return True

    def drop(self, prefix: str) -> None:
        """Forgets the ids that begin with it. Looks at all there are: it is rare."""
        for id_ in [id_ for id_ in self._ids if id_.startswith(prefix)]:
            del self._ids[id_]

    def export(self) -> list[str]:
        """The ids, oldest first."""
        return list(self._ids)
