"""Centroids on disk, by their digest: with them, the vectors and a stamp, a past search can be repeated.

A stamp's ``index`` is empty where the search was exact; else it is the digest of the centroids and how many
lists were looked through: ``3f0c5b9d12e87a64-96``.
"""

import os
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import load_file, save_file

from serving.index.inverted_lists import Centroids
from serving.index.item_index import FlatIndex, ItemIndex, Mask
from serving.index.ivf_index import IvfIndex

FOLDER: Final = "indexes"  # in the state folder
_NAME: Final = "centroids"
_BLOCK: Final = 4096


def keep(folder: Path, index: ItemIndex) -> None:
    """Writes down what the index's name stands for, if that is anything and isn't there."""
    if not isinstance(index, IvfIndex):
        return
    centroids = index.lists.centroids
    file = _file(folder, centroids.digest)
    if not file.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.tmp")
        save_file({_NAME: centroids.vectors}, beside)
        beside.replace(file)


def index_named(folder: Path, name: str, dim: int, room: int = 8) -> ItemIndex:
    """An empty index that, once it holds the vectors, finds what the one with this name did. Raises
    ValueError where the centroids aren't there, or aren't those."""
    if not name:
        return FlatIndex(dim)
    digest, _, probes = name.rpartition("-")
    file = _file(folder, digest)
    if not digest.isalnum() or not probes.isdigit() or not file.exists():
        raise ValueError(f"index {name!r} isn't known: expected its centroids in {file}; they are "
                         "written by the replica that answered, into its state folder")  # fmt: skip
    centroids = Centroids(load_file(file)[_NAME].astype(np.float32, copy=False))
    if centroids.digest != digest or centroids.dim != dim:
        raise ValueError(f"{file} has digest {centroids.digest} and dimension {centroids.dim}, expected "
                         f"{digest} and {dim}: the file is damaged, remove it")  # fmt: skip
    return IvfIndex(centroids, int(probes), room)


def as_named(folder: Path, name: str, index: ItemIndex, alive: Mask) -> ItemIndex:
    """An index of this name with the vectors of another, which is given back where it has the name. Raises
    ValueError as ``index_named`` does. ``alive``: which of the vectors are to be found."""
    if index.name == name:
        return index
    its = index_named(folder, name, index.dim, len(index))
    for start in range(0, len(index), _BLOCK):
        part = np.arange(start, min(len(index), start + _BLOCK))
        its.set(part, index.vectors[part], alive[part])
    return its


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.safetensors"
