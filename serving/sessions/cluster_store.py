"""Session store in a Redis Cluster: the place of a partition of ``events`` and its users' sessions have one
hash tag, ``{p12}``, so that one transaction writes both.

A batch is a transaction for each of its partitions. After a crash between them, or a failover that loses the
newest writes of a master, each place still fits its sessions, and the fold repeats what is missing: sessions
skip the events that they hold.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from recsys.events.hashing import partition_of
from serving.sessions.session_store import (
    FoldPosition,
    RedisFoldStore,
    check_position,
    decode_position,
    joined_position,
    unavailable,
)


class ClusterFoldStore(RedisFoldStore):
    """FoldStore over redis-py's cluster client. All or nothing by partition."""

    is_cluster = True
    _stored: dict[int, FoldPosition | None] | None = None  # as read or written last

    def position(self) -> FoldPosition | None:
        blobs = self._read_all(list(self._places.values()))
        self._stored = dict(zip(self._places, map(decode_position, blobs), strict=True))
        return joined_position(None, self._stored, self._count)

    def commit(
        self, before: FoldPosition | None, after: FoldPosition, sessions: Mapping[str, bytes],
        gone: Collection[str] = (), lasting: Mapping[str, bytes] = {},
    ) -> None:  # fmt: skip
        if self._stored is None:
            self.position()
        stored = self._stored or {}
        check_position(before, joined_position(None, stored, self._count))
        written: dict[int, dict[str, bytes | None]] = {partition: {} for partition in self._places}
        for user_id, blob in {**sessions, **dict.fromkeys(gone)}.items():
            written[partition_of(user_id, self._count)][user_id] = blob
        for partition, blobs in written.items():
            place = after.of(partition)
            if blobs or place != stored[partition]:
                self._write(partition, stored[partition], place, blobs, lasting)
                stored[partition] = place

    def remove(self) -> None:
        super().remove()
        self._stored = None

    def scrub(self) -> bool:
        return all([self._scrub(n.redis_connection) for n in self._client.get_primaries()])

    def _read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        with unavailable("read"), self._client.pipeline() as pipe:
            for key in keys:
                pipe.get(key)
            blobs: list[bytes | None] = pipe.execute()
            return blobs

    def _write(
        self, partition: int, before: FoldPosition | None, place: FoldPosition,
        sessions: Mapping[str, bytes | None], lasting: Mapping[str, bytes],
    ) -> None:  # fmt: skip
        key = self._places[partition]
        with unavailable("written"), self._client.pipeline(transaction=True) as pipe:
            pipe.watch(key)
            check_position(before, decode_position(pipe.get(key)))
            pipe.multi()
            self._put(pipe, sessions, lasting)
            pipe.set(key, msgspec.msgpack.encode(place))
            pipe.execute()
