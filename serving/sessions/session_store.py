"""Session store in Redis or Valkey: one GET per request; MGET and one transaction per batch of the fold.

The transaction that writes the sessions also writes the fold's position in the log, so the two agree after a
crash. If the store holds another position than the fold left (it lost its last second, or a second process
folds too), nothing is written. In a Redis Cluster a transaction covers one slot only: see
``serving.sessions.cluster_store``.
"""

from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from typing import Any, Final, Protocol

import msgspec
import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError, frame_content_size

from recsys.app.set_loops import qualified
from recsys.events.hashing import Id, partition_of
from recsys.observability.log_lines import redact
from recsys.process.worker_share import WHOLE, Share

_POSITION_KEY: Final = "sessions:place"
# Kinds of keys: sessions expire, what outlives them (``Session.lasting``) doesn't.
KINDS = SESSION, LASTING = "session", "lasting-session"
_REMOVED: Final = 1_000  # keys at once
_CONNECTIONS: Final = 10_000  # one per read in progress: admission limits these
_FOLD_TIMEOUT_S: Final = 10.0
_SHRUNK_FROM: Final = 1_000  # bytes of a session
_ZSTD: Final = b"\x01"
_MOST_BYTES: Final = 1 << 28  # of an expanded session
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

    def of(self, partition: int) -> "FoldPosition":
        """The place of one partition."""
        return msgspec.structs.replace(self, events=[self.events[partition]])


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


def session_key(user_id: Id, name: str = "", partitions: int = 0, kind: str = SESSION) -> str:
    """Redis key of a user's session. ``name``: of its feature set (recsys/app/set_loops.py). ``partitions``:
    of ``events``, in a cluster, where the user's one names the slot. ``kind``: or ``LASTING``."""
    key = f"{qualified(kind, name)}:{user_id}"
    return f"{{p{partition_of(user_id, partitions)}}}{key}" if partitions else key


def place_key(place: str, partition: int, is_cluster: bool) -> str:
    """Redis key of the place of one partition."""
    return f"{{p{partition}}}" * is_cluster + f"{place}:{partition}"


def shrunk(blob: bytes) -> bytes:
    """A packed session as it is stored: larger ones compressed, to a quarter, after a byte that begins no
    session."""
    return _ZSTD + _compress(blob) if len(blob) > _SHRUNK_FROM else blob


def expanded(blob: bytes | None) -> bytes | None:
    """The packed session of a stored one; a damaged one as it is, which no reader takes for a session."""
    with suppress(ZstdError):
        if blob and blob[:1] == _ZSTD and frame_content_size(blob[1:]) <= _MOST_BYTES:
            return _expand(blob[1:])
    return blob


class SessionReader(Protocol):
    """Read access for requests."""

    def get(self, user_id: Id) -> Awaitable[bytes | None]:
        """Packed session, or what outlived it; None without either. Raises StoreUnavailable when awaited."""

    def of_set(self, name: str) -> "SessionReader":
        """The sessions of another feature set, over the same connections."""

    async def folded_to(self, partitions: int) -> FoldPosition | None:
        """The fold's last committed position, over so many partitions of ``events``; None in a new store.
        Raises StoreUnavailable."""

    async def close(self) -> None: ...


class FoldStore(Protocol):
    """Read and write access for the fold. All methods raise StoreUnavailable."""

    def position(self) -> FoldPosition | None:
        """Last committed position; None in a new store."""

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        """Packed sessions, or what outlived them, in order; None without either."""

    def commit(
        self, before: FoldPosition | None, after: FoldPosition, sessions: Mapping[str, bytes],
        gone: Collection[str] = (), lasting: Mapping[str, bytes] = {},
    ) -> None:  # fmt: skip
        """Writes ``sessions`` and what outlives each (``lasting``), deletes those of ``gone`` and sets the
        position: all or nothing.

        Raises PositionConflict, with nothing written, if the stored position isn't ``before``.
        """

    def remove(self) -> None:
        """Removes all sessions and the position."""


