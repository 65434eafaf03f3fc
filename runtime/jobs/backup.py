"""Backs up the state folder of a running or stopped system, and restores a backup elsewhere.

A backup is a folder laid out as a state folder, and ``backup.json`` with the SHA-256 of each file. Nothing is
stopped: what is derived from the log is copied first, the log last, derived topics before their sources. So
a restored system looks like one whose parts were killed, with files older than the log. Meanwhile the log is
held; the copy gets the holds of before, which suit its older files. Secrets are left out.
"""

import filecmp
import hashlib
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Final

import msgspec

from recsys.clock import wall_ms
from recsys.events.control_records import Erasure
from recsys.events.records import (
    CONTROL,
    DEAD_LETTERS,
    DELTAS,
    EVENTS,
    EXAMPLES,
    ITEM_STATE,
    ITEMS,
    SCORES,
    STEPS,
)
from recsys.log.protocol import read_range
from recsys.log.sqlite_files import open_file
from recsys.log.sqlite_log import SqliteLog
from recsys.observability.log_lines import redact
from recsys.process.log_consumer import decoded
from recsys.process.part_process import owned_folder, write_atomically
from recsys.process.part_snapshot import PartState
from runtime.jobs.state_check import Damage, check_state
from runtime.jobs.user_deletion import request_deletion
from runtime.supervision import launch_plan
from training.archive.files import keys_of
from training.deletion.erasure import PART as ERASURES
from training.deletion.erasure import Eraser, digest_of_key
from training.lines.control import live_epoch

MANIFEST: Final = "backup.json"
HOLD: Final = "backup"
_FORMAT: Final = 1
_TRIES: Final = 20
# Derived topics before their sources.
_TOPICS: Final = (
    DELTAS, SCORES, ITEM_STATE, STEPS, EXAMPLES, DEAD_LETTERS, CONTROL, ITEMS, EVENTS,
)  # fmt: skip
_FIRST: Final = ("parts", "valkey")  # write-ahead files before snapshots, which may be newer
# Secrets; the log, copied by itself; impressions that aren't on the log yet; the trainer's current run.
_LEFT_OUT: Final = re.compile(
    r"(run|log|kept|parts/trainer)(/.*)?|.*(\.damaged|\.broken\.msgpack|\.tmp|-wal|-shm|-journal)"
    r"|(.*/)?\.(?!ancestor/).*"  # unfinished ones
)


_Links = dict[
    tuple[int, int, int], Path
]  # copies of files, by the inode, time and size of their source
_Holds = dict[tuple[str, int], dict[str, int]]  # offsets by topic and partition, and by name


