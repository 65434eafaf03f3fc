"""Snapshot of a replica's catalogue and index: one that starts needn't fold the ``items`` topic from its
beginning, and those of a machine share memory. Files: ``state/catalogue/DEFINITION-CRC/NAME.npy``."""

import fcntl
import logging
import shutil
import time
import uuid
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from parameter_server.storage.part_files import sync_file
from parameter_server.storage.wal import sync_folder
from recsys.events.hashing import digest_of
from recsys.process.disk_budget import Level
from recsys.process.space_file import SpaceReader
from serving.index.ivf_index import IvfIndex
from serving.replica.replica import Replica

_FORMAT: Final = 4  # of the files, of the order of a group's members, and of the length of vectors
_LEAST: Final = 20_000  # records of ``items`` that are folded at every start
_OLD: Final = 20  # a snapshot that lacks one of so many records is replaced
# For the replica that folds the catalogue and writes, a minute at a million items. If it hangs, most of the
# others' CATCH_UP_S remains.
_PATIENCE_S: Final = 120.0
_LOOK_S: Final = 0.2
_log = logging.getLogger(__name__)


class CatalogueSnapshot:
    """The snapshot of one feature set on one log, for a replica that doesn't answer yet. ``damaged``: how
    many were not used."""

    def __init__(self, state: str | Path, log_id: str, replica: Replica, writes: bool = True) -> None:
        """``writes``: False for the replica of another line, which only reads the items: the index is of the
        live line's vectors."""
        self._state, self._replica, self._writes, self.damaged = state, replica, writes, 0
        self._folder = Path(state) / "catalogue"
        self._lock_file: IO[str] | None = None  # locked while this replica may write
        self._restored = set[str]()  # names of snapshots that were read, or couldn't be
        serve, features = replica.config.serve, replica.features.as_dict()
        index = replica.indexed, replica.index.dim, serve.index, serve.index_flat_items
        self._definition = digest_of(msgspec.json.encode((_FORMAT, log_id, features, index)))
        self._lock_path = self._folder / f".lock-{self._definition}"
        self._arrays: dict[str, NDArray[Any]] = {}

    @property
    def offset(self) -> int:
        """The next to read of ``items``, after those that are applied."""
        return self._replica.catalogue_offset

    def lacks(self, end: int) -> bool:
        """Whether a snapshot of what is applied would lack many records up to ``end``."""
        return end - self.offset > max(_LEAST, end // _OLD)

    def restore(self) -> None:
        """Replaces the items by those of the snapshot, unless it has fewer. Its files are mapped: what the
        replica changes, it copies."""
        for folder in self._folder.glob(f"{self._definition}-*"):
            if folder.name not in self._restored:
                self._restore(folder)

    def _restore(self, folder: Path) -> None:
        self._restored.add(folder.name)
        try:
            files = sorted(folder.glob("*.npy"))
            arrays = {f.stem: np.asarray(np.load(f, mmap_mode="c")) for f in files}
            if folder.name != self._name(arrays):
                raise ValueError(f"the name of its content is {self._name(arrays)}")
        except Exception as error:  # a damaged header raises errors of many kinds
            self.damaged += 1
            _log.warning("%s is damaged, and not used: %r", folder, error)
            return
        replica, offset = self._replica, int(arrays["offset"])
        if offset >= replica.catalogue_offset:
            replica.catalogue.restore(arrays)
            replica.groups.restore(arrays, "groups")
            replica.surplus.restore(arrays, "surplus")
            replica.values.reread()
            replica.catalogue_offset, self._arrays = offset, arrays

    def restore_index(self) -> None:
        """Replaces the index by the snapshot's, once all items are there."""
        if "lists" in self._arrays and self._writes and self._replica.indexed:
            index = IvfIndex.restored(self._arrays)
            index.update(self._replica.index.vectors, self._replica.catalogue.alive)
            self._replica.swap(index)
        self._arrays = {}

    def acquire(self, now_ms: int, may_wait: Callable[[], bool]) -> None:
        """Takes the right to write the next snapshot, until ``release``, if it can: while another replica of
        the machine has it, this one waits for it as long as it may. Does nothing while disk space is low."""
        if not self._writes or SpaceReader(self._state, lambda: now_ms).level >= Level.LOW:
            return
        locked = False
        until_s = time.monotonic() + _PATIENCE_S
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = lock = self._lock_path.open("w")
            while not (locked := self._lock_now(lock)) and may_wait() and time.monotonic() < until_s:
                time.sleep(_LOOK_S)
        except OSError as error:  # a network file system without locks, say
            _log.warning("no snapshot of the catalogue can be written: %s", error)
        if not locked:
            self.release()

    @staticmethod
    def _lock_now(lock: IO[str]) -> bool:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def release(self) -> None:
        """Gives up the right to write."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def prune(self) -> None:
        """Removes snapshots of other definitions and unfinished ones, unless a replica writes one."""
        if not self._writes:
            return
        with suppress(OSError), ExitStack() as opened:
            paths = {*self._folder.iterdir()}
            locks = {self._lock_path, *(path for path in paths if path.name.startswith(".lock"))}
            for lock in locks:
                fcntl.flock(opened.enter_context(lock.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            for other in paths - locks - {*self._folder.glob(f"{self._definition}-*")}:
                shutil.rmtree(other, ignore_errors=True)
            for lock in locks - {self._lock_path}:
                lock.unlink()

    def save(self, now_ms: int) -> None:
        """Writes a snapshot in place of older ones, and starts from it: its memory is shared, too. Does
        nothing if this replica doesn't hold the lock, or if disk space is low."""
        if self._lock_file is None or SpaceReader(self._state, lambda: now_ms).level >= Level.LOW:
            return
        replica, partial = self._replica, self._folder / f".{uuid.uuid4().hex}"
        arrays = replica.catalogue.saved() | {"offset": np.array(replica.catalogue_offset)}
        arrays |= replica.groups.saved("groups") | replica.surplus.saved("surplus")
        if isinstance(replica.index, IvfIndex):
            arrays |= replica.index.saved()
        name = self._name(arrays)
        try:
            partial.mkdir(mode=0o700)
            for array in arrays:
                np.save(partial / array, arrays[array])
                sync_file(partial / f"{array}.npy")
            sync_folder(partial)
            for other in self._folder.glob(f"{self._definition}-*"):  # others may have them mapped
                shutil.rmtree(other, ignore_errors=True)
            partial.rename(self._folder / name)
            sync_folder(self._folder)
            self._restore(self._folder / name)
        except OSError as error:  # the disk is full, say
            _log.warning("no snapshot of the catalogue was written: %s", error)
            shutil.rmtree(partial, ignore_errors=True)
        self.restore_index()

    def _name(self, arrays: dict[str, NDArray[Any]]) -> str:
        """Name of a snapshot's folder, with a CRC-32 of all arrays."""
        crc = 0
        for name, array in sorted(arrays.items()):
            form = f"{name} {array.dtype} {array.shape}".encode()
            crc = zlib.crc32(np.ascontiguousarray(array).data, zlib.crc32(form, crc))
        return f"{self._definition}-{crc:08x}"
