"""A part's own snapshot: its state and the offsets up to which it was folded, in one file.

``state/parts/<name>/state.msgpack`` is replaced whole, so that state and offsets always belong together. It
names the log that it was folded from: with another log it is refused, not continued.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from recsys.log import LogLost

_FILE: Final = "state.msgpack"


class Saved(msgspec.Struct, frozen=True):
    """``offsets[topic][partition]`` is the next to read; ``blob`` is the part's own business."""

    log_id: str
    offsets: dict[str, dict[int, int]]
    blob: bytes


class PartState:
    """The snapshot of one part, in a folder of its own."""

    def __init__(self, state: str | Path, part: str) -> None:
        self.folder = Path(state) / "parts" / part

    def load(self, log_id: str) -> Saved | None:
        """What was saved last; None where nothing was.

        Raises LogLost where it was folded from another log, ValueError where it can't be read.
        """
        path = self.folder / _FILE
        try:
            saved = msgspec.msgpack.decode(path.read_bytes(), type=Saved)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise ValueError(
                f"{path} can't be read ({error}): remove {self.folder} to fold again from the log's beginning"
            ) from None
        if saved.log_id != log_id:
            raise LogLost(
                f"{path} was folded from log {saved.log_id}, this one is {log_id}: the log was removed or "
                f"replaced. Bring it back, or remove {self.folder} to begin with the new one"
            )
        return saved

    def save(self, log_id: str, offsets: Mapping[str, Mapping[int, int]], blob: bytes) -> None:
        """Replaces what was saved; on the disk when it returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _FILE
        partial = path.with_name(f".{_FILE}.{os.getpid()}")
        plain = {topic: dict(its) for topic, its in offsets.items()}
        with partial.open("wb") as file:
            file.write(msgspec.msgpack.encode(Saved(log_id, plain, blob)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
