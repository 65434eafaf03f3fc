"""Rows of a snapshot in its mapped files, found through index files beside its parts.

Processes of a machine share the pages of both, and no process holds rows of its own. An index maps a key to
its newest row: one of a part's full file, and one of its increments. The process that first needs one makes
it. A pruned snapshot stays readable while it is mapped, on local file systems: a network file system may
remove its files for other machines, where a read of one then ends the process (SIGBUS).
"""

# N keys, D dimension, P parts, F files of a part, H cells of an index

import fcntl
import os
import uuid
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numpy.typing import NDArray

from parameter_server.publish.rounding import FORMATS, halve, quantise
from parameter_server.storage.increments import REMOVED
from parameter_server.storage.part_files import Arrays, files_of
from parameter_server.storage.snapshots import Snapshot
from parameter_server.table.kernels import owner_of
from parameter_server.table.routing import Keys, Rows, as_keys
from parameter_server.table.table import columns_in
from recsys.arrays.compiled import kernel, pointer, read_only
from recsys.arrays.key_index import EMPTY, cells_for, empty_index, home_of, place_of, prefetch_cell
from recsys.arrays.prefetch import LINE, prefetch_line
from recsys.events.hashing import digest_of

OVER: Final = -2  # place of a row that another replaces
_GONE: Final = 1 << 62  # place of a row that an increment removed
_FILE: Final = 32  # bits of a row's number within its file; the bits above are the file's
_ROW: Final = (1 << _FILE) - 1
_FP16, _INT8 = FORMATS.index("fp16"), FORMATS.index("int8")
_BLOCK: Final = 8192
COLUMNS: Final = ("keys", "values", REMOVED)
_WITHHELD: Final = ("keys", "last", "had")
_NO_INDEX: Final = empty_index(1)
_AS_LEARNED: Final = np.empty(0, np.int64)
_checked: deque[tuple[int, ...]] = deque(maxlen=256)  # index files that this process has read
_int = types.int64
_KEYS, _OUT, _TABLE = read_only(_int, 1), _int[::1], read_only(_int, 2)
_ROWS = read_only(types.float32, 2)


class _Part(NamedTuple):
    """A table's arrays in the files of one part, with its indexes (H, 2): of the full file, of the others."""

    files: list[dict[str, NDArray[Any]]]
    indexes: list[NDArray[np.int64]]
    format: str


