"""Snapshots: the state of a line at one step, in parts that shards write independently.

    FOLDER/LINE/EPOCH-STEP/part-00000-of-00002/{arrays.safetensors, manifest.json}

A part is written to a temporary folder and renamed, hence atomic. A snapshot is complete when all parts
exist. Most parts are increments on the snapshot before. The files that they build on are hard-linked into
their folder, so snapshots are independent of each other. A full part follows some increments.

A process reads each file once a day to check it. A damaged snapshot doesn't count as kept. Beside the parts
are indexes of their files that readers made (``parameter_server.storage.mapped_rows``).
"""

import logging
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray
from safetensors.numpy import save_file

from parameter_server.storage import part_files
from parameter_server.storage.part_files import ARRAYS, MANIFEST, Arrays, Joined, Update, Wanted
from parameter_server.storage.wal import sync_folder

_VERSION: Final = re.compile(r"(\d{6})-(\d{12})")
_LINE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNUSABLE: Final = (OSError, ValueError, KeyError, TypeError)
_LOG = logging.getLogger(__name__)
_damaged: dict[Path, str] = {}  # snapshots that this process has found damaged, with the reason


class NoSnapshot(LookupError):
    """No complete snapshot; ``reasons`` name the skipped ones."""

    def __init__(self, where: str, reasons: Sequence[str]) -> None:
        passed = f"; passed over: {'; '.join(reasons)}" if reasons else ""
        super().__init__(f"no complete snapshot in {where}{passed}")
        self.reasons = list(reasons)


class NoUsableSnapshot(NoSnapshot):
    """Snapshots exist but none is usable: a start at step 0 would lose their steps."""

    def __init__(self, where: str, wal: Path, reasons: Sequence[str]) -> None:
        super().__init__(where, reasons)
        self.args = (
            f"{self.args[0]}. This shard doesn't begin at step 0 instead: repair them (restore a backup, "
            f"mount the disk, fix permissions), or lose what was learned and move {where}, {wal} "
            "and those of every shard away",
        )


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot with checked digests. ``manifests`` by part."""

    folder: Path
    line: str
    epoch: int
    step: int
    parts: int
    manifests: tuple[Mapping[str, Any], ...]

    def meta(self, part: int) -> dict[str, Any]:
        return dict(self.manifests[part]["meta"])

    def files(self, part: int) -> list[Path]:
        """Files of one part, the full one first, then increments in order."""
        folder = _part(self.folder, part, self.parts)
        return [path for path, _ in part_files.files_of(folder, self.manifests[part])]

    def read(self, part: int, wanted: Wanted = lambda name: True) -> dict[str, NDArray[Any]]:
        """Arrays of one part whose names are ``wanted``; rows in no particular order. A wanted row column
        needs its keys."""
        folder = _part(self.folder, part, self.parts)
        return part_files.read_files(folder, self.manifests[part], wanted)


class LatestSnapshot(NamedTuple):
    """The newest usable snapshot, if any, and why newer ones were skipped."""

    snapshot: Snapshot | None
    reasons: list[str]


def write_part(
    folder: Path, line: str, epoch: int, step: int, part: int, parts: int,
    arrays: Arrays | Joined | Update, meta: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Writes or replaces one part; returns its folder. ``arrays``: all, also of files, or an increment."""
    version = _line(folder, line) / f"{epoch:06d}-{step:012d}"
    version.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(version, part) as beside:
        chain = arrays.chain if isinstance(arrays, Update) else ()
        for place, (path, _) in enumerate(chain):
            part_files.link_or_copy(path, beside / part_files.link_name(place))
        if isinstance(arrays, Joined):
            arrays.save(beside / ARRAYS)
        else:
            new = arrays.arrays if isinstance(arrays, Update) else arrays
            save_file(dict(new), beside / ARRAYS)
        manifest = {
            "line": line, "epoch": epoch, "step": step, "part": part, "parts": parts,
            "sha256": part_files.sha256_of(beside / ARRAYS), "bytes": (beside / ARRAYS).stat().st_size,
            "chain": [{"sha256": sha, "bytes": path.stat().st_size} for path, sha in chain],
            "meta": dict(meta),
        }  # fmt: skip
        (beside / MANIFEST).write_text(part_files.encode_manifest(manifest))
        for name in (ARRAYS, MANIFEST):
            part_files.sync_file(beside / name)
        sync_folder(beside)
        target = _part(version, part, parts)
        if target.exists():  # a step repeated after a crash
            target.rename(version / f".old-{uuid.uuid4().hex}")
        beside.rename(target)
    sync_folder(version)
    sync_folder(version.parent)
    for old in version.glob(".old-*"):
        shutil.rmtree(old, ignore_errors=True)
    return target


