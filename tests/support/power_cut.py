"""A power cut: empties the files that were renamed into place and not synced."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


@contextmanager
def power_cut(folder: Path) -> Iterator[None]:
    """Empties at its end what was renamed within it, files and files in folders, as far as nobody synced
    them; ``os.sync`` syncs all below ``folder``. It doesn't know of writes in place."""
    synced, renamed = set[int](), set[Path]()
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real["fsync"](descriptor)

    def sync_all() -> None:
        synced.update(file.stat().st_ino for file in folder.rglob("*"))

    def rename(name: str) -> Any:
        def call(source: Any, target: Any) -> None:
            real[name](source, target)
            renamed.add(Path(target))

        return call

    with (
        mock.patch.object(os, "fsync", sync),
        mock.patch.object(os, "sync", sync_all),
        mock.patch.object(os, "rename", rename("rename")),
        mock.patch.object(os, "replace", rename("replace")),
    ):
        yield
    for path in renamed:
        for file in (path, *path.rglob("*")):
            if file.is_file() and file.stat().st_ino not in synced:
                os.truncate(file, 0)
