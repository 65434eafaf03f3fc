"""Session store in Redis or Valkey: one GET per request; MGET and one transaction per batch of the fold.

The transaction that writes the sessions also writes the fold's position in the log, so the two agree after a
crash. If the store holds another position than the fold left (it lost its last second, or a second process
folds too), nothing is written. The store is a single instance: in a Redis Cluster a transaction covers one
slot only.
"""

from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Final, Protocol

import msgspec
import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys.events.hashing import Id
from recsys.process.worker_share import WHOLE, Share

_POSITION_KEY: Final = "sessions:place"
_REMOVED: Final = 1_000  # keys at once
_CONNECTIONS: Final = 10_000  # one per read in progress: admission limits these
_FOLD_TIMEOUT_S: Final = 10.0
_READ_TIMEOUT_S: Final = 1.0  # of the connection; a request waits far less: see session_timeout


class StoreUnavailable(RuntimeError):
    """The session store doesn't answer. Whether the last write happened is unknown."""


class PositionConflict(RuntimeError):
    """The store's position isn't the one this fold wrote last: resume from the stored one."""


class FoldPosition(msgspec.Struct, frozen=True):
    """Next offsets to fold: of ``events`` by partition, -1 for those of other workers, and of ``control``."""

    log_id: str
    events: list[int]
    control: int


def joined_position(
    whole: FoldPosition | None, places: Mapping[int, FoldPosition | None], count: int
) -> FoldPosition | None:
    """Position over ``count`` partitions from that of a fold without other workers, and the places of single
    partitions: the furthest of each, since the number of workers may change. None without any."""
    events, controls, log_id = [-1] * count, list[int](), ""
    for partition, place in places.items():
        options = [(place.events[0], place.control, place.log_id)] if place else []
        if whole:
            options.append((whole.events[partition], whole.control, whole.log_id))
        if options:
            events[partition], control, log_id = max(options)
            controls.append(control)
    if not controls:
        return None
    return FoldPosition(log_id, events, min(controls) if len(controls) == len(places) else -1)


def session_key(user_id: Id, name: str = "") -> str:
    """Redis key of a user's session. ``name``: of its feature set (recsys/app/set_loops.py)."""
    return f"session:{user_id}" if not name else f"session@{name}:{user_id}"


class SessionReader(Protocol):
    """Read access for requests."""

    def get(self, user_id: Id) -> Awaitable[bytes | None]:
        """Packed session; None if there is none. Raises StoreUnavailable when awaited."""

    def of_set(self, name: str) -> "SessionReader":
        """The sessions of another feature set, over the same connections."""

    async def close(self) -> None: ...


class FoldStore(Protocol):
    """Read and write access for the fold. All methods raise StoreUnavailable."""

    def position(self) -> FoldPosition | None:
        """Last committed position; None in a new store."""

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        """Packed sessions, in order; None where there is none."""

    def commit(
        self,
        before: FoldPosition | None,
        after: FoldPosition,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
    ) -> None:
        """Writes ``sessions``, deletes those of ``gone`` and sets the position: all or nothing.

        Raises PositionConflict, with nothing written, if the stored position isn't ``before``.
        """

    def remove(self) -> None:
        """Removes all sessions and the position."""


class RedisSessions:
    """SessionReader over redis-py with hiredis; belongs to one event loop.

    A read of a 25 KB session costs 34 to 39 µs of processor time, about 1 % of an answer.
    """

    def __init__(self, url: str, name: str = "", client: Any = None) -> None:
        """``name``: of the feature set. ``client``: one that is connected already."""
        self._name = name
        self._client: Any = client or redis.asyncio.Redis.from_url(
            url,
            max_connections=_CONNECTIONS,
            socket_timeout=_READ_TIMEOUT_S,
            socket_connect_timeout=_READ_TIMEOUT_S,
            # for a connection that the server closed meanwhile; the blocking Retry would do nothing here
            retry=redis.asyncio.retry.Retry(NoBackoff(), 1, (redis.ConnectionError,)),
            protocol=2,
        )

    async def get(self, user_id: Id) -> bytes | None:
        try:  # without _unavailable, which would cost 1 µs a read
            blob: bytes | None = await self._client.get(session_key(user_id, self._name))
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store can't be read: {error}") from error
        return blob

    def of_set(self, name: str) -> "RedisSessions":
        return RedisSessions("", name, self._client)

    async def close(self) -> None:
        await self._client.aclose()


