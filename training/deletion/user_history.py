"""The steps that led to where a line is, and from which of them on an example may be a certain user's.

An epoch's records replace those of earlier ones from its first step on. Epochs that never came to be live are
no part of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from recsys.events.records import STEPS, Step
from recsys.log.protocol import Log
from recsys.process.log_consumer import readable
from training.lines.live_epoch import live_epochs
from training.steps.step_reader import StepReader


class CantUnlearn(ValueError):
    """History can't be repeated from before the user's first example; says what still can be done."""


@dataclass
class Past:
    """``firsts``: the first step of each epoch that was live. ``touching``: of each of them, the first step
    with a place at or after the wanted one. ``holding``: (epoch, step) of places that no replay may pass."""

    line: str
    epoch: int
    firsts: dict[int, int] = field(default_factory=dict)
    touching: dict[int, int] = field(default_factory=dict)
    holding: list[tuple[int, int]] = field(default_factory=list)
    last: int = 0
    newest_epoch: int = 0  # of any record, also of one that never came to be live

    @staticmethod
    def read(log: Log, line: str, wanted: tuple[int, int], fixed: Mapping[int, int]) -> "Past":
        """Reads all step records. ``wanted``: the (partition, offset) from which on an example may be the
        user's. ``fixed``: by partition, the last offset that must not be learned a second time."""
        lived = live_epochs(log, line)
        past, (partition, offset) = Past(line, lived[-1]), wanted
        for step in readable(log, STEPS, Step):
            if step.line != line:
                continue
            past.newest_epoch = max(past.newest_epoch, step.epoch)
            if step.epoch not in lived:
                continue
            past.firsts.setdefault(step.epoch, step.step)
            if step.epoch == past.epoch:
                past.last = step.step
            for its in step.ranges:
                if its.partition == partition and offset < its.stop:
                    past.touching.setdefault(step.epoch, step.step)
                if its.start <= fixed.get(its.partition, -1) < its.stop:
                    past.holding.append((step.epoch, step.step))
        return past

    def replaced_from(self, epoch: int) -> int:
        """The first step of an epoch that a later one has replaced."""
        return min((s for e, s in self.firsts.items() if e > epoch), default=self.last + 1)

    def first_step(self) -> int | None:
        """The step with the first example that may be the user's, in the history as it is now; None where no
        step has one."""
        found = [s for e, s in self.touching.items() if s < self.replaced_from(e)]
        return min(found, default=None)

    def fixed_step(self) -> int:
        """The last step that must not be learned a second time; 0 where there is none."""
        return max((s for e, s in self.holding if s < self.replaced_from(e)), default=0)

    def records(self, log: Log, after: int) -> Iterator[Step]:
        """The records of the steps after ``after``, in order; empty ones where they can't be read."""
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
