"""Records that move the live pointer: a candidate's first epoch, and the way back to before a promotion."""

from collections.abc import Callable
from pathlib import Path

from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.storage import snapshots
from recsys.events.control_records import Live
from recsys.events.records import EXAMPLES
from recsys.log.protocol import Log
from training.lines.line import MAIN
from training.steps.lineage import Lineage, last_steps, starts_after


class RollbackImpossible(ValueError):
    """Live can't be rolled back, with the reason."""


class LivePointer:
    """Makes live records. ``folder``: of snapshots. ``lifecycle`` is folded by the caller."""

    def __init__(self, log: Log, folder: Path, lifecycle: Lifecycle, clock: Callable[[], int]) -> None:
        self._log, self._folder, self._lifecycle, self._clock = log, folder, lifecycle, clock
        # Number of live records, and an epoch made for a rollback while there were so many.
        self._adopted: tuple[int, int] | None = None

    def first_of(self, state: LineState, guarded: bool) -> Live | None:
        """The live record of a line that takes over, once the first snapshot of its epoch is written."""
        steps = snapshots.complete_steps(self._folder, MAIN, state.epoch)
        if not steps:
            return None
        snapshots.sync_snapshot(self._folder, MAIN, state.epoch, steps[-1])
        live = self._lifecycle.live
        return Live(
            line=MAIN, epoch=state.epoch, reason=state.why, time_ms=self._clock(), base_step=steps[-1],
            parent_epoch=live.epoch if live else 0, candidate=state.line, size=state.candidate.size,
            guarded=guarded,
        )  # fmt: skip

    def back(self, why: str) -> Live:
        """The live record before the newest promotion. Raises RollbackImpossible, NoSnapshot, OSError."""
        lives = self._lifecycle.lives
        if not lives or not lives[-1].candidate:
            began = f", and it began with: {lives[-1].reason}" if lives[1:] else ""
            raise RollbackImpossible(f"only a promotion can be taken back{began}")
        before = lives[-2].epoch
        steps = snapshots.complete_steps(self._folder, MAIN, before)
        if not steps:
            raise RollbackImpossible(f"no snapshot of epoch {before} is left")
        self._check_available(before, steps[-1])
        # Until it is live: a retry after a log failure makes no second one.
        made = self._adopted
        epoch = made[1] if made and made[0] == len(lives) else self.next_epoch()
        snapshots.adopt(self._folder, MAIN, (before, steps[-1]), epoch)
        self._adopted = (len(lives), epoch)
        return Live(
            line=MAIN, epoch=epoch, reason=why, time_ms=self._clock(), base_step=steps[-1],
            parent_epoch=before, size=self._lifecycle.size(MAIN, before),
        )  # fmt: skip

    def _check_available(self, epoch: int, since: int) -> None:
        """Raises RollbackImpossible if the log no longer has the examples to learn again."""
        lives = [live for live in self._lifecycle.lives if live.epoch <= epoch]
        starts = starts_after(Lineage(self._log, MAIN, lives), since)
        gone = {p for p, start in starts.items() if start < self._log.begin(EXAMPLES, p)}
        if gone:
            raise RollbackImpossible(
                f"the log no longer has the examples after step {since} of epoch {epoch} (partitions "
                f"{sorted(gone)})"
            )

    def next_epoch(self) -> int:
        """An epoch number that was never written."""
        used = [live.epoch for live in self._lifecycle.lives]
        used += [state.epoch for state in self._lifecycle.candidates.values()]
        used += self._lifecycle.unlearnings.epochs
        used += [step.epoch for step in last_steps(self._log)]
        return 1 + max([*used, *snapshots.epochs(self._folder, MAIN)])
