"""Repairs a damaged snapshot: manifests by their digest, arrays from another copy of the same file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parameter_server.storage.part_files import MANIFEST, files_of, parse_manifest, read_manifest, sha256_of
from recsys.process.part_process import write_atomically


def repair_snapshot(version: Path, others: Iterable[Path]) -> list[str]:
    """Repairs what can be repaired; returns a line for each file. ``others``: folders whose files may be
    copies. No process may use the snapshot."""
    lines = []
    for part in sorted(version.glob("part-*-of-*")):
        try:
            manifest = read_manifest(part)
        except (OSError, ValueError):
            restored = _correct_manifest(part / MANIFEST)
            if restored is None:
                continue
            manifest = restored
            lines.append(f"{part / MANIFEST}: one bit corrected")
        for path, sha256 in files_of(part, manifest):
            if path.exists() and sha256_of(path) == sha256:
                continue
            copy = _copy_of(path, sha256, others)
            if copy is not None:
                # In place, if it exists: other snapshots have links to the same file.
                with path.open("r+b" if path.exists() else "wb") as file:
                    file.truncate(file.write(copy.read_bytes()))
                lines.append(f"{path}: copied from {copy}")
    return lines


def _correct_manifest(path: Path) -> dict[str, Any] | None:
    """Corrects the one bit after which a manifest has its digest; None if there is none."""
    try:
        text = bytearray(path.read_bytes())
    except OSError:
        return None
    for bit in range(8 * len(text)):
        text[bit // 8] ^= 1 << bit % 8
        try:
            manifest = parse_manifest(text.decode())
        except ValueError:
            text[bit // 8] ^= 1 << bit % 8
            continue
        write_atomically(path, bytes(text))
        return manifest
    return None


def _copy_of(path: Path, sha256: str, others: Iterable[Path]) -> Path | None:
    own = path.stat().st_ino if path.exists() else None
    candidates = (file for folder in others for file in folder.rglob("*.safetensors"))
    for file in candidates:
        if file.stat().st_ino != own and sha256_of(file) == sha256:
            return file
    return None
