"""Session store in a Redis Cluster: the place of a partition of ``events`` and its users' sessions have one
hash tag, ``{p12}``, so that one transaction writes both.

A batch is a transaction for each of its partitions. After a crash between them, or a failover that loses the
newest writes of a master, each place still fits its sessions, and the fold repeats what is missing: sessions
skip the events that they hold.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice

import msgspec

from recsys.config.system_config import Config
from recsys.events.hashing import Id, partition_of
from recsys.process.worker_share import WHOLE, Share
from serving.sessions.session_store import (
    REMOVED_AT_ONCE,
    FoldPosition,
    RedisFoldStore,
    RedisSessions,
    check_position,
    connect,
    decode_position,
    expanded,
    joined_position,
    session_key,
    shrunk,
    unavailable,
)


class ClusterFoldStore(RedisFoldStore):
    """FoldStore over redis-py's cluster client. All or nothing by partition."""

    def __init__(
        self, url: str, ttl_s: int, name: str = "", share: Share = WHOLE, partitions: int = 1
    ) -> None:
        """``name``: of the feature set. ``partitions``: of ``events``."""
        super().__init__(url, ttl_s, name, share, partitions, connect(url, is_cluster=True))
        self._places = {p: f"{{p{p}}}{key}" for p, key in self._places.items()}
        self._stored: dict[int, FoldPosition | None] | None = None  # as read or written last

    def position(self) -> FoldPosition | None:
        blobs = self._read_all(list(self._places.values()))
        self._stored = dict(zip(self._places, map(decode_position, blobs), strict=True))
        return joined_position(None, self._stored, self._count)

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        return list(map(expanded, self._read_all([self._key(user_id) for user_id in user_ids])))

    def commit(
        self,
        before: FoldPosition | None,
        after: FoldPosition,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
    ) -> None:
        if self._stored is None:
            self.position()
        stored = self._stored or {}
        check_position(before, joined_position(None, stored, self._count))
        written: dict[int, dict[str, bytes | None]] = {partition: {} for partition in self._places}
        for user_id, blob in [*sessions.items(), *((user_id, None) for user_id in gone)]:
            written[partition_of(user_id, self._count)][self._key(user_id)] = blob
        for partition, blobs in written.items():
            place = msgspec.structs.replace(after, events=[after.events[partition]])
            if blobs or place != stored[partition]:
                self._write(partition, stored[partition], place, blobs)
                stored[partition] = place

    def remove(self) -> None:
        pattern = "{p*}" + session_key("*", self._name)
        with unavailable("removed"):
            while keys := list(islice(self._client.scan_iter(pattern), REMOVED_AT_ONCE)):
                self._client.delete(*keys)
            self._client.delete(*self._places.values())
        self._stored = None

    def scrub(self) -> None:
        for node in self._client.get_primaries():
            self._scrub(node.redis_connection)

    def _key(self, user_id: Id) -> str:
        return session_key(user_id, self._name, self._count)

    def _read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        with unavailable("read"), self._client.pipeline() as pipe:
            for key in keys:
                pipe.get(key)
            blobs: list[bytes | None] = pipe.execute()
            return blobs

    def _write(
        self,
        partition: int,
        before: FoldPosition | None,
        place: FoldPosition,
        blobs: Mapping[str, bytes | None],
    ) -> None:
        key = self._places[partition]
        with unavailable("written"), self._client.pipeline(transaction=True) as pipe:
            pipe.watch(key)
            check_position(before, decode_position(pipe.get(key)))
            pipe.multi()
            for name, blob in blobs.items():
                if blob is None:
                    pipe.delete(name)
                else:
                    pipe.set(name, shrunk(blob), ex=self._ttl_s)
            pipe.set(key, msgspec.msgpack.encode(place))
            pipe.execute()


def fold_store(
    config: Config, name: str = "", share: Share = WHOLE, partitions: int = 0
) -> RedisFoldStore:
    """The fold's store that the configuration names. ``name``: of the feature set."""
    kind = ClusterFoldStore if config.sessions.cluster else RedisFoldStore
    return kind(config.sessions.url, config.sessions.ttl_s, name, share, partitions)


def session_reader(config: Config) -> RedisSessions:
    """The store that the configuration names, for requests."""
    partitions = config.log.partitions if config.sessions.cluster else 0
    return RedisSessions(config.sessions.url, partitions=partitions)
