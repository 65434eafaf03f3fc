"""Snapshots: everything of a line at one step, in parts that shards write on their own.

    FOLDER/LINE/EPOCH-STEP/part-00000-of-00002/{arrays.safetensors, manifest.json}

A part is written beside and renamed, so it is there whole or not at all; its manifest carries the SHA-256
of its arrays. A snapshot is complete when all parts are there. Weights are safetensors: reading runs no code.

Mostly a part holds what changed since the snapshot before it. The files that it builds on, a full one and
other increments, lie in its folder too, as hard links: so a snapshot needs no other one, removing one harms
none, and no byte is written or kept twice. After some increments a full one is written again.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray
from safetensors.numpy import save_file

from parameter_server.storage.part_files import (
    ARRAYS,
    MANIFEST,
    Arrays,
    Wanted,
    check_files,
    files_of,
    full_file,
    increment,
    read_files,
    sha256_of,
)
from parameter_server.storage.wal import sync_folder

_VERSION: Final = re.compile(r"(\d{6})-(\d{12})")
_LINE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class NoSnapshot(LookupError):
    """There is no complete snapshot; ``reasons`` say what was passed over."""

    def __init__(self, where: str, reasons: Sequence[str]) -> None:
        passed = f"; passed over: {'; '.join(reasons)}" if reasons else ""
        super().__init__(f"no complete snapshot in {where}{passed}")
        self.reasons = list(reasons)


class NoUsableSnapshot(NoSnapshot):
    """There are snapshots, and none can be used: to begin at step 0 would throw away what they hold."""

    def __init__(self, where: str, wal: Path, reasons: Sequence[str]) -> None:
        super().__init__(where, reasons)
        self.args = (
            f"{self.args[0]}. This shard doesn't begin at step 0 in their place: mend what is said of them "
            "(a file from a backup, a disk that is away, the rights to read); or give up what was learned, "
            f"and move {where} and {wal} away, and those of every shard",
        )


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot whose digests have been checked. ``manifests`` are by part."""

    folder: Path
    line: str
    epoch: int
    step: int
    parts: int
    manifests: tuple[Mapping[str, Any], ...]

    def meta(self, part: int) -> dict[str, Any]:
        """What the writer of a part said beside its arrays."""
        return dict(self.manifests[part]["meta"])

    def files(self, part: int) -> list[Path]:
        """The files of one part in the order in which they build on each other, the full one first."""
        its = files_of(_part(self.folder, part, self.parts), self.manifests[part])
        return [path for path, _ in its]

    def read(self, part: int, wanted: Wanted = lambda name: True) -> dict[str, NDArray[Any]]:
        """The arrays of one part whose names are ``wanted``; rows in no particular order. Whoever wants a
        column of rows must want their keys."""
        return read_files(_part(self.folder, part, self.parts), self.manifests[part], wanted)


class LatestSnapshot(NamedTuple):
    """The newest usable snapshot, if any, and why newer ones were passed over."""

    snapshot: Snapshot | None
    reasons: list[str]


