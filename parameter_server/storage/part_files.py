"""Files of one part of a snapshot: its arrays and, for an increment, the files that it builds on.

    {arrays.safetensors, manifest.json, chain-0.safetensors, …}

The manifest holds the SHA-256 of each, and one of itself. The chain is hard-linked into the
part's folder, the full file first.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from parameter_server.storage import increments

Arrays = Mapping[str, NDArray[Any]]
Manifest = Mapping[str, Any]
Wanted = Callable[[str], bool]
ARRAYS: Final = "arrays.safetensors"
MANIFEST: Final = "manifest.json"
FULL_EVERY: Final = 32  # snapshots, of which at least one is full
VERSION: Final = 2  # of manifests
_FIELDS: Final = {
    "line", "epoch", "step", "part", "parts", "sha256", "bytes", "chain", "meta", "version", "digest",
}  # fmt: skip
SCRUB_S: Final = 86_400  # files are read again after this time


def encode_manifest(fields: Manifest) -> str:
    """The manifest as text, with version and digest."""
    plain = json.loads(json.dumps(dict(fields))) | {"version": VERSION}
    return json.dumps(plain | {"digest": _digest(plain)}, indent=1, sort_keys=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a part. Raises ValueError as ``parse_manifest``."""
    return parse_manifest((folder / MANIFEST).read_text())


def parse_manifest(text: str) -> dict[str, Any]:
    """A manifest from its text. Raises ValueError if its digest is wrong or a field isn't known."""
    manifest: dict[str, Any] = json.loads(text)
    if not isinstance(manifest, dict):
        raise ValueError(f"{MANIFEST} is corrupt: it is a {type(manifest).__name__}, no object")
    if "digest" not in manifest:
        raise ValueError(
            f"{MANIFEST} has the fields {sorted(manifest)}, expected a digest among them: it is corrupt, "
            "or an earlier version wrote it; start with a new state folder"
        )
    if set(manifest) != _FIELDS or manifest["digest"] != _digest(manifest):
        fields = sorted(manifest)
        raise ValueError(f"{MANIFEST} is corrupt: its digest or its fields {fields} are wrong")
    return manifest


def _digest(manifest: Manifest) -> str:
    fields = {name: value for name, value in manifest.items() if name != "digest"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def files_of(folder: Path, manifest: Manifest) -> list[tuple[Path, str]]:
    """Files of a part with their SHA-256, the full one first, then increments in order."""
    chain = _chain(manifest)
    names = [*map(link_name, range(len(chain))), ARRAYS]
    digests = [link["sha256"] for link in (*chain, manifest)]
    return [(folder / name, sha) for name, sha in zip(names, digests, strict=True)]


def read_files(
    folder: Path, manifest: Manifest, wanted: Wanted = lambda name: True
) -> dict[str, NDArray[Any]]:
    """Arrays whose names are ``wanted``, with all increments applied."""
    files = []
    for path, _ in files_of(folder, manifest):
        with safe_open(path, framework="numpy") as file:
            files.append({name: file.get_tensor(name) for name in file.keys() if wanted(name)})
    return increments.apply(*files)


def check_files(folder: Path, manifest: Manifest, digest_of: Callable[[Path], str] | None = None) -> None:
    """Raises ValueError if a file doesn't match its digest or can't be opened."""
    for path, sha256 in files_of(folder, manifest):
        if (digest_of or sha256_of)(path) != sha256:
            raise ValueError(f"{path.name} is corrupt: its SHA-256 isn't the manifest's")
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path.name} can't be read: {error}") from None


def full_file(manifest: Manifest) -> str:
    """SHA-256 of the full file that a part builds on, or of its own arrays if full."""
    sha256: str = [*_chain(manifest), manifest][0]["sha256"]
    return sha256


class Update(NamedTuple):
    """Arrays to write for a part. ``chain``: files and digests that they are an increment on, the full one
    first; empty if the arrays are all."""

    arrays: Arrays
    chain: Sequence[tuple[Path, str]] = ()


