"""Snapshots: everything of a line at one step, in parts that shards write on their own.

    FOLDER/LINE/EPOCH-STEP/part-00000-of-00002/{arrays.safetensors, manifest.json}

A part is written beside and renamed, so it is there whole or not at all; its manifest carries the SHA-256
of its arrays. A snapshot is complete when all parts are there. Weights are safetensors: reading runs no code.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from parameter_server.held_back import HELD_COLUMNS
from parameter_server.published import published_rows
from parameter_server.rounding import round_dense
from parameter_server.wal import sync_folder

Arrays = Mapping[str, NDArray[Any]]
_ARRAYS: Final = "arrays.safetensors"
_MANIFEST: Final = "manifest.json"
_VERSION: Final = re.compile(r"(\d{6})-(\d{12})")
_LINE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class NoSnapshot(LookupError):
    """There is no complete snapshot; ``reasons`` say what was passed over."""

    def __init__(self, where: str, reasons: Sequence[str]) -> None:
        passed = f"; passed over: {'; '.join(reasons)}" if reasons else ""
        super().__init__(f"no complete snapshot in {where}{passed}")
        self.reasons = list(reasons)


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

    def read(self, part: int, prefix: str = "") -> dict[str, NDArray[Any]]:
        """The arrays of one part whose names begin with ``prefix``."""
        with safe_open(_part(self.folder, part, self.parts) / _ARRAYS, framework="numpy") as file:
            return {k: file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}


class Found(NamedTuple):
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
    save_file(dict(arrays), beside / _ARRAYS)
    manifest = {
        "line": line,
        "epoch": epoch,
        "step": step,
        "part": part,
        "parts": parts,
        "sha256": _sha256(beside / _ARRAYS),
        "bytes": (beside / _ARRAYS).stat().st_size,
        "meta": dict(meta),
    }
    (beside / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    for name in (_ARRAYS, _MANIFEST):
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


def latest(folder: Path, line: str, epoch: int | None = None, step: int | None = None) -> Found:
    """The newest complete snapshot of a line (of an epoch, a step, if given) whose digests are right."""
    reasons: list[str] = []
    for version in reversed(_versions(folder, line)):
        number = _number(version)
        if number != (number[0] if epoch is None else epoch, number[1] if step is None else step):
            continue
        try:
            return Found(_check(version, line), reasons)
        except (OSError, ValueError, KeyError) as error:
            reasons.append(f"{version.name}: {error}")
    return Found(None, reasons)


def complete_steps(folder: Path, line: str, epoch: int) -> list[int]:
    """The steps of an epoch that have all their parts, ascending; their digests are not checked."""
    numbers = [_number(version) for version in _versions(folder, line) if _is_complete(version)]
    return [step for e, step in numbers if e == epoch]


def prune(folder: Path, line: str, keep: int) -> list[str]:
    """Removes what is older than the ``keep`` newest complete snapshots; returns the names removed."""
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1")
    complete = [version for version in _versions(folder, line) if _is_complete(version)]
    if len(complete) <= keep:
        return []
    old = [v for v in _versions(folder, line) if _number(v) < _number(complete[-keep])]
    for version in old:
        shutil.rmtree(version, ignore_errors=True)  # a sibling shard may be removing it too
    return [version.name for version in old]


class ServingRows(NamedTuple):
    """What serving needs of a snapshot: rows as they were published, no optimizer. ``tables`` are (keys (R,),
    values (R, D)) by name."""

    snapshot: Snapshot
    tables: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]
    dense: NDArray[np.float32] | None


def load_rows(folder: Path, line: str, epoch: int | None = None) -> ServingRows:
    """The rows and dense parameters of the newest usable snapshot, as they were published: what a replica
    holds that has followed every delta. Raises NoSnapshot."""
    snapshot, reasons = latest(folder, line, epoch)
    if snapshot is None:
        raise NoSnapshot(f"{folder}/{line}", reasons)
    dense = None
    found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
    for part in range(snapshot.parts):
        format = snapshot.meta(part).get("delta_format", "fp32")
        path = _part(snapshot.folder, part, snapshot.parts) / _ARRAYS
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            if "dense/averaged" in names:
                _, dense = round_dense(file.get_tensor("dense/averaged"), format)
            for name in names:
                if name.startswith("table/") and name.endswith("/keys"):
                    table = name.removeprefix("table/").removesuffix("/keys")
                    held = {c: file.get_tensor(f"held/{table}/{c}") for c in HELD_COLUMNS
                            if f"held/{table}/{c}" in names}  # fmt: skip
                    keys, rows = file.get_tensor(name), file.get_tensor(f"table/{table}/values")
                    found.setdefault(table, []).append(published_rows(keys, rows, held, format))
    tables = {
        table: (np.concatenate([k for k, _ in rows]), np.concatenate([v for _, v in rows]))
        for table, rows in found.items()
    }
    return ServingRows(snapshot, tables, dense)


def _check(version: Path, line: str) -> Snapshot:
    epoch, step = _number(version)
    parts = _parts(version)
    missing = [p for p in range(parts) if not (_part(version, p, parts) / _MANIFEST).exists()]
    if not parts or missing:
        raise ValueError(f"incomplete, parts {missing} of {parts} are missing")
    manifests = []
    for part in range(parts):
        folder = _part(version, part, parts)
        manifest = json.loads((folder / _MANIFEST).read_text())
        expected = {"line": line, "epoch": epoch, "step": step, "part": part, "parts": parts}
        if any(manifest[name] != value for name, value in expected.items()):
            raise ValueError(f"the manifest of part {part} says {manifest}, expected {expected}")
        if _sha256(folder / _ARRAYS) != manifest["sha256"]:
            raise ValueError(f"part {part} is corrupt: its SHA-256 isn't the manifest's")
        try:
            with safe_open(folder / _ARRAYS, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"part {part} can't be read: {error}") from None
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
