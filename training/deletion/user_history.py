"""The steps in a line's history, and the first of them that may contain an example of a certain user. An
epoch's records replace those of earlier epochs from its first step on; epochs that never were live don't
count."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from recsys.events.records import STEPS, Step
from recsys.log.protocol import Log
from recsys.process.log_consumer import readable
from training.lines.control import live_epochs
from training.steps.step_reader import StepReader


class CantUnlearn(ValueError):
    """History can't be replayed from before the user's first example; the text names the alternatives."""


@dataclass
class UserHistory:
    """``firsts``: the first step of each epoch that was live. ``touching``: for each of them, the first step
    with an offset at or after the wanted one. ``fixed``: (epoch, step) that no replay may repeat."""

    line: str
    epoch: int
    firsts: dict[int, int] = field(default_factory=dict)
    touching: dict[int, int] = field(default_factory=dict)
    fixed: list[tuple[int, int]] = field(default_factory=list)
    last: int = 0
    newest_epoch: int = 0  # of any record, live or not

    @staticmethod
    def read(
        log: Log, line: str, wanted: tuple[int, int], fixed: Mapping[int, int]
    ) -> "UserHistory":
        """Reads all step records. ``wanted``: the (partition, offset) from which on an example may be the
        user's. ``fixed``: by partition, the last offset that must not be learned again."""
        lived = live_epochs(log, line)
        history, (partition, offset) = UserHistory(line, lived[-1]), wanted
        for step in readable(log, STEPS, Step):
            if step.line != line:
                continue
            history.newest_epoch = max(history.newest_epoch, step.epoch)
            if step.epoch not in lived:
                continue
            history.firsts.setdefault(step.epoch, step.step)
            if step.epoch == history.epoch:
                history.last = step.step
            for part in step.ranges:
                if part.partition == partition and offset < part.stop:
                    history.touching.setdefault(step.epoch, step.step)
                if part.start <= fixed.get(part.partition, -1) < part.stop:
                    history.fixed.append((step.epoch, step.step))
        return history

    def replaced_from(self, epoch: int) -> int:
        """The first step of an epoch that a later epoch replaces."""
        return min((s for e, s in self.firsts.items() if e > epoch), default=self.last + 1)

    def first_step(self) -> int | None:
        """The first step of the history with an example that may be the user's; None if there is none."""
        steps = [s for e, s in self.touching.items() if s < self.replaced_from(e)]
        return min(steps, default=None)

    def fixed_step(self) -> int:
        """The last step that must not be learned again; 0 if there is none."""
        return max((s for e, s in self.fixed if s < self.replaced_from(e)), default=0)

    def records(self, log: Log, after: int) -> Iterator[Step]:
        """Yields the records of the steps after ``after``, in order; empty steps for unreadable records."""
        for epoch in sorted(self.firsts):
            reader = StepReader(log, self.line, epoch)
            for number in range(max(after + 1, self.firsts[epoch]), self.replaced_from(epoch)):
                step = reader.record(number)
                if step is None:
                    raise CantUnlearn(
                        f"step {number} of line {self.line}, epoch {epoch}, has no record on the log: it "
                        "can't be learned again. Bring the topic steps back as it was"
                    )
                yield step
