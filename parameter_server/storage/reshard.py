"""Change of the number of shards: re-partitions the old shards' state before the new ones start.

The old shards are recovered from the newest snapshot and their write-ahead files, up to the last step that
all of them logged, with the settings stored in these files. Their state becomes a snapshot in the new number
of parts. The old files are deleted last, so a kill at any time leaves the old or the new shards.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from parameter_server.shard.lanes import StepSum
from parameter_server.shard.shard import Shard, ShardSpec, part_of
from parameter_server.shard.wal_settings import spec_by_settings
from parameter_server.storage import snapshots
from parameter_server.storage.durable_shard import Publish, load_resharded, load_shard, owner_of
from parameter_server.storage.wal import Wal
from parameter_server.table.dense import Vector
from recsys.events.records import pack

_FILE: Final = re.compile(r"(?P<line>.+)-(?P<epoch>\d+)-(?P<part>\d+)-of-(?P<parts>\d+)\.wal")


class Resharded(NamedTuple):
    """Result: old number of shards, and the step."""

    parts: int
    step: int


@dataclass(frozen=True)
class ShardFiles:
    """Locations of the files of a line's shards."""

    snapshots: Path
    wals: Path  # folder
    sync: bool = False

    def wal(self, spec: ShardSpec) -> Path:
        return self.wals / f"{spec.line}-{spec.epoch}-{spec.part}-of-{spec.parts}.wal"

    def counts(self, spec: ShardSpec) -> list[int]:
        """Numbers of shards for which a line and epoch have write-ahead files."""
        matches = (_FILE.fullmatch(file.name) for file in self.wals.glob("*.wal"))
        own = (m for m in matches if m and (m["line"], int(m["epoch"])) == (spec.line, spec.epoch))
        return sorted({int(m["parts"]) for m in own})


def reshard_line(
    spec: ShardSpec, files: ShardFiles, publish: Publish, dense: Vector | None = None
) -> Resharded | None:
    """Re-partitions the state of other numbers of shards into ``spec.parts``; None if they have no more than
    the snapshot and the current files. No shard of the line may run. ``dense``: initial parameters.

    Publishes the newest delta of each old shard again, which a crash may have prevented. Raises
    snapshots.NoUsableSnapshot if snapshots exist, none is usable, and the files don't hold their steps.
    """
    others = [parts for parts in files.counts(spec) if parts != spec.parts]
    if not others:
        return None
    newest, reasons = snapshots.latest(files.snapshots, spec.line, spec.epoch)
    base = 0 if newest is None else newest.step
    reach = {parts: _reach(replace(spec, parts=parts), files, base) for parts in others}
    best = max(others, key=lambda parts: reach[parts])
    newest_step = snapshots.newest_step(files.snapshots, spec.line, spec.epoch)
    if newest is None and newest_step > reach[best]:
        raise snapshots.NoUsableSnapshot(f"{files.snapshots}/{spec.line}", files.wals, reasons)
    done = None
    if reach[best] > _reach(spec, files, base):
        old = replace(spec, parts=best)
        _write(spec, files, _recover(old, files, newest, reach[best], publish, dense))
        done = Resharded(best, reach[best])
    for parts in others:
        for part in range(parts):
            files.wal(part_of(replace(spec, parts=parts), part)).unlink(missing_ok=True)
    return done


def _reach(spec: ShardSpec, files: ShardFiles, base: int) -> int:
    """Newest step that all shards of a layout have logged, continuing from a snapshot at ``base``."""
    reached = []
    for part in range(spec.parts):
        own = part_of(spec, part)
        if not files.wal(own).exists():
            return base
        wal = Wal(files.wal(own), owner_of(own), files.sync)
        first, last = wal.steps or (base + 1, base)
        wal.close()
        reached.append(last if first <= base + 1 else base)
    return max(base, min(reached))


def _recover(
    spec: ShardSpec, files: ShardFiles, newest: snapshots.Snapshot | None, step: int,
    publish: Publish, dense: Vector | None,
) -> list[Shard]:  # fmt: skip
    shards = []
    for part in range(spec.parts):
        own = part_of(spec, part)
        wal = Wal(files.wal(own), owner_of(own), files.sync)
        shard = Shard(spec_by_settings(wal.settings, own), dense if part == 0 else None)
        if newest is not None:
            load_shard(shard, newest)
        delta = None
        for number, payload in wal.records(after=shard.applied):
            if number > step:
                break
            delta = shard.apply(StepSum.decode(payload))
        wal.close()
        if delta is not None:
            publish([pack(delta)])
        shards.append(shard)
    return shards


def _write(spec: ShardSpec, files: ShardFiles, old: Sequence[Shard]) -> None:
    """Writes a snapshot in the new number of parts, with one new shard in memory at a time."""
    exports = [shard.export() for shard in old]
    first = old[0].dense
    for part in range(spec.parts):
        own = part_of(spec, part)
        shard = Shard(own, first.values if part == 0 and first is not None else None)
        load_resharded(shard, [arrays for arrays, _ in exports], [meta for _, meta in exports])
        place = (spec.line, spec.epoch, old[0].applied, part, spec.parts)
        snapshots.write_part(files.snapshots, *place, *shard.export())