def increment(base: Path, changes: Arrays) -> Update | None:
    """Rows that changed since the part at ``base``, and all other arrays, as an increment on it; None if a
    full part should be written: it is damaged, has many files, or the increments would be larger."""
    try:
        manifest = read_manifest(base)
        chain = files_of(base, manifest)
        if len(chain) >= FULL_EVERY:
            return None
        check_files(base, manifest, DIGESTS)
        before = read_files(base, manifest, _is_withheld_key)
        sizes = [path.stat().st_size for path, _ in chain]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    update = dict(changes)
    for name in filter(_is_withheld_key, changes):  # these rows are few, and given whole
        gone = np.setdiff1d(before.get(name, changes[name][:0]), changes[name])
        update[name.removesuffix("keys") + increments.REMOVED] = gone
    grown = sum(sizes[1:]) + sum(array.nbytes for array in update.values())
    return Update(update, chain) if grown <= sizes[0] else None


def _is_withheld_key(name: str) -> bool:
    return name.startswith("held/") and name.endswith(("/keys", increments.REMOVED))


class Joined:
    """The arrays of several files as those of one, the rows of each file after those of the file before, with
    one array of one file in memory at a time."""

    def __init__(self, files: Sequence[Path], wanted: Wanted) -> None:
        # 8-byte numbers first, so all are aligned.
        self._files: dict[tuple[bool, str], list[Path]] = {}
        for path in files:
            with safe_open(path, framework="numpy") as file:
                for name in filter(wanted, file.keys()):
                    is_short = file.get_slice(name).get_dtype() != "I64"
                    self._files.setdefault((is_short, name), []).append(path)

    def items(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Each array of each file, those of a name one after the other."""
        for (_, name), paths in sorted(self._files.items()):
            for path in paths:
                with safe_open(path, framework="numpy") as file:
                    yield name, file.get_tensor(name)

    def save(self, path: Path) -> None:
        """Writes one safetensors file: the header's length, the header, then the data."""
        header: dict[str, Any] = {}
        end = 0
        for name, array in self.items():
            dtype = {"int64": "I64", "float32": "F32"}[array.dtype.name]
            entry = header.setdefault(name, {"dtype": dtype, "shape": [0], "data_offsets": [end, end]})
            end += array.nbytes
            entry["shape"] = [entry["shape"][0] + len(array), *array.shape[1:]]
            entry["data_offsets"][1] = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for _, array in self.items():
                out.write(array.tobytes())


def link_or_copy(source: Path, target: Path) -> None:
    """Another name of a synced file, or a synced copy where there are no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_file(target)


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileDigests:
    """SHA-256 of files, each read once in ``SCRUB_S`` unless it changes; links to one file are one."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, digest_of: Callable[[Path], str] | None = None
    ) -> None:
        self._clock, self._digest_of = clock, digest_of
        self._known: dict[tuple[int, ...], tuple[str, float]] = {}
        self._most = 100  # entries, before those of old files go

    def __call__(self, path: Path) -> str:
        stat, now = path.stat(), self._clock()
        file = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        sha256, read_at = self._known.get(file, ("", now - SCRUB_S))
        if now - read_at >= SCRUB_S:
            if len(self._known) > self._most:
                self._known = {f: at for f, at in self._known.items() if now - at[1] < SCRUB_S}
                self._most = 100 + 2 * len(self._known)
            sha256 = (self._digest_of or sha256_of)(path)
            self._known[file] = sha256, now
        return sha256


DIGESTS: Final = FileDigests()


def link_name(place: int) -> str:
    """File name of a link of the chain, the full file first."""
    return f"chain-{place}.safetensors"


def _chain(manifest: Manifest) -> list[Manifest]:
    """Chain of a part; empty if its file is full."""
    chain: list[Manifest] = manifest["chain"]
    return chain
