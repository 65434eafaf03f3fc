"""The checkpoints of an offline job: snapshots of its own, in the format of all snapshots.

    FOLDER/{work,best}/000000-STEP/part-00000-of-00001/{arrays.safetensors, manifest.json}

Written beside and renamed, with digests; mostly increments. A damaged one is passed over for the one before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from parameter_server.storage.snapshots import latest, prune, write_part

_KEPT: Final = 2


class FileCheckpoints:
    """``writes``: False for workers that only read, as all have the same to write."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self._folder, self._writes = folder, writes

    def save(self, kind: str, step: int, arrays: Mapping[str, Any], state: bytes) -> None:
        """Saves a state, and removes old ones. A state of the same step is replaced."""
        if not self._writes:
            return
        write_part(self._folder, kind, 0, step, 0, 1, arrays, {"state": state.decode()})
        prune(self._folder, kind, _KEPT)

    def newest(self, kind: str) -> tuple[dict[str, NDArray[Any]], bytes] | None:
        """The newest state without a flaw; None where there is none."""
        found = latest(self._folder, kind).snapshot
        if found is None:
            return None
        return found.read(0), str(found.meta(0)["state"]).encode()