@contextmanager
def _temporary_folder(version: Path, part: int) -> Iterator[Path]:
    """A folder to write a part in and rename. One that failed to be written is removed, and those of killed
    calls: they would fill a full disk."""
    for left in version.glob(f".{part}-*"):
        shutil.rmtree(left, ignore_errors=True)
    beside = version / f".{part}-{uuid.uuid4().hex}"
    beside.mkdir()
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def latest(folder: Path, line: str, epoch: int | None = None, step: int | None = None) -> LatestSnapshot:
    """The newest complete and intact snapshot of a line (of an epoch or step, if given)."""
    reasons: list[str] = []
    for version in reversed(_versions(folder, line)):
        number = _number(version)
        if number != (number[0] if epoch is None else epoch, number[1] if step is None else step):
            continue
        try:
            return LatestSnapshot(_check(version, line, part_files.DIGESTS), reasons)
        except _UNUSABLE as error:
            reasons.append(f"{version.name}: {error}")
    return LatestSnapshot(None, reasons)


def require(folder: Path, line: str, epoch: int | None = None, step: int | None = None) -> Snapshot:
    """As ``latest``; raises NoSnapshot if there is none."""
    newest, reasons = latest(folder, line, epoch, step)
    if newest is None:
        wanted = (("epoch", epoch), ("step", step))
        of = "".join(f", {name} {number}" for name, number in wanted if number is not None)
        raise NoSnapshot(f"{folder}/{line}{of}", reasons)
    return newest


def newest_step(folder: Path, line: str, epoch: int) -> int:
    """Newest step of an epoch with any part of a snapshot, usable or not; 0 without any."""
    numbers = map(_number, _versions(folder, line))
    return max((step for e, step in numbers if e == epoch), default=0)


def complete_steps(folder: Path, line: str, epoch: int) -> list[int]:
    """Steps of an epoch with complete snapshots, ascending, without those that this process found damaged;
    digests aren't checked."""
    return _steps(folder, line, epoch, lambda v: v not in _damaged or not _damage(v, line))


def intact_steps(folder: Path, line: str, epoch: int) -> list[int]:
    """Steps of an epoch with complete and intact snapshots, ascending."""
    return _steps(folder, line, epoch, lambda version: not _damage(version, line))


def damaged(folder: Path, line: str) -> dict[str, str]:
    """Snapshots of a line that this process has found damaged, with the reason."""
    reasons = {version.name: _damaged.get(version, "") for version in _versions(folder, line)}
    return {name: reason for name, reason in reasons.items() if reason}


def check_snapshots(folder: Path, line: str) -> Iterator[tuple[Path, str]]:
    """Reads all complete snapshots of a line; yields each with its damage, if any."""
    for version in filter(_is_complete, _versions(folder, line)):
        try:
            _check(version, line)
            yield version, ""
        except _UNUSABLE as error:
            yield version, str(error)


def _steps(folder: Path, line: str, epoch: int, is_usable: Callable[[Path], bool]) -> list[int]:
    versions = [v for v in _versions(folder, line) if _number(v)[0] == epoch and _is_complete(v)]
    return [_number(version)[1] for version in versions if is_usable(version)]