class MappedRows:
    """Rows of one table as of ``step``. Read-only."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.dim = step, 0  # of an empty table
        self._withheld: dict[str, NDArray[Any]] = {"keys": np.empty(0, np.int64)}
        self._parts: list[_Part] = []
        self._formats_P = _AS_LEARNED
        self._indexes_P4 = self._values_PF = np.empty((0, 4), np.int64)

    def add(self, snapshot: Snapshot, part: int, table: str, maps: Sequence[Arrays]) -> None:
        """Adds the next part, whose files have the arrays ``maps``. Raises ValueError if they disagree."""
        manifest = snapshot.manifests[part]
        chain = files_of(snapshot.files(part)[-1].parent, manifest)
        files = [columns_in(arrays, f"table/{table}/", COLUMNS) for arrays in maps]
        while not all(files):  # those before one without the table don't count
            files, chain = files[1:], chain[1:]
        dims = {self.dim, *(file["values"].shape[1] for file in files)} - {0}
        if len(dims) > 1:
            raise ValueError(f"{snapshot.folder}: rows of {table} have dimensions {sorted(dims)}")
        self.dim = max(dims, default=0)
        full, every = (digest_of("".join(sha for _, sha in c)) for c in (chain[:1], chain))
        indexes = [
            _index(snapshot.folder, f"{full}-{table}", files[:1], 0),
            _index(snapshot.folder, f"{every}-{table}", files[1:], 1),
        ]
        self._parts.append(_Part(files, indexes, manifest["meta"].get("delta_format", "fp32")))
        self._formats_P = np.array([FORMATS.index(own.format) for own in self._parts])
        self._indexes_P4 = np.array(
            [[n for i in own.indexes for n in (i.ctypes.data, len(i))] for own in self._parts]
        )
        self._values_PF = np.zeros((len(self._parts), max(len(p.files) for p in self._parts)), int)
        for row, own in zip(self._values_PF, self._parts, strict=True):
            row[: len(own.files)] = [file["values"].ctypes.data for file in own.files]

    def withhold(self, groups: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Gives the rows that aren't published as learned: the columns ``keys``, ``last`` (the row sent last)
        and ``had`` (whether one was sent), in groups."""
        if groups:
            order = np.argsort(np.concatenate([group["keys"] for group in groups]))
            self._withheld = {n: np.concatenate([g[n] for g in groups])[order] for n in _WITHHELD}

    def lookup(
        self, keys: Keys, published: bool = True, over: tuple[NDArray[np.int64], Rows] | None = None
    ) -> tuple[Rows, Keys]:
        """Rows of keys (N, D), as published or as learned, and their places: 0 or more, or EMPTY without a
        row, which is then undefined. ``over``: an index of rows that replace these, and the rows (R, D); the
        place of such a key is OVER."""
        keys = as_keys(keys)
        index, values = over or (_NO_INDEX, np.empty((0, self.dim), np.float32))
        out = np.empty((len(keys), values.shape[1]), np.float32)
        places = np.empty(len(keys), np.int64)
        tables = self._indexes_P4, self._values_PF, self._formats_P if published else _AS_LEARNED
        _gather(*tables, index, values, keys, places, out)
        withheld = self._withheld["keys"]
        if len(withheld) and published:
            place = np.searchsorted(withheld, keys).clip(max=len(withheld) - 1)
            own = (withheld[place] == keys) & (places != OVER)
            place = place[own]
            out[own] = self._withheld["last"][place]
            places[own] = np.where(self._withheld["had"][place], places[own], EMPTY)
        return out, places

    def blocks(self) -> Iterator[tuple[Keys, Rows]]:
        """All published rows, in blocks."""
        for part in self._parts:
            for number, file in enumerate(part.files):
                for start in range(0, len(file["keys"]), _BLOCK):
                    keys = file["keys"][start : start + _BLOCK]
                    rows, places = self.lookup(keys)
                    # Newer rows of a key are in another file.
                    own = places == (number << _FILE) + np.arange(start, start + len(keys))
                    yield keys[own], rows[own]


def _index(folder: Path, name: str, files: Sequence[dict[str, Any]], first: int) -> NDArray[np.int64]:
    """The index of a part's files from number ``first`` on, in a file of the snapshot or of another one with
    the same files; in memory where no file can be made."""
    cells = cells_for(sum(len(keys) for f in files for keys in (f["keys"], f.get(REMOVED, ()))))
    index, path, beside = None, folder / name, folder / f".{name}-{uuid.uuid4().hex}"
    lock = os.open(folder, os.O_RDONLY)
    try:
        # One process of a machine makes it, and all map the same.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for other in list(folder.parent.glob(f"*/{name}"))[:1]:
                with suppress(OSError):  # it was removed, or there are no hard links
                    os.link(other, path)
        if files and (index := _mapped(path, cells)) is None:
            with beside.open("wb") as file:  # a mapped hole on a full disk would end the process
                os.posix_fallocate(file.fileno(), 0, 16 * (cells + 1))
            whole = np.memmap(beside, np.int64, "r+", shape=(cells + 1, 2))
            _fill(whole[:-1], files, first)
            whole[-1] = zlib.crc32(whole[:-1].data)
            beside.replace(path)
            index = _mapped(path, cells)
    except OSError:
        beside.unlink(missing_ok=True)
    finally:
        os.close(lock)
    if index is None:
        index = empty_index(cells)
        _fill(index, files, first)
    return index


