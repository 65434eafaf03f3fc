"""Secrets in files of ``state/run``, read again soon after they change: rotation needs no restart."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

ADMIN_KEY: Final = "admin.key"  # opens everything
TOKEN_KEYS: Final = "token.keys"  # signs impression tokens: one secret a line, newest first
DOOR_KEY: Final = "door.key"  # in a header of what HAProxy forwards: replicas believe its addresses
SOURCE_KEY: Final = "source.key"  # hashes sources; never rotated, so that sources stay the same
_CHECK_S: Final = 1.0


class SecretFile:
    """Lines of a file, newest version; none while it can't be read. The same tuple until the file changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._checked_s, self._stamp = -_CHECK_S, (0, 0)
        self._lines: tuple[str, ...] = ()

    def __call__(self) -> tuple[str, ...]:
        if self._clock() - self._checked_s >= _CHECK_S:
            self._checked_s = self._clock()
            try:
                status = os.stat(self._path)
                stamp = status.st_mtime_ns, status.st_ino
                if stamp != self._stamp:
                    self._lines = tuple(self._path.read_text().split())
                    self._stamp = stamp
            except OSError:
                self._lines, self._stamp = (), (0, 0)
        return self._lines