def _damage(version: Path, line: str) -> str:
    """Damage of a complete snapshot; empty if it is intact. Each file is read once a day."""
    try:
        _check(version, line, part_files.DIGESTS)
    except _UNUSABLE as error:
        if not version.exists():  # removed by a sibling
            _damaged.pop(version, None)
            return "removed"
        if version not in _damaged:
            _LOG.error("snapshot %s is damaged and doesn't count: %s", version, error)
        _damaged[version] = str(error)
        return str(error)
    _damaged.pop(version, None)
    return ""


def lines(folder: Path) -> list[str]:
    """Lines that have a folder, ascending; other folders, such as a disk's lost+found, are no lines."""
    children = Path(folder).iterdir() if Path(folder).is_dir() else iter(())
    return sorted(path.name for path in children if _LINE.fullmatch(path.name) and path.is_dir())


def epochs(folder: Path, line: str) -> list[int]:
    """Epochs with any part of a snapshot, ascending."""
    return sorted({_number(version)[0] for version in _versions(folder, line)})


def adopt(folder: Path, line: str, version: tuple[int, int], epoch: int) -> None:
    """Links the complete snapshot of an (epoch, step) into another epoch. Raises NoSnapshot if unusable."""
    source = require(folder, line, *version)
    target = _line(folder, line) / f"{epoch:06d}-{source.step:012d}"
    target.mkdir(exist_ok=True)
    for part, manifest in enumerate(source.manifests):
        with _temporary_folder(target, part) as beside:
            for path in source.files(part):
                part_files.link_or_copy(path, beside / path.name)
            text = part_files.encode_manifest(dict(manifest) | {"epoch": epoch})
            (beside / MANIFEST).write_text(text)
            part_files.sync_file(beside / MANIFEST)
            sync_folder(beside)
            if not _part(target, part, source.parts).exists():  # left by a killed call
                beside.rename(_part(target, part, source.parts))
    sync_folder(target)
    sync_folder(target.parent)


def sync_snapshot(folder: Path, line: str, epoch: int, step: int) -> None:
    """Syncs a complete snapshot. Needed before older state is deleted: a sibling may have died between the
    rename of its part and the sync of the folder."""
    version = _line(folder, line) / f"{epoch:06d}-{step:012d}"
    sync_folder(version)
    sync_folder(version.parent)


def prune(folder: Path, line: str, keep: int, epoch: int | None = None) -> list[str]:
    """Removes snapshots older than the ``keep`` newest intact ones; returns their names. If all of these
    build on one full file, the newest one with another full file stays. The newest of each of the two epochs
    before stays for a rollback. Epochs later than ``epoch`` aren't counted or removed."""
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1")
    complete = [
        version
        for version in _versions(folder, line)
        if (epoch is None or _number(version)[0] <= epoch)
        and _is_complete(version)
        and not _damage(version, line)
    ]
    if len(complete) <= keep:
        _discard(_line(folder, line), [])
        return []
    for version in complete[-keep:]:
        with suppress(FileNotFoundError):  # removed by a sibling
            sync_folder(version)  # see ``sync_snapshot``
    spare, oldest = {_spare(complete, keep), *_rollback_targets(complete)}, _number(complete[-keep])
    old = [v for v in _versions(folder, line) if _number(v) < oldest and v not in spare]
    _discard(_line(folder, line), old)
    return [version.name for version in old]


def remove_where(folder: Path, line: str, is_replaced: Callable[[int, int], bool]) -> None:
    """Removes the snapshots of a line whose (epoch, step) are replaced."""
    _discard(_line(folder, line), [v for v in _versions(folder, line) if is_replaced(*_number(v))])


def remove(folder: Path, line: str) -> None:
    _discard(_line(folder, line), _versions(folder, line))
    shutil.rmtree(_line(folder, line), ignore_errors=True)


