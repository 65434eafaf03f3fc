"""Centroids on disk, by digest: with them, the vectors and a stamp, a past search can be repeated.

A stamp's ``index`` is empty for an exact search; else it is the digest of the centroids and the number of
probed lists: ``3f0c5b9d12e87a64-96``.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import load_file, save_file

from parameter_server.storage.part_files import sync_file
from serving.index.inverted_lists import Centroids
from serving.index.item_index import FlatIndex, ItemIndex
from serving.index.ivf_index import IvfIndex

FOLDER: Final = "indexes"  # in the state folder
_NAME: Final = "centroids"
_KEPT: Final = 1_000  # files: with four replicas, three builds of each an hour for three days


def save_centroids(folder: Path, index: ItemIndex) -> None:
    """Writes the centroids of an index with lists, unless they are there; removes the oldest files."""
    if not isinstance(index, IvfIndex):
        return
    centroids = index.lists.centroids
    file = _file(folder, centroids.digest)
    if file.exists():
        os.utime(file)  # in use: others are older
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.tmp")
        save_file({_NAME: centroids.vectors}, beside)
        sync_file(beside)  # it isn't written again
        beside.replace(file)
        with suppress(FileNotFoundError):  # another replica removes them, too
            for old in sorted(folder.iterdir(), key=os.path.getmtime)[:-_KEPT]:
                old.unlink()


def index_named(folder: Path, name: str, dim: int, room: int = 8) -> ItemIndex:
    """An empty index that, with the same vectors, finds what the one of this name found. Raises ValueError
    where the centroids are missing or damaged."""
    if not name:
        return FlatIndex(dim)
    digest, _, probes = name.rpartition("-")
    file = _file(folder, digest)
    if not digest.isalnum() or not probes.isdigit() or not file.exists():
        raise ValueError(
            f"index {name!r} is unknown: expected its centroids in {file}; the replica that "
            "answered writes them into its state folder"
        )
    centroids = Centroids(load_file(file)[_NAME].astype(np.float32, copy=False))
    if centroids.digest != digest or centroids.dim != dim:
        raise ValueError(
            f"{file} has digest {centroids.digest} and dimension {centroids.dim}, expected "
            f"{digest} and {dim}: the file is damaged, remove it"
        )
    return IvfIndex(centroids, int(probes), room)


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.safetensors"
