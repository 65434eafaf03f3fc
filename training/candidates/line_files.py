"""Files of lines beside live: snapshots, with the deltas that lines publish and their holds of the log."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.shard.shard import Shard
from parameter_server.storage import snapshots
from parameter_server.storage.part_files import Update
from recsys.config.system_config import Config
from recsys.events.records import DELTAS, EXAMPLES, Delta, pack
from recsys.log.protocol import Append, Log
from recsys.model.model import build_model
from recsys.process.log_consumer import hold_available
from training.candidates.shadow import Shadow
from training.lines.line import MAIN, spec_of
from training.steps.lineage import Lineage, starts_after

_KEPT: Final = 2  # snapshots of a line


class LineFiles:
    """Writes and removes the files of one worker's lines. ``part``: name of the part that holds the log."""

    def __init__(self, log: Log, config: Config, part: str) -> None:
        self._log, self._config, self._part = log, config, part
        self._folder = Path(config.state) / "snapshots"
        self._written: set[tuple[str, int]] = set()  # lines with the epochs that begin with them
        self._publishing: set[str] = set()
        self._removed: set[str] = set()  # lines without files

    def follow(self, state: LineState, shadow: Shadow, lifecycle: Lifecycle) -> None:
        """Publishes deltas of a line that answers; writes the first snapshot of the epoch that will begin
        with it."""
        line = state.line
        if state.publishes and line not in self._publishing:
            self.save(shadow, lifecycle)
            shadow.publish = self._publish
            self._publishing.add(line)
        if state.epoch and (line, state.epoch) not in self._written:
            self._write_first_snapshot(shadow, state.epoch)
            self._written.add((line, state.epoch))

    def _publish(self, delta: Delta) -> None:
        self._log.append(DELTAS, [Append(0, delta.line.encode(), pack(delta))])

    def _write_first_snapshot(self, shadow: Shadow, epoch: int) -> None:
        """Writes the candidate as a snapshot of the live line, in that line's number of parts, after the last
        step it learned, so that the epoch learns the steps after it."""
        if snapshots.complete_steps(self._folder, MAIN, epoch):
            return
        (arrays, meta), step = shadow.shard.export(), shadow.shard.applied
        first = spec_of(replace(self._config, model=shadow.model), MAIN, epoch)
        dense = build_model(shadow.features, shadow.model).read_dense()
        for part in range(first.parts):
            shard = Shard(replace(first, part=part), dense if part == 0 else None)
            shard.load([arrays], meta)
            own, about = shard.export()
            snapshots.write_part(self._folder, MAIN, epoch, step, part, first.parts, own, about)

    def save(self, shadow: Shadow, lifecycle: Lifecycle) -> None:
        """Saves a snapshot after the last step it learned; once, if it doesn't learn."""
        step = shadow.shard.applied
        if step not in snapshots.complete_steps(self._folder, shadow.line, 0):
            update, meta = shadow.export()
            shadow.changes.written(write_line(self._folder, shadow.line, update, meta), meta)
            snapshots.prune(self._folder, shadow.line, _KEPT)
        self._hold(shadow, lifecycle)

    def _hold(self, shadow: Shadow, lifecycle: Lifecycle) -> None:
        """Holds the log at what the candidate, or the epoch that begins with it, would learn again."""
        name = f"{self._part}/{shadow.line}"
        steps = snapshots.complete_steps(self._folder, shadow.line, 0)
        oldest = min(steps, default=shadow.shard.applied)
        kept_epoch = lifecycle.candidates[shadow.line].kept_epoch
        if kept_epoch is not None:
            oldest = min([oldest, *snapshots.complete_steps(self._folder, MAIN, kept_epoch)[-1:]])
        lineage = Lineage(self._log, MAIN, lifecycle.lives)
        starts = starts_after(lineage, oldest)
        partitions = range(self._log.partitions(EXAMPLES))
        held = {p: self._log.holds(EXAMPLES, p).get(name, 0) for p in partitions}
        hold_available(self._log, name, EXAMPLES, held | starts)

    def drop(self, line: str) -> None:
        """Stops publishing a line, and releases its hold of the log."""
        self._publishing.discard(line)
        self._log.release(f"{self._part}/{line}", EXAMPLES)

    def remove(self, line: str) -> None:
        """Removes its snapshots, once."""
        if line not in self._removed:
            snapshots.remove(self._folder, line)
            self._removed.add(line)


def write_line(
    folder: Path, line: str, arrays: Mapping[str, NDArray[Any]] | Update, meta: Mapping[str, Any]
) -> Path:
    """Writes the snapshot of a line that has one shard; returns the folder of its part."""
    return snapshots.write_part(folder, line, 0, meta["step"], 0, 1, arrays, meta)