def _discard(line: Path, versions: Sequence[Path]) -> None:
    """Removes snapshots, renaming each first, so that a kill leaves no named half of one. The next call
    removes leftovers."""
    for version in versions:
        with suppress(OSError):  # removed by a sibling
            version.rename(line / f".old-{uuid.uuid4().hex}")
    if versions:
        with suppress(FileNotFoundError):
            sync_folder(line)  # renames before deletions: a power cut must not undo them
    for old in line.glob(".old-*"):
        shutil.rmtree(old, ignore_errors=True)


def _spare(complete: Sequence[Path], keep: int) -> Path | None:
    bases = [_bases(version) for version in complete]
    if any(base != bases[-1] for base in bases[-keep:]):
        return None
    others = (v for v, base in zip(complete, bases, strict=True) if not base & bases[-1])
    return max(others, default=None, key=_number)


def _rollback_targets(complete: Sequence[Path]) -> set[Path]:
    """Newest snapshot of each of the two epochs before, one of which may never have been live."""
    newest = {_number(version)[0]: version for version in complete}
    return {newest[epoch] for epoch in sorted(newest)[-3:-1]}


def _bases(version: Path) -> frozenset[str]:
    """SHA-256 of the full files of the parts with readable manifests."""
    digests = set()
    for part in range(parts := _parts(version)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            digests.add(part_files.full_file(part_files.read_manifest(_part(version, part, parts))))
    return frozenset(digests)


def _check(version: Path, line: str, digest_of: Callable[[Path], str] | None = None) -> Snapshot:
    epoch, step = _number(version)
    parts = _parts(version)
    missing = [p for p in range(parts) if not (_part(version, p, parts) / MANIFEST).exists()]
    if not parts or missing:
        raise ValueError(f"incomplete, parts {missing} of {parts} are missing")
    manifests = []
    for part in range(parts):
        folder = _part(version, part, parts)
        manifest = part_files.read_manifest(folder)
        expected = {"line": line, "epoch": epoch, "step": step, "part": part, "parts": parts}
        if any(manifest[name] != value for name, value in expected.items()):
            raise ValueError(f"the manifest of part {part} is {manifest}, expected {expected}")
        if manifest["meta"].get("step", step) != step:
            raise ValueError(f"the state of part {part} is of step {manifest['meta']['step']}")
        try:
            part_files.check_files(folder, manifest, digest_of)
        except ValueError as error:
            raise ValueError(f"part {part}: {error}") from None
        manifests.append(manifest)
    return Snapshot(version, line, epoch, step, parts, tuple(manifests))


def _line(folder: Path, line: str) -> Path:
    if not _LINE.fullmatch(line):
        raise ValueError(f"line is {line!r}, expected letters, digits, '.', '_' and '-'")
    return Path(folder) / line


def _versions(folder: Path, line: str) -> list[Path]:
    """Folders of a line's snapshots, complete or not, oldest first."""
    parent = _line(folder, line)
    children = parent.iterdir() if parent.is_dir() else iter(())
    return sorted(v for v in children if _VERSION.fullmatch(v.name) and v.is_dir())


def _number(version: Path) -> tuple[int, int]:
    epoch, step = version.name.split("-")
    return int(epoch), int(step)


def _parts(version: Path) -> int:
    """Number of parts that a snapshot should have: the highest complete count, since a snapshot repeated
    after a change of the number of shards holds parts of both counts."""
    names = [path.name.split("-") for path in version.glob("part-*-of-*")]
    counts = sorted({int(name[3]) for name in names})
    complete = [n for n in counts if sum(int(name[3]) == n for name in names) == n]
    return (complete or counts or [0])[-1]


def _is_complete(version: Path) -> bool:
    parts = _parts(version)
    return parts > 0 and all(_part(version, p, parts).is_dir() for p in range(parts))


def _part(version: Path, part: int, parts: int) -> Path:
    return version / f"part-{part:05d}-of-{parts:05d}"
