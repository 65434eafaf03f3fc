"""The shadow's side of unlearning on a running system: the replay (training/deletion/live_unlearning.py)."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from safetensors import SafetensorError

from experiments.promotion.epoch_model import features_of, with_size
from experiments.promotion.lifecycle import Lifecycle
from experiments.promotion.unlearning_requests import ASSIGNED, REFUSED, REPLAYED, REPLAYING
from parameter_server.storage import snapshots
from recsys.clock import timer_of
from recsys.config.system_config import Config
from recsys.events.control_records import Unlearning
from recsys.events.records import EXAMPLES
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost
from recsys.process.log_consumer import hold_available
from training.deletion.live_unlearning import append_progress
from training.deletion.log_without import LogWithout, Users, end_marks
from training.deletion.unlearn import Replay, find_start
from training.lines.line import MAIN
from training.steps.lineage import CAUGHT_UP, Lineage, ancestors, newest_step, starts_after
from training.steps.sequencer_loop import last_position

HOLDER: Final = "unlearning"
_LOOK_EVERY_MS: Final = 1_000  # for the ends of the examples that are left out
_SAVE_EVERY: Final = 5_000  # steps, after which a killed replay goes on from there
_LOG: Final = logging.getLogger(__name__)


class LiveReplay:
    """The shadow's part. ``turn`` learns some steps; ``clock``: milliseconds."""

    def __init__(self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int]) -> None:
        self._log, self._config, self._features, self._clock = log, config, features, clock
        self._folder = Path(config.state) / "snapshots"
        self._version = ("", 0)  # id and epoch of the request that is replayed
        self._replay: Replay | None = None
        self._holds = True  # perhaps since before a restart
        self._due_ms = self._saved = 0
        self.behind = 0  # steps to replay

    def turn(self, lifecycle: Lifecycle) -> int:
        """Advances the pending request, if any; returns the number of steps and records."""
        request, live = lifecycle.unlearnings.pending, lifecycle.live
        if request is None or request.state not in (ASSIGNED, REPLAYING):
            self._end()
            return 0
        if self._version != (request.id, request.epoch):
            self._version, self._replay = (request.id, request.epoch), None
        if live is None or live.epoch != request.parent_epoch:  # it is assigned again
            return 0
        try:
            if self._replay is None:
                return self._begin(request, lifecycle)
            return self._advance(request, self._replay)
        except OSError as error:  # a full disk, an unavailable folder: it may recover
            _LOG.warning("unlearning waits: %s", error)
            return 0
        except (LookupError, LogLost, SafetensorError, ValueError) as error:
            _LOG.error("unlearning is refused: %s", error)
            snapshots.remove_where(self._folder, MAIN, lambda epoch, _: epoch == request.epoch)
            return self._report(request, REFUSED, why=str(error))

    def _begin(self, request: Unlearning, lifecycle: Lifecycle) -> int:
        """Finds where to start; the snapshot found becomes the new epoch's, so that pruning spares it."""
        if request.state == ASSIGNED:
            if timer_of(self._clock)() < self._due_ms:
                return 0
            self._due_ms = timer_of(self._clock)() + _LOOK_EVERY_MS
            if not are_cut(self._log, request.users, lifecycle, request.parent_epoch):
                return 0
        view = LogWithout(self._log, [*lifecycle.unlearnings.done, request])
        if request.state == ASSIGNED:
            begins = dict.fromkeys(range(self._log.partitions(EXAMPLES)), 0)
            self._holds = True
            hold_available(self._log, HOLDER, EXAMPLES, begins)  # nothing is erased meanwhile
            start = find_start(view, self._config, self._features, lifecycle, request)
            if start is None:
                return self._report(request, REPLAYED)
            if start.snapshot is not None:
                version = (start.snapshot.epoch, start.base_step)
                snapshots.adopt(self._folder, MAIN, version, request.epoch)
            lineage = Lineage(self._log, MAIN, lifecycle.lives)
            hold_available(self._log, HOLDER, EXAMPLES, starts_after(lineage, start.base_step))
            progress = {"base_step": start.base_step, "first": start.first, "size": start.size}
            self._report(request, REPLAYING, step=start.history.last, **progress)
            request = msgspec.structs.replace(request, size=start.size)
        config = with_size(self._config, request.size)
        snapshot = snapshots.latest(self._folder, MAIN, request.epoch).snapshot
        features = features_of(self._features, request.size)
        self._replay = Replay(view, config, features, lifecycle.lives, snapshot)
        self._saved = self._replay.step
        return 1

    def _advance(self, request: Unlearning, replay: Replay) -> int:
        moved = replay.turn()
        newest = newest_step(self._log, MAIN, request.parent_epoch)
        self.behind = max(newest, request.step) - replay.step
        if replay.step >= request.step and self.behind <= CAUGHT_UP:
            replay.write(self._folder, request.epoch)
            digest = f"SHA-256 {replay.digest()}"
            moved += self._report(request, REPLAYED, step=replay.step, why=digest)
        elif replay.step >= self._saved + _SAVE_EVERY:
            replay.write(self._folder, request.epoch)
            self._saved = replay.step
        return moved

    def _report(self, request: Unlearning, state: str, **changes: object) -> int:
        return append_progress(self._log, request, state, self._clock(), **changes)

    def _end(self) -> None:
        if self._holds:
            self._log.release(HOLDER, EXAMPLES)
        self._holds, self._replay, self.behind = False, None, 0


def are_cut(log: Log, users: Users, lifecycle: Lifecycle, epoch: int) -> bool:
    """Whether steps hold all examples that are left out: the joiner has passed the users' removals or
    withdrawals, which its marks tell, and the sequencer these."""
    ends, missing = dict[int, int](), set(users)
    for partition, record, _ in end_marks(log, users):
        missing.discard(record.key.decode())
        ends[partition] = max(record.offset + 1, ends.get(partition, 0))
    if missing:
        return False
    lived = ancestors(lifecycle.lives, epoch)
    offsets = last_position(log, MAIN, epoch, log.partitions(EXAMPLES), lived).offsets
    return all(offsets.get(partition, 0) >= end for partition, end in ends.items())