class RedisSessions:
    """SessionReader over redis-py with hiredis; belongs to one event loop.

    A read of a 25 KB session costs 34 to 39 µs of processor time, about 1 % of an answer.
    """

    def __init__(self, url: str, name: str = "", client: Any = None, partitions: int = 0) -> None:
        """``name``: of the feature set. ``client``: one that is connected already. ``partitions``: of
        ``events``, if ``url`` names a node of a cluster."""
        self._name, self._partitions = name, partitions
        kind = redis.asyncio.RedisCluster if partitions else redis.asyncio.Redis
        self._client: Any = client or kind.from_url(
            url,
            max_connections=_CONNECTIONS,
            socket_timeout=_READ_TIMEOUT_S,
            socket_connect_timeout=_READ_TIMEOUT_S,
            # for a connection that the server closed meanwhile; the blocking Retry would do nothing here
            retry=redis.asyncio.retry.Retry(NoBackoff(), 1, (redis.ConnectionError,)),
            protocol=2,
        )

    async def get(self, user_id: Id) -> bytes | None:
        try:  # without ``unavailable``, which would cost 1 µs a read
            get, place = self._client.get, (self._name, self._partitions)
            blob: bytes | None = await get(session_key(user_id, *place))
            blob = blob or await get(session_key(user_id, *place, LASTING))
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store can't be read: {error}") from error
        return expanded(blob)

    async def folded_to(self, partitions: int) -> FoldPosition | None:
        place = qualified(_POSITION_KEY, self._name)
        keys = [place_key(place, p, bool(self._partitions)) for p in range(partitions)]
        try:
            whole, *places = [decode_position(await self._client.get(key)) for key in (place, *keys)]
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store can't be read: {error}") from error
        return joined_position(whole, dict(enumerate(places)), partitions)

    def of_set(self, name: str) -> "RedisSessions":
        return RedisSessions("", name, self._client, self._partitions)

    async def close(self) -> None:
        await self._client.aclose()


class RedisFoldStore:
    """FoldStore over redis-py. Each write of a session renews its time to live. A worker among several writes
    a place of each partition, which fences it: a second worker of the partition gets PositionConflict."""

    is_cluster = False

    def __init__(
        self, url: str, ttl_s: int, name: str = "", share: Share = WHOLE, partitions: int = 0
    ) -> None:
        """``name``: of the feature set. ``partitions``: of ``events``."""
        self._ttl_s, self._name, self._place = ttl_s, name, qualified(_POSITION_KEY, name)
        self._share, self._count = share, partitions
        own = share.partitions(partitions)
        self._places = {p: place_key(self._place, p, self.is_cluster) for p in own}
        self._client: Any = _connect(url, self.is_cluster)

    def position(self) -> FoldPosition | None:
        with unavailable("read"):
            return self._read_position(self._client)

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        blobs = self._read_all([self._key(u, kind) for u in user_ids for kind in KINDS])
        pairs = zip(blobs[::2], blobs[1::2], strict=True)
        return [expanded(session or lasting) for session, lasting in pairs]

    def commit(
        self, before: FoldPosition | None, after: FoldPosition, sessions: Mapping[str, bytes],
        gone: Collection[str] = (), lasting: Mapping[str, bytes] = {},
    ) -> None:  # fmt: skip
        with unavailable("written"), self._client.pipeline(transaction=True) as pipe:
            pipe.watch(self._place, *self._places.values())
            check_position(before, self._read_position(pipe))
            pipe.multi()
            self._put(pipe, {**sessions, **dict.fromkeys(gone)}, lasting)
            if self._share.whole:
                pipe.set(self._place, msgspec.msgpack.encode(after))
            else:
                for partition, key in self._places.items():
                    pipe.set(key, msgspec.msgpack.encode(after.of(partition)))
            pipe.execute()

    def remove(self) -> None:
        if self.position() is None:
            return  # removed before: the position goes last
        with unavailable("removed"):
            for kind in KINDS:
                pattern = "{p*}" * self.is_cluster + session_key("*", self._name, kind=kind)
                matching = self._client.scan_iter(pattern, _REMOVED)
                while keys := list(islice(matching, _REMOVED)):
                    self._client.delete(*keys)
            self._client.delete(self._place, *self._places.values())

    def scrub(self) -> bool:
        """Has the server rewrite its append-only file, if it has one: it still holds deleted sessions. False
        if the server refuses: it is rewriting it, lacks memory, or is a hosted one that never does."""
        return self._scrub(self._client)

    def _scrub(self, client: Any) -> bool:
        with suppress(redis.RedisError, OSError):
            return not client.info("persistence").get("aof_enabled") or bool(client.bgrewriteaof())
        return False

    def close(self) -> None:
        self._client.close()

    def _key(self, user_id: Id, kind: str = SESSION) -> str:
        return session_key(user_id, self._name, self._count * self.is_cluster, kind)

    def _read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        with unavailable("read"):
            blobs: list[bytes | None] = self._client.mget(keys) if keys else []
            return blobs

    def _put(self, pipe: Any, sessions: Mapping[str, bytes | None], lasting: Mapping[str, bytes]) -> None:
        for kind, blobs, ttl_s in ((SESSION, sessions, self._ttl_s), (LASTING, lasting, None)):
            for user_id in sessions:
                if blob := blobs.get(user_id):
                    pipe.set(self._key(user_id, kind), shrunk(blob), ex=ttl_s)
                else:
                    pipe.delete(self._key(user_id, kind))

    def _read_position(self, client: Any) -> FoldPosition | None:
        whole, *places = map(decode_position, client.mget(self._place, *self._places.values()))
        if not self._places:
            return whole
        return joined_position(whole, dict(zip(self._places, places, strict=True)), self._count)


