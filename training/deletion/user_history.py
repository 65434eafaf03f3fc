"""The steps in a line's history, and the first of them that may contain an example of certain users, or that
has one of a certain time. An epoch's steps replace those of earlier epochs from its first step on; epochs
that never were live or were rolled back don't count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from recsys.events.control_records import Live
from recsys.events.records import STEPS, Step
from recsys.log.protocol import Log
from recsys.process.log_consumer import readable
from training.steps.lineage import Lineage


class CantUnlearn(ValueError):
    """History can't be replayed from before the users' first example; the text names the alternatives."""


@dataclass
class UserHistory:
    """``lives``: the line's live records. ``firsts``: the first step of the live epoch and its ancestors.
    ``touching``: for each of them, the first step that is wanted. ``fixed``:
    (epoch, step) that no replay may repeat."""

    line: str
    lives: Sequence[Live]
    firsts: dict[int, int]
    touching: dict[int, int] = field(default_factory=dict)
    fixed: list[tuple[int, int]] = field(default_factory=list)
    last: int = 0
    newest_epoch: int = 0  # of any record, live or not

    @staticmethod
    def read(
        log: Log,
        line: str,
        lives: Sequence[Live],
        wanted: Mapping[int, int],
        fixed: Mapping[int, int],
        rewind_ms: int = 0,
    ) -> "UserHistory":
        """Reads all step records. ``wanted``: by partition, the offset from which on an example may be the
        users'. ``fixed``: by partition, the last offset that must not be learned again. ``rewind_ms``: from
        which time on all steps are wanted; 0: by ``wanted`` alone."""
        bases = Lineage(log, line, lives).bases
        firsts = {epoch: step + 1 for epoch, step in bases.items()}
        history = UserHistory(line, lives, firsts)
        history.last = firsts[history.epoch] - 1
        for step in readable(log, STEPS, Step):
            if step.line != line:
                continue
            history.newest_epoch = max(history.newest_epoch, step.epoch)
            if step.epoch not in firsts:
                continue
            if step.epoch == history.epoch:
                history.last = max(history.last, step.step)
            if 0 < rewind_ms <= step.time_ms:
                history.touching.setdefault(step.epoch, step.step)
            for part in step.ranges:
                if part.partition in wanted and wanted[part.partition] < part.stop:
                    history.touching.setdefault(step.epoch, step.step)
                if part.start <= fixed.get(part.partition, -1) < part.stop:
                    history.fixed.append((step.epoch, step.step))
        return history

    @property
    def epoch(self) -> int:
        """The live epoch."""
        return max(self.firsts)

    def replaced_from(self, epoch: int) -> int:
        """The first step of an epoch that a later epoch replaces."""
        return min((s for e, s in self.firsts.items() if e > epoch), default=self.last + 1)

    def first_step(self) -> int | None:
        """The first step of the history that is wanted; None if there is none."""
        steps = [s for e, s in self.touching.items() if s < self.replaced_from(e)]
        return min(steps, default=None)

    def fixed_step(self) -> int:
        """The last step that must not be learned again; 0 if there is none."""
        return max((s for e, s in self.fixed if s < self.replaced_from(e)), default=0)

    def records(self, log: Log, after: int) -> Iterator[Step]:
        """Yields the records of the steps after ``after``, in order; empty steps for unreadable records."""
        lineage = Lineage(log, self.line, self.lives)
        for number in range(after + 1, self.last + 1):
            step = lineage.record(number)
            if step is None:
                raise CantUnlearn(
                    f"step {number} of line {self.line}, epoch {lineage.epoch_of(number)}, has no record on "
                    "the log: it can't be learned again. Bring the topic steps back as it was"
                )
            yield step
