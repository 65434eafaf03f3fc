"""Snapshot of a part: its state and next offsets, in one file.

``state/parts/<name>/state.msgpack``, a SHA-256 followed by MessagePack, is replaced atomically; the previous
file is kept. It contains the id of its log: with another log it is rejected.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from recsys.log.protocol import LogLost
from recsys.process.worker_share import Share

_FILE: Final = "state.msgpack"
_PREVIOUS: Final = "state.previous.msgpack"
_BROKEN: Final = "state.broken.msgpack"
_DIGEST_BYTES: Final = 32

Offsets = Mapping[str, Mapping[int, int]]


class _Held(msgspec.Struct):
    """Decodes only the users in quarantine of a snapshot of the counters."""

    quarantined: list[str] = []


class Saved(msgspec.Struct, frozen=True):
    """A saved state. ``offsets[topic][partition]`` is the next to read; ``blob`` is opaque."""

    log_id: str
    offsets: dict[str, dict[int, int]]
    blob: bytes


class PartState:
    """The snapshot of one part in its own folder, for one process at a time.

    After ``load``, ``note`` is the error of the newest snapshot if the previous one was loaded.
    """

    def __init__(self, state: str | Path, part: str) -> None:
        self._state, self._part = state, part
        self.folder = Path(state) / "parts" / part
        self.note = ""
        self._newest: Offsets | None = None

    def of(self, partition: int) -> "PartState":
        """The snapshot of one partition, where the part has several workers."""
        return PartState(self._state, f"{self._part}-p{partition}")

    def load(self, log_id: str, move: bool = True) -> Saved | None:
        """Loads the last snapshot, or the previous one if the last can't be read, and moves an unreadable one
        if it may ``move`` files, which another process's must not be; None without any.

        Raises LogLost if it was folded from another log, ValueError if none can be read.
        """
        self.note = ""
        faults = []
        for name in (_FILE, _PREVIOUS):
            try:
                saved = _decode((self.folder / name).read_bytes())
            except FileNotFoundError:
                continue
            except ValueError as error:
                faults.append(f"{self.folder / name} can't be read ({error})")
                continue
            if saved.log_id != log_id:
                raise LogLost(
                    f"{self.folder / name} was folded from log {saved.log_id}, this one is {log_id}: the "
                    "log was removed or replaced. Bring it back, or remove "
                    f"{self.folder} to begin with the new one"
                )
            if faults and move:
                # Moved, since the next save() would replace the good one with it.
                os.replace(self.folder / _FILE, self.folder / _BROKEN)
                self.note = f"{faults[0]}: went on from the snapshot before it; it is now {_BROKEN}"
            self._newest = saved.offsets
            return saved
        if faults:
            raise ValueError(
                f"{'; '.join(faults)}: remove {self.folder} to begin without it, from what is still on "
                "the log"
            )
        return None

    def drop_broken(self) -> None:
        """Removes unreadable snapshots of all parts, and the copies of damaged files that a repair or a start
        has put aside: they may contain data of erased users."""
        parts = self.folder.parent
        copies = (*parts.glob("*/*.damaged"), *parts.parent.glob("log/*.damaged"))
        for path in (*parts.glob(f"*/{_BROKEN}"), *copies):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the snapshots: nothing continues from them."""
        for name in (_FILE, _PREVIOUS, _BROKEN):
            (self.folder / name).unlink(missing_ok=True)

    def save(self, log_id: str, offsets: Offsets, blob: bytes) -> Offsets:
        """Replaces the snapshot and syncs it to disk.

        Returns the offsets of the previous snapshot: holding them (``Log.hold``) keeps it usable.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _FILE
        partial = path.with_name(f".{_FILE}")  # one name: the rest of a failed write is overwritten
        plain = {topic: dict(by_partition) for topic, by_partition in offsets.items()}
        body = msgspec.msgpack.encode(Saved(log_id, plain, blob))
        with partial.open("wb") as file:
            file.write(hashlib.sha256(body).digest())
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        # A crash between these two lines leaves the previous snapshot, which load() uses.
        if path.exists():
            os.replace(path, self.folder / _PREVIOUS)
        os.replace(partial, path)
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        before, self._newest = self._newest, plain
        return before or plain


class ShareState:
    """Snapshots of a worker's partitions of a topic: one file if it is the only worker, else one for each. A
    partition's newest is used wherever it is, since the number of workers may change. A whole file that an
    older version wrote may lack a partition's offset."""

    def __init__(self, whole: PartState, topic: str, partitions: int, share: Share) -> None:
        self._whole, self._topic = whole, topic
        self._all = [whole.of(partition) for partition in range(partitions)]
        self._own = own = share.partitions(partitions)
        self._files = [(whole, own)] if share.whole else [(self._all[p], [p]) for p in own]
        self.notes: list[str] = []

    def load(self, log_id: str) -> dict[int, Saved]:
        """The newest snapshot of each partition that has one. Raises as ``PartState.load``."""
        newest: dict[int, Saved] = {}
        whole = self._whole.load(log_id)
        for partition in self._own:
            options = [s for s in (whole, self._all[partition].load(log_id)) if s is not None]
            if options:
                newest[partition] = max(options, key=lambda s: s.offsets[self._topic].get(partition, 0))
        states = [self._whole, *(self._all[p] for p in self._own)]
        self.notes = [state.note for state in states if state.note]
        return newest

    def save(
        self, log_id: str, offsets: Mapping[int, int], pack: Callable[[Sequence[int]], bytes]
    ) -> dict[int, int]:
        """Saves what ``pack`` makes of each file's partitions; removes files of another number of workers.
        Returns offsets to hold, as ``PartState.save``."""
        held = dict[int, int]()
        for state, partitions in self._files:
            own = {partition: offsets[partition] for partition in partitions}
            held |= state.save(log_id, {self._topic: own}, pack(partitions))[self._topic]
        if self._files[0][0] is self._whole:
            for state in self._all:
                state.remove()
        elif all((state.folder / _FILE).exists() for state in self._all):
            self._whole.remove()
        return held

    def remove(self) -> None:
        """Removes the snapshots of all partitions."""
        for state in (self._whole, *self._all):
            state.remove()


def quarantined_users(folder: str, log_id: str) -> set[str]:
    """Users in quarantine by the newest snapshots of the counters in a state folder; none without one."""
    users: set[str] = set()
    for part in Path(folder).glob("parts/counters*"):
        if saved := PartState(folder, part.name).load(log_id, move=False):
            users |= set(msgspec.msgpack.decode(saved.blob, type=_Held).quarantined)
    return users


def _decode(raw: bytes) -> Saved:
    digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its SHA-256 is another: it was cut off or changed")
    return msgspec.msgpack.decode(body, type=Saved)