@contextmanager
def unavailable(action: str) -> Iterator[None]:
    """Raises StoreUnavailable for errors of the client, PositionConflict for a write between ours."""
    try:
        yield
    except redis.WatchError as error:
        reason = "a connection ended, or another process folds into this store: stop one of them"
        raise PositionConflict(f"{reason} ({error})") from error
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable(f"the session store can't be {action}: {error}") from error


def _connect(url: str, is_cluster: bool) -> Any:
    """The fold's client. Raises ValueError, with the remedy, for a server of the other kind, a certificate
    that isn't trusted, or a user whom it refuses; StoreUnavailable if it doesn't answer."""
    place = f"sessions.url is {redact(url)!r}"
    settings: Any = {"socket_timeout": _FOLD_TIMEOUT_S, "socket_connect_timeout": _FOLD_TIMEOUT_S,
                     "protocol": 2}  # fmt: skip
    with closing(redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **settings)) as client:
        try:
            runs_cluster = bool(client.info("cluster").get("cluster_enabled"))
        except redis.exceptions.AuthenticationError as error:
            raise ValueError(f"{place}, and it refuses its user or password: {error}") from None
        except (redis.RedisError, OSError) as error:
            if "CERTIFICATE" in str(error):
                raise ValueError(
                    f"{place}, and TLS with it fails: {error}. Name the authority that signed its "
                    "certificate: ?ssl_ca_certs=/path/ca.pem; the certificate must name the host"
                ) from None
            runs_cluster = is_cluster  # away, or the user may not look
    if runs_cluster != is_cluster:
        names = ("a single server", "a node of a cluster")
        raise ValueError(
            f"{place}: {names[runs_cluster]}, expected {names[is_cluster]}, since sessions.cluster is "
            f"{is_cluster}. Set it to {runs_cluster}, or name another server"
        )
    with unavailable("reached"):
        if is_cluster:
            return redis.RedisCluster.from_url(url, retry=_FAILOVER, **settings)
        # A master that became a replica keeps its connections: a new one leads to the new master.
        settings |= {"retry": Retry(NoBackoff(), 1), "retry_on_error": [redis.ReadOnlyError]}
        return redis.Redis.from_url(url, **settings)


def decode_position(blob: Any) -> FoldPosition | None:
    return None if blob is None else msgspec.msgpack.decode(blob, type=FoldPosition)


def check_position(expected: FoldPosition | None, stored: FoldPosition | None) -> None:
    if stored != expected:
        raise PositionConflict(
            f"the session store is at {stored}, this fold left it at {expected}: the store lost its newest "
            "writes, or another process folds too"
        )


# After 0.1, 0.2 … 1.6 s: about as long as an election takes.
_FAILOVER: Final = Retry(ExponentialBackoff(2.0, 0.1), 5)
# Not safe for threads: a process has one that calls them, the fold's or the event loop of answers. Making one
# for each call would cost 30 µs.
_compress: Final = ZstdCompressor(level=1).compress
_expand: Final = ZstdDecompressor().decompress
