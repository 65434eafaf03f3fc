"""Unlearns users or rewinds while the system runs: a replay beside the live line, then swapped in.

The request is a record of ``control``. The director assigns an epoch; the shadow part replays the history
without what the request leaves out until it has nearly caught up, and writes the epoch's first snapshot; the
director moves the live pointer; the sequencer writes the remaining steps again, and the workers go on. These
hold no example that is left out, since the replay waits for the joiner's marks (``Forget``, ``Withdrawn``),
which follow the last one of each user. Once the epoch publishes, the director removes what was replaced. Each
state is on the log: whoever was killed goes on. This module is the director's side, without a model; the
shadow's is live_replay.py.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from experiments.promotion.lifecycle import Lifecycle
from experiments.promotion.unlearning_requests import ASKED, ASSIGNED, DONE, REPLAYED
from parameter_server.storage import snapshots
from recsys.config.system_config import Config
from recsys.events.control_records import Live, Unlearning
from recsys.events.records import DELTAS, STEPS, Range, Step
from recsys.log.protocol import Log, newest_first
from recsys.process.log_consumer import decoded
from training.deletion.removal import erase_examples, remove_ended_lines, remove_replaced
from training.lines.control import append_control, append_live_record
from training.lines.line import MAIN
from training.steps.delta_reader import DeltaVersion
from training.steps.lineage import ancestors


class UnlearningDirector:
    """The director's part: ``turn`` appends at most one record, and the live record among them."""

    def __init__(self, log: Log, config: Config, clock: Callable[[], int]) -> None:
        self._log, self._state, self._clock = log, Path(config.state), clock

    def turn(self, lifecycle: Lifecycle, next_epoch: Callable[[], int]) -> int:
        """Advances the pending request, if any; returns the number of records appended."""
        request, live = lifecycle.unlearnings.pending, lifecycle.live
        if request is None or live is None:
            return 0
        if request.epoch in {record.epoch for record in lifecycle.lives} - {0}:
            return self._finish(request, lifecycle)
        if request.state == REPLAYED and not request.first:  # nothing was learned from them
            return self._close(request)
        if request.state == ASKED or live.epoch != request.parent_epoch:
            assigned = {"epoch": next_epoch(), "parent_epoch": live.epoch}
            return append_progress(self._log, request, ASSIGNED, self._clock(), **assigned)
        if request.state != REPLAYED:
            return 0
        snapshots.sync_snapshot(self._state / "snapshots", MAIN, request.epoch, request.step)
        append_live_record(
            self._log, MAIN, request.epoch, reason_of(request), self._clock(), request.step,
            live.epoch, request.size,
        )  # fmt: skip
        return 1

    def tidy(self, lifecycle: Lifecycle) -> None:
        """Removes snapshots that a retiring shard wrote after its epoch was replaced."""
        remove_replaced(self._state, lifecycle)

    def _finish(self, request: Unlearning, lifecycle: Lifecycle) -> int:
        """Removes what was replaced, once no worker learns in the epochs before."""
        first = first_delta(self._log, request.epoch)
        if first is None:
            return 0
        remove_replaced(self._state, lifecycle, [(request.epoch, request.first)])
        remove_ended_lines(self._state, lifecycle)
        self._log.trim(DELTAS, 0, first)
        return self._close(request)

    def _close(self, request: Unlearning) -> int:
        erase_examples(self._log, str(self._state), request)
        return append_progress(self._log, request, DONE, self._clock())


def append_progress(log: Log, request: Unlearning, state: str, time_ms: int, **changes: object) -> int:
    """Appends the next state of a request, one record; only the first record names its users."""
    progress = msgspec.structs.replace(request, state=state, users={}, time_ms=time_ms, **changes)
    return len(append_control(log, progress))


def reason_of(request: Unlearning) -> str:
    """Reason of the live record."""
    count = len(request.users)
    if request.rewind_ms:
        without = f" without events of {count} users" if count else ""
        without = " without what came after it" if request.left_out else without
        moment = datetime.fromtimestamp(request.rewind_ms / 1000, UTC).isoformat(" ", "seconds")
        return f"rewound to {moment}{without}"
    return "a user was unlearned" if count == 1 else f"{count} users were unlearned"


def ranges_since(log: Log, lives: Sequence[Live], since_ms: int) -> list[Range]:
    """Examples of the live line's steps since a time, at most one range of each partition."""
    lived, ranges = ancestors(lives, lives[-1].epoch), dict[int, Range]()
    for _, step in decoded(newest_first(log, STEPS, 0), Step):
        if step.line != MAIN or step.epoch not in lived:
            continue
        if step.time_ms < since_ms:
            break
        for part in step.ranges:
            stop = max(part.stop, ranges.get(part.partition, part).stop)
            ranges[part.partition] = Range(part.partition, part.start, stop)
    return [ranges[partition] for partition in sorted(ranges)]


def first_delta(log: Log, epoch: int) -> int | None:
    """Offset of the first delta of the live line in an epoch or a later one; None before it."""
    first = None
    for record, delta in decoded(newest_first(log, DELTAS, 0), DeltaVersion):
        if delta.line == MAIN:
            if delta.epoch < epoch:
                break
            first = record.offset
    return first
