"""Reads all files of a state folder, compares them with their checksums, and repairs what has another copy.

Checking works beside a running system. A repair needs a stopped one.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from parameter_server.storage import snapshots
from parameter_server.storage.snapshot_repair import repair_snapshot
from parameter_server.storage.wal import Wal, scan
from recsys.config.system_config import Config
from recsys.events.records import topics
from recsys.log.protocol import LogUnavailable, Topic
from recsys.log.sqlite_log import SqliteLog
from recsys.log.sqlite_repair import Archived, check_topic, rebuild_topic
from runtime.supervision import launch_plan, run_file
from training.archive import writer

_SHA_BYTES = 32  # at the beginning of a part's state


class Damage(msgspec.Struct):
    """A damaged file or record. ``repair``: what was done or happens by itself; ``repaired``: nothing is left
    to do and nothing was lost."""

    where: str
    what: str
    repair: str = ""
    repaired: bool = False


class StateReport(msgspec.Struct):
    """Numbers of things that were checked, and the damage. ``unchecked_records`` and ``unsigned_manifests``
    are older than checksums; ``sealed_records`` were, and have one now."""

    records: int = 0
    unchecked_records: int = 0
    sealed_records: int = 0
    snapshots: int = 0
    unsigned_manifests: int = 0
    write_ahead_files: int = 0
    part_states: int = 0
    archive_files: int = 0
    damage: list[Damage] = []

    @property
    def is_intact(self) -> bool:
        """Whether no damage is left."""
        return all(damage.repaired for damage in self.damage)


class Pace:
    """Limits the rate of reading; ``mb_s`` 0: no limit."""

    def __init__(
        self, mb_s: float, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._bytes_s, self._clock, self._sleep = mb_s * 1e6, clock, sleep
        self._began, self._read = clock(), 0

    def __call__(self, read: int) -> None:
        self._read += read
        if self._bytes_s:
            ahead_s = self._read / self._bytes_s - (self._clock() - self._began)
            if ahead_s > 0:
                self._sleep(ahead_s)


def check_state(state: Path, repair: bool = False, mb_s: float = 50.0) -> StateReport:
    """Checks a state folder, and repairs it on request.

    Raises FileNotFoundError where nothing was ever started, ValueError or AlreadyRuns for a repair beside a
    running system.
    """
    config, _ = launch_plan.read(state)
    running = run_file.read(state)
    if repair and running is not None and running.any_alive():
        raise ValueError(
            f"--repair rewrites files, and the system in {state.resolve()} runs: stop it with "
            f"`recsys down --state {state}`, repair, and start it again"
        )
    with run_file.lock(state) if repair else nullcontext():
        check = _StateCheck(state, config, repair, Pace(mb_s))
        check.log()
        for folder in (state / "snapshots", state / "registry"):
            check.snapshots(folder)
        check.write_ahead_files()
        check.part_states()
        check.archive()
        return check.report


class _StateCheck:
    def __init__(self, state: Path, config: Config, repair: bool, pace: Pace) -> None:
        self._state, self._config, self._repair, self._pace = state, config, repair, pace
        self.report = StateReport(damage=[])

    def log(self) -> None:
        """Records, bounds, settings and holds of each topic."""
        folder = self._state / "log"
        if self._config.log.url != "sqlite" or not folder.exists():
            return
        log_id = ""
        try:
            with closing(SqliteLog(folder)) as log:
                log_id = log.id
        except LogUnavailable as error:
            self._add(folder / "catalogue.db", str(error))
        for topic in topics(self._config.log.partitions, self._config.log.retention_hours):
            if (folder / f"{topic.name}.sqlite").exists():
                self._topic(folder, log_id, topic)

    def _topic(self, folder: Path, log_id: str, topic: Topic) -> None:
        check = check_topic(folder, topic.name, self._pace)
        self.report.records += check.records
        if check.unchecked and not check.damage and self._repair:
            with closing(SqliteLog(folder)) as log:
                self.report.sealed_records += log.seal(topic.name)
        else:
            self.report.unchecked_records += check.unchecked
        path = folder / f"{topic.name}.sqlite"
        if not (check.damage and self._repair and log_id):
            for text in check.damage:
                self._add(path, text)
            return
        rebuilt = rebuild_topic(folder, log_id, topic, self._archived(topic.name))
        is_whole = not check_topic(folder, topic.name, self._pace).damage
        text = (
            f"rebuilt: {rebuilt.intact} records were intact, {rebuilt.corrected} were corrected by their "
            f"checksum, {rebuilt.restored} come from the archive; the old files are {path.name}*.damaged"
        )
        for what in check.damage:
            self._add(path, what, text, is_whole)
        for place in rebuilt.lost:
            self._add(path, f"{place} has no other copy", "it is an empty record now")

    def _archived(self, topic: str) -> Archived:
        """Reads records of a topic back from the archive."""

        def read(partition: int, offsets: list[int]) -> dict[int, tuple[bytes, bytes]]:
            if topic not in writer.TOPICS:
                return {}
            where = (ds.field("partition") == partition) & ds.field("offset").isin(offsets)
            folder, columns = self._state / "archive", ["offset", "key", "value"]
            try:
                rows = list(writer.archived_rows(folder, topic, columns, where))
            except (OSError, pa.ArrowInvalid):  # reported by ``archive``
                return {}
            return {offset: (key, value) for offset, key, value in rows}

        return read

    def snapshots(self, folder: Path) -> None:
        """Manifests and arrays of all complete snapshots of a folder."""
        for line in sorted(path.name for path in folder.glob("[!.]*") if path.is_dir()):
            for version, damage, unsigned in self._versions(folder, line):
                self.report.snapshots += 1
                self.report.unsigned_manifests += unsigned
                if not damage:
                    continue
                done, left = list[str](), damage
                if self._repair:
                    others = [self._state / "snapshots", self._state / "registry"]
                    done = repair_snapshot(version, others)
                if done:
                    after = {path: what for path, what, _ in self._versions(folder, line)}
                    left = after.get(version, "")
                none = "none: parts start from another one, and later ones replace it"
                self._add(version, damage, "; ".join(done) or none, not left)

    def _versions(self, folder: Path, line: str) -> Iterator[tuple[Path, str, int]]:
        for version, damage, unsigned in snapshots.check_snapshots(folder, line):
            self._pace(sum(path.stat().st_size for path in version.glob("*/*")))
            yield version, damage, unsigned

    def write_ahead_files(self) -> None:
        """Records of the shards' write-ahead files; a torn end is no damage."""
        for path in sorted((self._state / "parts").glob("*/*.wal")):
            self.report.write_ahead_files += 1
            data = path.read_bytes()
            self._pace(len(data))
            try:
                scanned = scan(data)
            except ValueError as error:
                self._add(path, str(error), "none: move it away to start from the newest snapshot")
                continue
            if scanned.damaged:
                if self._repair:
                    Wal(path, scanned.owner).close()
                text = f"the steps after it are learned again; the old file is {path.name}.damaged"
                what = f"{len(data) - scanned.end} bytes from offset {scanned.end} on"
                self._add(path, what, text, self._repair)

    def part_states(self) -> None:
        """States of the parts, each with a SHA-256."""
        for path in sorted((self._state / "parts").glob("*/state*.msgpack")):
            self.report.part_states += 1
            data = path.read_bytes()
            self._pace(len(data))
            if hashlib.sha256(data[_SHA_BYTES:]).digest() != data[:_SHA_BYTES]:
                remedy = "none: the part starts from the state before it"
                self._add(path, "its SHA-256 differs", remedy)

    def archive(self) -> None:
        """All rows of the archive; files of before page checksums show damage of their structure only."""
        for path in sorted((self._state / "archive").glob("*/day=*/hour=*/part-*.parquet")):
            self.report.archive_files += 1
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    for batch in file.iter_batches(1_000, use_threads=False):
                        self._pace(batch.nbytes)
            except FileNotFoundError:  # merged or removed meanwhile
                self.report.archive_files -= 1
            except (OSError, pa.ArrowInvalid) as error:
                self._add(path, str(error))

    def _add(self, where: Path, what: str, repair: str = "none", is_repaired: bool = False) -> None:
        self.report.damage.append(Damage(str(where), what, repair, is_repaired))
