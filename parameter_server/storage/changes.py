"""Exports of a shard for snapshots: what changed since the part written or loaded last.

A row that changed since then was used no earlier than that part's event time.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from parameter_server.shard.shard import Shard
from parameter_server.storage.part_files import Update, increment
from parameter_server.storage.snapshots import Snapshot


class Changes:
    """Follows one shard. Not thread-safe; the owner locks."""

    def __init__(self, shard: Shard, snapshot: Snapshot | None = None) -> None:
        """``snapshot``: what the shard was loaded from, if anything, before its next step."""
        self._shard, part = shard, shard.spec.part
        shard.removed = defaultdict(list)
        self._base: tuple[Path, int] | None = None
        if snapshot is not None and snapshot.parts == shard.spec.parts:
            base_ms = snapshot.meta(part)["clock_ms"]
            self._base = snapshot.files(part)[-1].parent, base_ms

    def export(self) -> tuple[Update, dict[str, Any]]:
        """Exports what changed, or all rows where no increment is possible or one wouldn't be smaller. Until
        ``written`` is called there is nothing to build on: after an error all is exported."""
        base, self._base, update = self._base, None, None
        if base is not None:
            arrays, meta = self._shard.export(since_ms=base[1])
            update = increment(base[0], arrays)
        if update is None:
            arrays, meta = self._shard.export()
        self._shard.removed = defaultdict(list)
        return update or Update(arrays), meta

    def written(self, part: Path, meta: dict[str, Any]) -> None:
        """Builds on a part, written from the last export, from now on."""
        self._base = part, meta["clock_ms"]
