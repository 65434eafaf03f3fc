"""The session store in a file: expiry, damage, and the hand-over to another store."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.harness.memory_sessions import MemorySessions, MemoryShare
from recsys.config.system_config import Config, SessionConfig
from recsys.events.hashing import partition_of
from recsys.process.worker_share import Share
from serving.sessions import sqlite_sessions
from serving.sessions.open_store import fold_store, session_reader, take_over
from serving.sessions.session_store import FoldPosition, PositionConflict, StoreUnavailable
from serving.sessions.sqlite_sessions import FILE, SqliteFoldStore, SqliteSessions, hand_over

FIRST = FoldPosition("log-1", [3, 0, 7, 1], 2)
SECOND = FoldPosition("log-1", [5, 0, 9, 1], 2)
USERS = {f"u{n}": f"session {n}".encode() for n in range(1_300)}
KEPT = {"u1": b"kept 1", "u7": b"kept 7"}


class Clock:
    ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def store(tmp_path: Path) -> SqliteFoldStore:
    return SqliteFoldStore(tmp_path / FILE, Clock(), 60)


def test_a_session_that_nobody_writes_expires_and_what_outlives_it_stays(tmp_path: Path) -> None:
    clock = Clock()
    fold, reader = SqliteFoldStore(tmp_path / FILE, clock, 60), SqliteSessions(tmp_path / FILE, clock, "")
    fold.commit(None, FIRST, {"u1": b"1", "u2": b"2"}, (), KEPT)
    clock.ms += 59_999
    assert fold.load(["u1", "u2"]) == [b"1", b"2"]
    clock.ms += 1
    assert fold.load(["u1", "u2"]) == [b"kept 1", None]
    assert asyncio.run(reader.get("u1")) == b"kept 1"
    fold._commits = 0
    fold.commit(FIRST, SECOND, {"u3": b"3"})
    rows = fold._db.execute("SELECT user, session FROM sessions ORDER BY user").fetchall()
    assert rows == [("u1", b""), ("u3", b"3")]


def test_nothing_of_a_deleted_user_stays_in_the_files(store: SqliteFoldStore, tmp_path: Path) -> None:
    def has(text: bytes) -> bool:
        return any(text in file.read_bytes() for file in tmp_path.iterdir())

    store.commit(None, FIRST, {"u1": b"forget me", "u2": b"stay"})
    assert has(b"forget me")
    store.commit(FIRST, SECOND, {}, ["u1"])
    assert store.scrub() and not has(b"forget me") and has(b"stay")


def test_a_locked_file_is_unavailable_and_a_damaged_one_names_the_remedy(
    store: SqliteFoldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(None, FIRST, {"u1": b"1"})
    monkeypatch.setattr(sqlite_sessions, "_BUSY_S", 0.05)
    other = SqliteFoldStore(tmp_path / FILE, Clock(), 60)
    store._db.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="can't be written: database is locked"):
        other.commit(FIRST, SECOND, {"u1": b"2"})
    store._db.execute("ROLLBACK")
    other.commit(FIRST, SECOND, {"u1": b"2"})
    store.close()
    other.close()
    (tmp_path / FILE).write_bytes(b"no database" * 1_000)
    with pytest.raises(ValueError, match="damaged.*remove it"):
        SqliteFoldStore(tmp_path / FILE, Clock(), 60)


@pytest.mark.parametrize("behind", [None, FoldPosition("log-1", [2, 0, 7, 1], 0)])
def test_a_store_that_is_behind_takes_over_all_sessions(
    store: SqliteFoldStore, behind: FoldPosition | None
) -> None:
    store.commit(None, FIRST, USERS, (), KEPT)
    target = MemorySessions()
    if behind:
        target.commit(None, behind, {"gone": b"1", "u1": b"old"})
    assert hand_over(store, target) == len(USERS)
    assert (target.position(), target.blobs) == (FIRST, USERS)
    assert target.lasting["u7"] == b"kept 7" and target.lasting["u2"] == b""
    assert hand_over(store, target) == 0


@pytest.mark.parametrize(
    "other", [FIRST, SECOND, FoldPosition("log-1", [9, 0, 6, 1], 2), FoldPosition("log-2", [0, 0, 0, 0], 0)]
)
def test_a_store_that_is_not_behind_keeps_what_it_has(store: SqliteFoldStore, other: FoldPosition) -> None:
    store.commit(None, FIRST, USERS)
    target = MemorySessions()
    target.commit(None, other, {"u1": b"own"})
    assert hand_over(store, target) == 0
    assert (target.position(), target.blobs) == (other, {"u1": b"own"})


def test_a_kill_during_the_hand_over_leaves_a_store_that_takes_over_again(store: SqliteFoldStore) -> None:
    class Killed(MemorySessions):
        commits = 0

        def commit(self, *arguments, **named):  # type: ignore[no-untyped-def]
            self.commits += 1
            if self.commits == 3:
                raise KeyboardInterrupt
            super().commit(*arguments, **named)

    store.commit(None, FIRST, USERS)
    target = Killed()
    with pytest.raises(KeyboardInterrupt):
        hand_over(store, target)
    assert 0 < len(target.blobs) < len(USERS) and target.position() != FIRST
    assert hand_over(store, target) == len(USERS)
    assert (target.position(), target.blobs) == (FIRST, USERS)


def test_each_of_several_workers_takes_over_its_own_partitions(store: SqliteFoldStore) -> None:
    store.commit(None, FIRST, USERS)
    sessions = MemorySessions()
    workers = [MemoryShare(sessions, Share(n, 2), 4) for n in range(2)]
    copied = [hand_over(store, worker, Share(n, 2)) for n, worker in enumerate(workers)]
    own = [user for user in USERS if partition_of(user, 4) in Share(0, 2).partitions(4)]
    assert copied == [len(own), len(USERS) - len(own)]
    assert sessions.blobs == USERS and workers[0].position() == FoldPosition("log-1", [3, -1, 7, -1], 2)
    assert hand_over(store, workers[0], Share(0, 2)) == 0


def test_the_configuration_chooses_the_store(tmp_path: Path) -> None:
    config = Config(state=str(tmp_path), sessions=SessionConfig(url="sqlite"))
    fold = fold_store(config)
    assert isinstance(fold, SqliteFoldStore) and isinstance(session_reader(config), SqliteSessions)
    fold.commit(None, FIRST, {"u1": b"1"})
    with pytest.raises(PositionConflict):
        fold_store(config).commit(None, SECOND, {})
    assert take_over(config, MemorySessions(), "") == 0  # it is the store itself
    target = MemorySessions()
    assert take_over(Config(state=str(tmp_path)), target, "") == 1 and target.position() == FIRST
    assert take_over(Config(state=str(tmp_path / "empty")), target, "") == 0
