"""Sessions in Redis or Valkey: one GET per request, and for the fold MGET and one transaction per batch.

The fold's place in the log is written in the transaction that writes the sessions, so the two agree whatever
is killed when. Before it writes, it compares: where the store has another place than the fold left there (it
came back without its last second, or another process folds too), nothing is written and ``Moved`` is raised;
the fold then goes on from the place that is there. A single instance is meant, not a Redis Cluster, whose
transactions end at a slot.
"""

from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys.events.hashing import Id

_PLACE: Final = b"sessions:place"
_CONNECTIONS: Final = 200
_FOLD_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 1.0  # of the connection; a request waits for far less


class StoreUnavailable(RuntimeError):
    """The session store doesn't answer. Whether the last write was done is unknown."""


class Moved(RuntimeError):
    """The store's place isn't the one that this fold left there: go on from what is there."""


class Place(msgspec.Struct, frozen=True):
    """Up to where the sessions are folded: offsets of ``events`` by partition, and of ``control``."""

    log_id: str
    events: list[int]
    control: int


def session_key(user_id: Id) -> str:
    """Where a user's session stands."""
    return f"session:{user_id}"


class SessionReader(Protocol):
    """What a request needs."""

    def get(self, user_id: Id) -> Awaitable[bytes | None]:
        """A packed session; None where there is none. Raises StoreUnavailable when it is awaited."""

    async def close(self) -> None: ...


class FoldStore(Protocol):
    """What the fold needs. Both methods raise StoreUnavailable."""

    def place(self) -> Place | None:
        """The place last committed; None in a new store."""

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        """Packed sessions, in order; None where there is none."""

    def commit(
        self,
        before: Place | None,
        after: Place,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
    ) -> None:
        """Writes sessions, removes those of ``gone`` and moves the place: all or nothing.

        Raises Moved, with nothing written, where the place isn't ``before``.
        """

    def close(self) -> None: ...


class MemorySessions:
    """Both protocols in memory, for tests and for a system in one process."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self._place: Place | None = None

    async def get(self, user_id: Id) -> bytes | None:
        return self.blobs.get(str(user_id))

    async def close(self) -> None: ...

    def place(self) -> Place | None:
        return self._place

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        return [self.blobs.get(str(user_id)) for user_id in user_ids]

    def commit(
        self,
        before: Place | None,
        after: Place,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
    ) -> None:
        _compare(before, self._place)
        self.blobs.update(sessions)
        for user_id in gone:
            self.blobs.pop(user_id, None)
        self._place = after


class MemoryFold:
    """The fold's side of ``MemorySessions``: its ``close`` isn't a coroutine."""

    def __init__(self, sessions: MemorySessions) -> None:
        self.sessions = sessions
        self.place, self.load, self.commit = sessions.place, sessions.load, sessions.commit

    def close(self) -> None: ...


class RedisSessions:
    """The sessions as a request reads them. Use it in one event loop."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.asyncio.Redis.from_url(
            url,
            max_connections=_CONNECTIONS,
            socket_timeout=READ_TIMEOUT_S,
            socket_connect_timeout=READ_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # a connection that the server closed meanwhile
            protocol=2,
        )

    async def get(self, user_id: Id) -> bytes | None:
        try:
            blob: bytes | None = await self._client.get(session_key(user_id))
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store can't be read: {error}") from error
        return blob

    async def close(self) -> None:
        await self._client.aclose()


class RedisFold:
    """The sessions as the fold writes them. Each write begins the session's time-to-live anew."""

    def __init__(self, url: str, ttl_s: int) -> None:
        self._ttl_s = ttl_s
        self._client: Any = redis.Redis.from_url(
            url,
            socket_timeout=_FOLD_TIMEOUT_S,
            socket_connect_timeout=_FOLD_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
            protocol=2,
        )

    def place(self) -> Place | None:
        try:
            return _read_place(self._client.get(_PLACE))
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store can't be read: {error}") from error

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        if not user_ids:
            return []
        try:
            blobs: list[bytes | None] = self._client.mget(list(map(session_key, user_ids)))
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store can't be read: {error}") from error
        return blobs

    def commit(
        self,
        before: Place | None,
        after: Place,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
    ) -> None:
        try:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.watch(_PLACE)
                _compare(before, _read_place(pipe.get(_PLACE)))
                pipe.multi()
                for user_id, blob in sessions.items():
                    pipe.set(session_key(user_id), blob, ex=self._ttl_s)
                if gone:
                    pipe.delete(*map(session_key, gone))
                pipe.set(_PLACE, msgspec.msgpack.encode(after))
                pipe.execute()
        except redis.WatchError as error:
            raise Moved(
                "another process folds sessions into this store: end one of them"
            ) from error
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store can't be written: {error}") from error

    def close(self) -> None:
        self._client.close()


def _read_place(blob: Any) -> Place | None:
    return None if blob is None else msgspec.msgpack.decode(blob, type=Place)


def _compare(expected: Place | None, found: Place | None) -> None:
    if found != expected:
        raise Moved(
            f"the session store is at {found}, this fold left it at {expected}: the store lost its newest "
            "writes, or another process folds too"
        )