def write_part(
    folder: Path, line: str, epoch: int, step: int, part: int, parts: int,
    arrays: Arrays, meta: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Writes one part and returns its folder. Writing a part again replaces it."""
    version = _line(folder, line) / f"{epoch:06d}-{step:012d}"
    version.mkdir(parents=True, exist_ok=True)
    beside = version / f".{part}-{uuid.uuid4().hex}"
    beside.mkdir()
    base = _before(folder, line, (epoch, step), part, parts)
    its, chain = increment(base, arrays, beside)
    save_file(dict(its), beside / ARRAYS)
    manifest = {
        "line": line,
        "epoch": epoch,
        "step": step,
        "part": part,
        "parts": parts,
        "sha256": sha256_of(beside / ARRAYS),
        "bytes": (beside / ARRAYS).stat().st_size,
        "chain": chain,
        "meta": dict(meta),
    }
    (beside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    for name in (ARRAYS, MANIFEST):
        _sync_file(beside / name)
    sync_folder(beside)
    target = _part(version, part, parts)
    if target.exists():  # a step that is taken again after a crash
        target.rename(version / f".old-{uuid.uuid4().hex}")
    beside.rename(target)
    sync_folder(version)
    sync_folder(version.parent)
    for old in version.glob(".old-*"):
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest(folder: Path, line: str, epoch: int | None = None, step: int | None = None) -> LatestSnapshot:
    """The newest complete snapshot of a line (of an epoch, a step, if given) whose digests are right."""
    reasons: list[str] = []
    for version in reversed(_versions(folder, line)):
        number = _number(version)
        if number != (number[0] if epoch is None else epoch, number[1] if step is None else step):
            continue
        try:
            return LatestSnapshot(_check(version, line), reasons)
        except (OSError, ValueError, KeyError) as error:
            reasons.append(f"{version.name}: {error}")
    return LatestSnapshot(None, reasons)


def newest_step(folder: Path, line: str, epoch: int) -> int:
    """The newest step of an epoch that anything of a snapshot is there of, usable or not; 0 without any."""
    numbers = map(_number, _versions(folder, line))
    return max((step for e, step in numbers if e == epoch), default=0)


def complete_steps(folder: Path, line: str, epoch: int) -> list[int]:
    """The steps of an epoch that have all their parts, ascending; their digests are not checked."""
    numbers = [_number(version) for version in _versions(folder, line) if _is_complete(version)]
    return [step for e, step in numbers if e == epoch]


def epochs(folder: Path, line: str) -> list[int]:
    """The epochs that anything of a snapshot is there of."""
    return sorted({_number(version)[0] for version in _versions(folder, line)})


def adopt(folder: Path, line: str, version: tuple[int, int], epoch: int) -> None:
    """Makes the complete snapshot of an (epoch, step) that of another epoch, too: the same files, linked, not
    copied. Raises NoSnapshot where it can't be used."""
    found, reasons = latest(folder, line, *version)
    if found is None:
        raise NoSnapshot(f"{folder}/{line} of epoch {version[0]}, step {version[1]}", reasons)
    target = _line(folder, line) / f"{epoch:06d}-{found.step:012d}"
    target.mkdir(exist_ok=True)
    for part, manifest in enumerate(found.manifests):
        beside = target / f".{part}-{uuid.uuid4().hex}"
        beside.mkdir()
        source = _part(found.folder, part, found.parts)
        for path, _ in files_of(source, manifest):
            try:
                os.link(path, beside / path.name)
            except OSError:  # a disk without links
                shutil.copyfile(path, beside / path.name)
        (beside / MANIFEST).write_text(json.dumps(dict(manifest) | {"epoch": epoch}, indent=1))
        _sync_file(beside / MANIFEST)
        sync_folder(beside)
        if _part(target, part, found.parts).exists():  # a kill ended this before
            shutil.rmtree(beside)
        else:
            beside.rename(_part(target, part, found.parts))
    sync_folder(target)
    sync_folder(target.parent)


def sync_snapshot(folder: Path, line: str, epoch: int, step: int) -> None:
    """Makes a complete snapshot outlive a power cut. Whoever gives something up for it must ask for this: a
    sibling may have died after it renamed its part and before it synced the folder."""
    version = _line(folder, line) / f"{epoch:06d}-{step:012d}"
    sync_folder(version)
    sync_folder(version.parent)


def prune(folder: Path, line: str, keep: int, epoch: int | None = None) -> list[str]:
    """Removes what is older than the ``keep`` newest complete snapshots; returns the names removed. Where all
    of these build on one full file, the newest that builds on another stays too, should that one go bad; and
    so does the newest of either epoch before, which the line may go back to. ``epoch``: the one that counts;
    what was made for later ones, and isn't live, neither counts nor goes."""
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1")
    complete = [
        version
        for version in _versions(folder, line)
        if _is_complete(version) and (epoch is None or _number(version)[0] <= epoch)
    ]
    if len(complete) <= keep:
        _discard(_line(folder, line), [])
        return []
    for version in complete[-keep:]:
        with suppress(FileNotFoundError):  # a sibling knows of newer ones, and has removed it
            sync_folder(version)  # see ``settle``
    spare = {_spare(complete, keep), *_way_back(complete)}
    old = [
        v
        for v in _versions(folder, line)
        if _number(v) < _number(complete[-keep]) and v not in spare
    ]
    _discard(_line(folder, line), old)
    return [version.name for version in old]


def remove(folder: Path, line: str) -> None:
    """Removes all snapshots of a line that nobody asks for any more."""
    _discard(_line(folder, line), _versions(folder, line))
    shutil.rmtree(_line(folder, line), ignore_errors=True)


def _discard(line: Path, versions: Sequence[Path]) -> None:
    """Removes snapshots, each at once: a kill amid the files leaves none that still bears its name. What
    such a kill left goes with the next."""
    for version in versions:
        with suppress(OSError):  # a sibling shard has removed it, or is about to
            version.rename(line / f".old-{uuid.uuid4().hex}")
    if versions:
        with suppress(FileNotFoundError):
            sync_folder(line)  # the new names before the files: a power cut must not undo them
    for old in line.glob(".old-*"):
        shutil.rmtree(old, ignore_errors=True)


def _spare(complete: Sequence[Path], keep: int) -> Path | None:
    bases = [_bases(version) for version in complete]
    if any(base != bases[-1] for base in bases[-keep:]):
        return None
    others = (v for v, base in zip(complete, bases, strict=True) if not base & bases[-1])
    return max(others, default=None, key=_number)


def _way_back(complete: Sequence[Path]) -> set[Path]:
    """The newest of each of the two epochs before: one of them may never have come to be live."""
    newest = {_number(version)[0]: version for version in complete}
    return {newest[epoch] for epoch in sorted(newest)[-3:-1]}


def _bases(version: Path) -> frozenset[str]:
    """The SHA-256 of the full file of each part; none where a manifest can't be read."""
    found = set()
    for part in range(parts := _parts(version)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads((_part(version, part, parts) / MANIFEST).read_text())
            found.add(full_file(manifest))
    return frozenset(found)


def _before(folder: Path, line: str, number: tuple[int, int], part: int, parts: int) -> Path | None:
    """The folder of the same part in the snapshot before, of the same epoch and as many parts."""
    before = [
        v for v in _versions(folder, line)
        if _number(v)[0] == number[0] and _number(v) < number and _parts(v) == parts and _is_complete(v)
    ]  # fmt: skip
    return _part(before[-1], part, parts) if before else None


def _check(version: Path, line: str) -> Snapshot:
    epoch, step = _number(version)
    parts = _parts(version)
    missing = [p for p in range(parts) if not (_part(version, p, parts) / MANIFEST).exists()]
    if not parts or missing:
        raise ValueError(f"incomplete, parts {missing} of {parts} are missing")
    manifests = []
    for part in range(parts):
        folder = _part(version, part, parts)
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = {"line": line, "epoch": epoch, "step": step, "part": part, "parts": parts}
        if any(manifest[name] != value for name, value in expected.items()):
            raise ValueError(f"the manifest of part {part} says {manifest}, expected {expected}")
        try:
            check_files(folder, manifest)
        except ValueError as error:
            raise ValueError(f"part {part}: {error}") from None
        manifests.append(manifest)
    return Snapshot(version, line, epoch, step, parts, tuple(manifests))


def _line(folder: Path, line: str) -> Path:
    if not _LINE.fullmatch(line):
        raise ValueError(f"line is {line!r}, expected letters, digits, '.', '_' and '-'")
    return Path(folder) / line


def _versions(folder: Path, line: str) -> list[Path]:
    """The folders of a line's snapshots, complete or not, oldest first."""
    there = _line(folder, line)
    found = there.iterdir() if there.is_dir() else iter(())
    return sorted(v for v in found if _VERSION.fullmatch(v.name) and v.is_dir())


def _number(version: Path) -> tuple[int, int]:
    epoch, step = version.name.split("-")
    return int(epoch), int(step)


def _parts(version: Path) -> int:
    """How many parts a snapshot should have: as its parts' names say, the highest count that is complete.

    A snapshot that was taken again after the number of shards changed holds parts of both counts.
    """
    names = [path.name.split("-") for path in version.glob("part-*-of-*")]
    counts = sorted({int(name[3]) for name in names})
    whole = [n for n in counts if sum(int(name[3]) == n for name in names) == n]
    return (whole or counts or [0])[-1]


def _is_complete(version: Path) -> bool:
    parts = _parts(version)
    return parts > 0 and all(_part(version, p, parts).is_dir() for p in range(parts))


def _part(version: Path, part: int, parts: int) -> Path:
    return version / f"part-{part:05d}-of-{parts:05d}"


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
