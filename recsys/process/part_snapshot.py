"""A part's own snapshot: its state and the offsets up to which it was folded, in one file.

``state/parts/<name>/state.msgpack`` is replaced whole, so that state and offsets always belong together, and
the one before it is kept beside it. A file is its SHA-256 and then MessagePack. It names the log that it was
folded from: with another log it is refused, not continued.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from recsys.log.protocol import LogLost

_FILE: Final = "state.msgpack"
_PREVIOUS: Final = "state.previous.msgpack"
_BROKEN: Final = "state.broken.msgpack"
_DIGEST_BYTES: Final = 32

Offsets = Mapping[str, Mapping[int, int]]


class Saved(msgspec.Struct, frozen=True):
    """``offsets[topic][partition]`` is the next to read; ``blob`` is the part's own business."""

    log_id: str
    offsets: dict[str, dict[int, int]]
    blob: bytes


class PartState:
    """The snapshot of one part, in a folder of its own. One process at a time uses it.

    ``note`` says, after ``load``, what was wrong with the newest snapshot where an older one was taken.
    """

    def __init__(self, state: str | Path, part: str) -> None:
        self.folder = Path(state) / "parts" / part
        self.note = ""
        self._newest: Offsets | None = None

    def load(self, log_id: str) -> Saved | None:
        """What was saved last, or before that where the last can't be read; None where nothing was saved.

        Raises LogLost where it was folded from another log, ValueError where nothing there can be read.
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
            if faults:
                # Out of the way: the next save() would put it in the place of the good one.
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
        """Removes what couldn't be read, of all parts: nobody can tell whom it knows."""
        for path in self.folder.parent.glob(f"*/{_BROKEN}"):
            path.unlink(missing_ok=True)

    def save(self, log_id: str, offsets: Offsets, blob: bytes) -> Offsets:
        """Replaces what was saved; on the disk when it returns.

        Returns the offsets of the snapshot before this one: holding those (``Log.hold``) keeps it of use.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _FILE
        partial = path.with_name(f".{_FILE}.{os.getpid()}")
        plain = {topic: dict(its) for topic, its in offsets.items()}
        body = msgspec.msgpack.encode(Saved(log_id, plain, blob))
        with partial.open("wb") as file:
            file.write(hashlib.sha256(body).digest())
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        # Ending between these two lines leaves the previous one, which load() takes.
        if path.exists():
            os.replace(path, self.folder / _PREVIOUS)
        os.replace(partial, path)
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        before, self._newest = self._newest, plain
        return before or plain


def _decode(raw: bytes) -> Saved:
    digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its SHA-256 is another: it was cut off or changed")
    return msgspec.msgpack.decode(body, type=Saved)
