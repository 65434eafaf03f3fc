"""Reads all files of a state folder, compares them with their checksums, and repairs what has another copy.

Checking works beside a running system. A repair needs a stopped one.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from parameter_server.storage import snapshots
from parameter_server.storage.snapshot_repair import repair_snapshot
from parameter_server.storage.wal import Wal, scan
from recsys.config.system_config import Config
from recsys.events.records import topics
from recsys.log.protocol import Topic
from recsys.log.sqlite_files import CATALOGUE
from recsys.log.sqlite_repair import (
    Archived,
    CatalogueCheck,
    check_catalogue,
    check_topic,
    rebuild_catalogue,
    rebuild_topic,
)
from runtime.supervision import launch_plan, run_file
from training.archive.digest import DamagedFile, check_digest, content_digest, read_batches
from training.archive.files import files_of
from training.continual import trainer_run

_SHA_BYTES: Final = 32  # at the beginning of a part's state
_NEXT_START: Final = "none: the next start writes it anew"


class Damage(msgspec.Struct):
    """A damaged file or record. ``repair``: what was done or happens by itself; ``repaired``: nothing is left
    to do and nothing was lost."""

    where: str
    what: str
    repair: str = ""
    repaired: bool = False


class StateReport(msgspec.Struct):
    """Numbers of things that were checked, and the damage."""

    records: int = 0
    snapshots: int = 0
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
        self,
        mb_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
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
    config = _config(state)
    running = run_file.read(state)
    if repair and running is not None and running.any_alive():
        raise ValueError(
            f"--repair rewrites files, and the system in {state.resolve()} runs: stop it with "
            f"`recsys down --state {state}`, repair, and start it again"
        )
    with run_file.lock(state) if repair else nullcontext():
        check = _StateCheck(state, config, repair, Pace(mb_s))
        check.run_files()
        check.log()
        for folder in (state / "snapshots", state / "registry"):
            check.snapshots(folder)
        check.write_ahead_files()
        check.part_states()
        check.archive()
        return check.report


def _config(state: Path) -> Config | None:
    """The configuration; None if its file is damaged. Raises FileNotFoundError where nothing was started."""
    try:
        return launch_plan.read(state)[0]
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return None


class _StateCheck:
    """``config``: None if its file is damaged."""

    def __init__(self, state: Path, config: Config | None, repair: bool, pace: Pace) -> None:
        self._state, self._config, self._repair, self._pace = state, config, repair, pace
        self.report = StateReport(damage=[])

    def run_files(self) -> None:
        """Configuration, plan and the trainer's current run, which a start writes anew."""
        trainer = self._state / "parts" / trainer_run.PART / "run.json"
        readers: dict[Path, Callable[[bytes], object]] = {
            self._state / "run" / "config.json": partial(msgspec.json.decode, type=Config),
            self._state / "run" / "plan.json": partial(msgspec.json.decode, type=launch_plan.Plan),
            trainer: trainer_run.decode_run,
        }
        for path, decode in readers.items():
            with self._reading(path, _NEXT_START):
                decode(path.read_bytes())

    def log(self) -> None:
        """The catalogue, and records, bounds, settings and holds of each topic."""
        folder, config = self._state / "log", self._config or Config()
        if config.log.url != "sqlite" or not folder.exists():
            return
        catalogue = CatalogueCheck("", {})
        with self._reading(folder / CATALOGUE):
            catalogue = self._catalogue(folder)
        for path in (self._state / "log.id", self._state / "archive" / "log_id"):
            with self._reading(path):
                if (log_id := path.read_text().strip()) not in ("", catalogue.log_id or log_id):
                    self._add(path, f"it names log {log_id!r}, the log is {catalogue.log_id!r}")
        for topic in topics(config.log.partitions, config.log.retention_hours):
            path, count = folder / f"{topic.name}.sqlite", catalogue.partitions.get(topic.name)
            is_certain = bool(catalogue.log_id and (count or self._config))
            if path.exists():
                with self._reading(path):
                    own = replace(topic, partitions=count or topic.partitions)
                    self._topic(folder, catalogue.log_id if is_certain else "", own)

    def _catalogue(self, folder: Path) -> CatalogueCheck:
        check = check_catalogue(folder)
        for topic in check.gone:
            self._add(folder / f"{topic}.sqlite", "it is gone", "none: restore a backup")
        text, is_whole = "none: `recsys check --repair` makes it from the topics' files", False
        if check.damage and check.partitions and check.log_id and self._repair and not check.gone:
            rebuild_catalogue(folder, check)
            is_whole = not check_catalogue(folder).damage
            text = "rebuilt from the topics' files"
        for what in check.damage:
            self._add(folder / CATALOGUE, what, text, is_whole)
        return check

    def _topic(self, folder: Path, log_id: str, topic: Topic) -> None:
        check = check_topic(folder, topic.name, self._pace)
        self.report.records += check.records
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
        """Reads records of a topic back from the intact files of the archive."""

        def read(partition: int, offsets: list[int]) -> dict[int, tuple[bytes, bytes]]:
            records = dict[int, tuple[bytes, bytes]]()
            for file in files_of(self._state / "archive", topic):
                if file.partition != partition or not any(
                    file.first <= offset <= file.last for offset in offsets
                ):
                    continue
                with suppress(DamagedFile):  # reported by ``archive``
                    for batch in read_batches(file.path, 1_000, ["offset", "key", "value"]):
                        columns = (column.to_pylist() for column in batch.columns)
                        for offset, key, value in zip(*columns, strict=True):
                            records[offset] = key, value
            return {offset: records[offset] for offset in offsets if offset in records}

        return read

    def snapshots(self, folder: Path) -> None:
        """Manifests and arrays of all complete snapshots of a folder."""
        for line in sorted(path.name for path in folder.glob("[!.]*") if path.is_dir()):
            with self._reading(folder / line):
                for version, damage in self._versions(folder, line):
                    self._snapshot(folder, line, version, damage)

    def _snapshot(self, folder: Path, line: str, version: Path, damage: str) -> None:
        self.report.snapshots += 1
        if not damage:
            return
        done, left = list[str](), damage
        if self._repair:
            others = [self._state / "snapshots", self._state / "registry"]
            done = repair_snapshot(version, others)
        if done:
            left = dict(self._versions(folder, line)).get(version, "")
        none = "none: parts start from another one, and later ones replace it"
        self._add(version, damage, "; ".join(done) or none, not left)

    def _versions(self, folder: Path, line: str) -> Iterator[tuple[Path, str]]:
        for version, damage in snapshots.check_snapshots(folder, line):
            self._pace(sum(path.stat().st_size for path in version.glob("*/*")))
            yield version, damage

    def write_ahead_files(self) -> None:
        """Records of the shards' write-ahead files; a torn end is no damage."""
        for path in sorted((self._state / "parts").glob("*/*.wal")):
            self.report.write_ahead_files += 1
            with self._reading(path, "none: move it away to start from the newest snapshot"):
                data = path.read_bytes()
                self._pace(len(data))
                scanned = scan(data)
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
            with self._reading(path, "none: the part starts from the state before it"):
                data = path.read_bytes()
                self._pace(len(data))
                if hashlib.sha256(data[_SHA_BYTES:]).digest() != data[:_SHA_BYTES]:
                    raise ValueError("its SHA-256 differs")

    def archive(self) -> None:
        """All files of the archive."""
        for path in sorted((self._state / "archive").glob("*/day=*/hour=*/part-*.parquet")):
            with self._reading(path):
                check_digest(path, partial(content_digest, pace=self._pace))
            self.report.archive_files += path.exists()  # else merged or removed meanwhile

    @contextmanager
    def _reading(self, path: Path, remedy: str = "none") -> Iterator[None]:
        """Names a file whose reading fails, in whatever way; one that is gone was replaced meanwhile."""
        try:
            yield
        except DamagedFile as error:
            self._add(path, error.reason, "none: bring it back from a backup")
        except ValueError as error:
            self._add(path, str(error), remedy)
        except Exception as error:
            if path.exists():
                self._add(path, f"{type(error).__name__}: {error}", remedy)

    def _add(self, where: Path, what: str, repair: str = "none", is_repaired: bool = False) -> None:
        self.report.damage.append(Damage(str(where), what, repair, is_repaired))