def _mapped(path: Path, cells: int) -> NDArray[np.int64] | None:
    """A file's index; None if there is none, or it is damaged."""
    with suppress(FileNotFoundError, ValueError):
        stat, whole = path.stat(), np.memmap(path, np.int64, "r", shape=(cells + 1, 2))
        file = stat.st_dev, stat.st_ino, stat.st_mtime_ns
        if file in _checked or whole[-1, 0] == zlib.crc32(whole[:-1].data):
            _checked.append(file)
            return whole[:-1]
    return None


def _fill(index: NDArray[np.int64], files: Sequence[dict[str, Any]], first: int) -> None:
    index[:, 1] = EMPTY
    for number, file in enumerate(files, first):
        _enter(index, file.get(REMOVED, np.empty(0, np.int64)), _GONE, 0)
        _enter(index, file["keys"], number << _FILE, 1)


@kernel(types.void(_int[:, ::1], _KEYS, _int, _int))
def _enter(index: Any, keys: Any, first: Any, step: Any) -> None:
    """Sets the places ``first``, ``first + step``, … of keys."""
    one, zero, cells = np.uint64(1), np.uint64(0), np.uint64(index.shape[0])
    for i in range(keys.shape[0]):
        cell = home_of(keys[i], cells)
        while index[cell, 1] >= 0 and index[cell, 0] != keys[i]:
            cell = cell + one if cell + one < cells else zero
        index[cell, 0] = keys[i]
        index[cell, 1] = first + i * step


@kernel(types.void(_TABLE, _TABLE, _KEYS, _TABLE, _ROWS, _KEYS, _OUT, types.float32[:, ::1]))
def _gather(
    indexes_P4: Any, values_PF: Any, formats_P: Any, index: Any, values: Any, keys: Any, places: Any, out: Any
) -> None:
    """Writes the place of each key, and into ``out`` its row: of ``values`` for a key in ``index``, else of
    the files, rounded to its part's format, if there are any. Cells are prefetched first, then rows. The
    tables hold addresses; of indexes also the number of cells."""
    parts, size, dim = indexes_P4.shape[0], keys.shape[0], out.shape[1]
    halves, codes = np.empty((1, dim), np.uint16), np.empty((1, dim), np.int8)
    scales = np.empty(1, np.float32)
    for i in range(size):
        prefetch_cell(index, keys[i])
        part = owner_of(keys[i], parts)
        for level in range(0, 4 if parts else 0, 2):
            shape = (indexes_P4[part, level + 1], 2)
            prefetch_cell(carray(pointer(indexes_P4[part, level]), shape, np.int64), keys[i])
    for i in range(size):
        place = place_of(index, keys[i])
        places[i] = OVER if place >= 0 else EMPTY
        if place >= 0:
            out[i] = values[place]
            continue
        part = owner_of(keys[i], parts)
        for level in range(2, -1 if parts else 2, -2):
            shape = (indexes_P4[part, level + 1], 2)
            place = place_of(carray(pointer(indexes_P4[part, level]), shape, np.int64), keys[i])
            if place >= 0:
                break
        if 0 <= place < _GONE:
            places[i], row = place, place & _ROW
            source = carray(pointer(values_PF[part, place >> _FILE]), (row + 1, dim), np.float32)
            for byte in range(0, 4 * dim, LINE):
                prefetch_line(source, 4 * dim * row + byte)
    for i in range(size):
        if places[i] >= 0:
            part, row = owner_of(keys[i], parts), places[i] & _ROW
            address = values_PF[part, places[i] >> _FILE] + 4 * dim * row
            source, to = carray(pointer(address), (1, dim), np.float32), out[i : i + 1]
            form = formats_P[part] if formats_P.shape[0] else 0
            if form == _FP16:
                halve(source.view(np.uint32), halves, to.view(np.uint32))
            elif form == _INT8:
                quantise(source, scales, codes, to)
            else:
                to[:] = source