class StoredFile(msgspec.Struct, frozen=True):
    """Size and SHA-256 of a file."""

    size: int
    sha256: str


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``backup.json``. ``ends``: of the log, by topic and partition; ``damage``: of the state that
    was backed up, hence of the backup."""

    format: int = _FORMAT
    time_ms: int
    log_id: str
    epoch: int
    ends: dict[str, list[int]]
    damage: list[Damage]
    files: dict[str, StoredFile]

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files.values())


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """A restored backup. ``erased``: users whose erasure another log has and the backup lacks; None: nobody
    asked for."""

    backup: Backup
    erased: list[str] | None


def back_up(state: Path, target: Path, base: Path | None = None) -> Backup:
    """Copies a state folder to ``target``, a new or empty folder. Files that ``base``, an earlier backup, has
    too become hard links to it.

    Raises FileNotFoundError where nothing was ever started, ValueError for a folder or log that doesn't fit.
    """
    state, target = state.resolve(), target.resolve()
    config, plan = launch_plan.read(state)
    if config.log.url != "sqlite":
        raise ValueError(
            f"log.url is {redact(config.log.url)!r}, expected 'sqlite': brokers replicate topics themselves; "
            "stop the system and copy its state folder"
        )
    if target.is_relative_to(state):
        raise ValueError(f"{target} is inside {state}: name a folder outside, on another disk")
    if not (state / "log" / "catalogue.db").exists():
        raise FileNotFoundError(f"{state} has no log yet: start the system once")
    _check_empty(target)
    owned_folder(target)
    files = _Files(state, target, base and base.resolve())
    with closing(SqliteLog(state / "log")) as log, _held(log) as holds:
        for _ in range(_TRIES):
            epoch = live_epoch(log)
            for name in (*_FIRST, *sorted({path.name for path in state.iterdir()} - {*_FIRST})):
                files.copy(name)
            with ExitStack() as stack:
                pinned = {topic: stack.enter_context(_pinned(log, topic)) for topic in _TOPICS}
                if live_epoch(log) == epoch:  # else its first snapshot may be missing
                    _copy_log(pinned, log.folder, target / "log")
                    break
        else:
            raise ValueError(f"the live epoch changed during each of {_TRIES} copies: try again")
    (target / "run").mkdir(mode=0o700)
    config_text = redact(msgspec.json.encode(config).decode())
    write_atomically(target / "run" / "config.json", config_text.encode())
    write_atomically(target / "run" / "plan.json", msgspec.json.encode(plan))
    with closing(SqliteLog(target / "log")) as copy:
        for (topic, partition), offsets in holds.items():
            for name, offset in offsets.items():
                copy.hold(name, topic, partition, offset)
        for topic in _TOPICS:
            copy.release(HOLD, topic)
        ends = {t: [copy.end(t, p) for p in range(copy.partitions(t))] for t in _TOPICS}
    for folder, _, _ in os.walk(target, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)  # those that are empty
    backup = Backup(
        time_ms=wall_ms(), log_id=log.id, epoch=epoch, ends=ends,
        damage=check_state(target, mb_s=0).damage, files=_digests(target),
    )  # fmt: skip
    body = msgspec.json.encode(backup)
    os.sync()
    write_atomically(target / MANIFEST, body + b"\n" + hashlib.sha256(body).hexdigest().encode())
    os.sync()
    return backup


def read_backup(folder: Path) -> Backup:
    """Reads ``backup.json``. Raises ValueError if it is missing or damaged."""
    path = folder / MANIFEST
    if not path.exists():
        raise ValueError(f"{folder} has no {MANIFEST}: it isn't a backup, or not a finished one")
    body, _, digest = path.read_bytes().rpartition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged, its SHA-256 differs: use another backup")
    backup = msgspec.json.decode(body, type=Backup)
    if backup.format != _FORMAT:
        raise ValueError(f"{path} has format {backup.format}, expected {_FORMAT}")
    return backup


def restore(folder: Path, state: Path, erasures: Path | None = None) -> Restored:
    """Copies a backup to ``state``, a new or empty folder, if all of it is intact; else raises ValueError.

    ``erasures``: a later state folder or backup of the same log. The users whom it erased are erased here,
    too: at once what no part reads again, the rest when the system runs.
    """
    state, backup = state.resolve(), read_backup(folder)
    _check_empty(state)
    partial = state.with_name(f".{state.name}.restoring")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        owned_folder(partial)
        _copy_backup(folder, partial, backup)
        config = replace(launch_plan.read(partial)[0], state=str(state))
        write_atomically(partial / "run" / "config.json", msgspec.json.encode(config))
        erased = None if erasures is None else _erase_newer(partial, erasures)
        os.sync()
        os.replace(partial, state)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Restored(backup=backup, erased=erased)


class _Files:
    """Copies the files of a state folder while they change. They are replaced as a whole or only grow, so one
    whose name still refers to the same inode isn't copied again."""

    def __init__(self, state: Path, target: Path, base: Path | None) -> None:
        self._state, self._target, self._base = state, target, base
        self._copied: dict[str, int] = {}  # inodes by name
        self._links: _Links = {}

    def copy(self, under: str) -> None:
        """Copies a folder until no name in it appeared, vanished or was replaced meanwhile."""
        for _ in range(_TRIES):
            before = self._inodes(under)
            for name, inode in self._copied_under(under).items():
                if before.get(name) != inode:
                    (self._target / name).unlink()
                    del self._copied[name]
            for name in [name for name in before if name not in self._copied]:
                with suppress(FileNotFoundError):  # removed meanwhile, as the next listing shows
                    self._copy(name)
                    self._copied[name] = before[name]
            if before == self._copied_under(under) == self._inodes(under):
                return
        raise ValueError(f"{self._state / under} changed during each of {_TRIES} copies: try again")

    def _copied_under(self, top: str) -> dict[str, int]:
        return {n: inode for n, inode in self._copied.items() if PurePath(n).parts[0] == top}

    def _inodes(self, under: str) -> dict[str, int]:
        """Inodes by name, in the order of copying."""
        names = [name for name in _names(self._state, under) if not _LEFT_OUT.fullmatch(name)]
        # A part's database has the generation of its newest state, and two before.
        names.sort(key=lambda name: (os.path.dirname(name), name.endswith(".sqlite"), name))
        inodes = {}
        for name in names:
            with suppress(FileNotFoundError):
                inodes[name] = (self._state / name).stat().st_ino
        return inodes

    def _copy(self, name: str) -> None:
        source, target = self._state / name, self._target / name
        same = self._base and self._base / name
        if name.endswith(".sqlite"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with closing(open_file(source)) as db:
                _copy_database(db, target)
        elif same and same.is_file() and filecmp.cmp(source, same, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(same, target)
        else:
            _copy_file(source, target, self._links)


def _copy_file(source: Path, target: Path, links: _Links) -> None:
    """Copies a file; one that has several names, as snapshots share files, only once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    status = source.stat()
    identity = (status.st_ino, status.st_mtime_ns, status.st_size)
    if status.st_nlink > 1 and identity in links and links[identity].exists():
        os.link(links[identity], target)
    else:
        shutil.copyfile(source, target)
        links[identity] = target


def _copy_database(source: sqlite3.Connection, target: Path) -> None:
    with closing(open_file(target)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = WAL")


@contextmanager
def _held(log: SqliteLog) -> Iterator[_Holds]:
    """Holds all that is on the log; yields the holds that there were, without any of an earlier backup."""
    holds: _Holds = {}
    try:
        for topic in _TOPICS:
            for partition in range(log.partitions(topic)):
                log.hold(HOLD, topic, partition, log.begin(topic, partition))
                offsets = log.holds(topic, partition)
                holds[topic, partition] = {n: at for n, at in offsets.items() if n != HOLD}
        yield holds
    finally:
        for topic in _TOPICS:
            log.release(HOLD, topic)


@contextmanager
def _pinned(log: SqliteLog, topic: str) -> Iterator[sqlite3.Connection]:
    """A connection that sees the topic as it is now: copying then doesn't start again at each append."""
    with closing(open_file(log.path(topic))) as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM bounds").fetchall()
        yield db


def _copy_log(topics: Mapping[str, sqlite3.Connection], folder: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for topic, db in topics.items():
        _copy_database(db, target / f"{topic}.sqlite")
    with closing(open_file(folder / "catalogue.db")) as source:
        with closing(open_file(target / "catalogue.db")) as copy:
            source.backup(copy)


def _copy_backup(folder: Path, target: Path, backup: Backup) -> None:
    """Raises ValueError if a file differs from its digest."""
    links: _Links = {}
    for name in backup.files:
        if ".." in PurePath(name).parts or PurePath(name).is_absolute():
            raise ValueError(f"{folder / MANIFEST} names {name!r}, which is outside the backup")
        with suppress(FileNotFoundError):
            _copy_file(folder / name, target / name, links)
    copied = _digests(target)
    damaged = [name for name, stored in backup.files.items() if copied.get(name) != stored]
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise ValueError(
            f"{folder} is damaged, nothing was restored: {', '.join(damaged[:5])}{more} are missing or have "
            "another SHA-256. Use another backup"
        )


def _erase_newer(state: Path, later: Path) -> list[str]:
    """Asks to erase the users whom a later copy of the log erased, and begins with it; returns their ids."""
    if not (later / "log" / "catalogue.db").exists():
        raise ValueError(f"{later} has no log: name a later state folder, or a later backup")
    users: set[str] = set()
    with closing(SqliteLog(state / "log")) as log, closing(SqliteLog(later / "log")) as newer:
        start, end = log.end(CONTROL, 0), newer.end(CONTROL, 0)
        if newer.id != log.id or end < start:
            raise ValueError(f"{later} has another log than the backup, or an older copy of it")
        records = read_range(newer, CONTROL, 0, max(start, newer.begin(CONTROL, 0)), end)
        erasures = [erasure for _, erasure in decoded(records, Erasure)]
        users |= {str(erasure.user_id) for erasure in erasures if erasure.user_id != ""}
        digests = {erasure.digest for erasure in erasures}
        for topic in (EVENTS, EXAMPLES):
            for partition in range(log.partitions(topic)):
                begin, end = log.begin(topic, partition), log.end(topic, partition)
                keys = {record.key for record in read_range(log, topic, partition, begin, end)}
                keys |= keys_of(state / "archive", topic, partition)
                users |= {key.decode() for key in keys if digest_of_key(log.id, key) in digests}
        request_deletion(log, sorted(users), wall_ms())
        Eraser(log, state / "archive", PartState(state, ERASURES), wall_ms).turn()
    return sorted(users)


def _digests(folder: Path) -> dict[str, StoredFile]:
    """Size and SHA-256 of all files; one that has several names is read once."""
    by_inode: dict[int, StoredFile] = {}
    digests = {}
    for name in _names(folder):
        status = (folder / name).stat()
        if status.st_ino not in by_inode:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            by_inode[status.st_ino] = StoredFile(status.st_size, digest)
        digests[name] = by_inode[status.st_ino]
    return digests


def _names(folder: Path, under: str = "") -> list[str]:
    """Names of the files of a folder, relative to it; only those ``under`` one of its entries."""
    top = folder / under
    paths = (
        [top] if top.is_file() else [Path(at) / n for at, _, names in os.walk(top) for n in names]
    )
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} isn't empty: name a new folder")