class RedisFoldStore:
    """FoldStore over redis-py. Each write of a session renews its time to live. A worker among several writes
    a place of each partition, which fences it: a second worker of the partition gets PositionConflict."""

    def __init__(
        self, url: str, ttl_s: int, name: str = "", share: Share = WHOLE, partitions: int = 0
    ) -> None:
        """``name``: of the feature set. ``partitions``: of ``events``."""
        self._ttl_s, self._name, self._place = ttl_s, name, _position_key(name)
        self._share, self._count = share, partitions
        own = share.partitions(partitions)
        self._places = {partition: f"{self._place}:{partition}" for partition in own}
        self._client: Any = redis.Redis.from_url(
            url,
            socket_timeout=_FOLD_TIMEOUT_S,
            socket_connect_timeout=_FOLD_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
            protocol=2,
        )

    def position(self) -> FoldPosition | None:
        with _unavailable("read"):
            return self._read_position(self._client)

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        if not user_ids:
            return []
        with _unavailable("read"):
            keys = [session_key(user_id, self._name) for user_id in user_ids]
            blobs: list[bytes | None] = self._client.mget(keys)
            return blobs

    def commit(
        self,
        before: FoldPosition | None,
        after: FoldPosition,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
    ) -> None:
        with _unavailable("written"), self._client.pipeline(transaction=True) as pipe:
            pipe.watch(self._place, *self._places.values())
            check_position(before, self._read_position(pipe))
            pipe.multi()
            for user_id, blob in sessions.items():
                pipe.set(session_key(user_id, self._name), blob, ex=self._ttl_s)
            if gone:
                pipe.delete(*(session_key(user_id, self._name) for user_id in gone))
            if self._share.whole:
                pipe.set(self._place, msgspec.msgpack.encode(after))
            else:
                for partition, key in self._places.items():
                    place = msgspec.structs.replace(after, events=[after.events[partition]])
                    pipe.set(key, msgspec.msgpack.encode(place))
            pipe.execute()

    def remove(self) -> None:
        pattern = session_key("*", self._name)
        with _unavailable("removed"):
            while keys := list(islice(self._client.scan_iter(pattern), _REMOVED)):
                self._client.delete(*keys)
            self._client.delete(self._place, *self._places.values())

    def scrub(self) -> None:
        """Has the server rewrite its append-only file, if it has one: it still holds deleted sessions."""
        with suppress(redis.RedisError, OSError):  # a hosted server may not allow it
            if self._client.info("persistence").get("aof_enabled"):
                self._client.bgrewriteaof()

    def close(self) -> None:
        self._client.close()

    def _read_position(self, client: Any) -> FoldPosition | None:
        whole, *places = map(_decode_position, client.mget(self._place, *self._places.values()))
        if not self._places:
            return whole
        return joined_position(whole, dict(zip(self._places, places, strict=True)), self._count)


@contextmanager
def _unavailable(action: str) -> Iterator[None]:
    """Raises StoreUnavailable for errors of the client, PositionConflict for a write between ours."""
    try:
        yield
    except redis.WatchError as error:
        reason = "another process folds sessions into this store: stop one of them"
        raise PositionConflict(reason) from error
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable(f"the session store can't be {action}: {error}") from error


def _position_key(name: str) -> str:
    return _POSITION_KEY if not name else f"{_POSITION_KEY}@{name}"


def _decode_position(blob: Any) -> FoldPosition | None:
    return None if blob is None else msgspec.msgpack.decode(blob, type=FoldPosition)


def check_position(expected: FoldPosition | None, stored: FoldPosition | None) -> None:
    if stored != expected:
        raise PositionConflict(
            f"the session store is at {stored}, this fold left it at {expected}: the store lost its newest "
            "writes, or another process folds too"
        )
