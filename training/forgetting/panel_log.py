"""Panels on the log: the newest examples before a step, the same ones again, and what came to correct them.

A panel is places, so it has what the log has: who is erased is an empty place here too, and who has asked for
it is left out before that.
"""

# N examples

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import numpy as np

from recsys.events.hashing import Id
from recsys.events.records import EXAMPLES, Step, TrainingExample, unpack
from recsys.log.protocol import Log, LogLost, Record, read_range
from recsys.process.log_consumer import UNREADABLE
from training.forgetting.panels import LEAST, ROW, Panel
from training.joining.sampling import represented_examples
from training.steps.lineage import Lineage
from training.steps.step_reader import ExampleCheck, records_of

_STEPS: Final = 64  # step records looked at together
_MOST_STEPS: Final = 2_048  # that a panel may reach back
_LOOKED: Final = 8  # examples that are looked at for each one of a panel, at most
CORRECTIONS: Final = 50_000  # newest records of a partition that are looked through for corrections
# A field of MessagePack that is true: what has it isn't decoded for nothing.
_CORRECTION: Final = b"\xaacorrection\xc3"


class PanelExample(TrainingExample, kw_only=True):
    """What is read of an example of a panel."""

    user_id: Id = ""
    predicted: bytes = b""


class _Corrected(msgspec.Struct):
    partition: int
    offset: int
    index: int
    labels: list[float]
    correction: bool = False


class Found(NamedTuple):
    panel: Panel
    examples: list[PanelExample]  # in the order of the panel


_Placed = tuple[int, int, PanelExample]  # partition, offset
Gone = Callable[[PanelExample], bool]  # whether its user has asked to be forgotten


def newest(
    log: Log, lineage: Lineage, step: Step, wanted: int, check: ExampleCheck, gone: Gone
) -> Found:
    """The newest ``wanted`` examples that were learned up to a step, or fewer. Those of which nothing was
    said when they were served are taken where there are hardly any others. Of each kind no more than these
    are in memory. Raises LogLost."""
    said, unsaid = list[_Placed](), list[_Placed]()
    back = (
        (its, partition, record)
        for its in _back_from(lineage, step.step)
        for partition, record in reversed(records_of(log, its))
    )
    for its, partition, record in islice(back, _LOOKED * wanted):
        example = _read(record, check)
        if example is None or example.served_by in its.without or gone(example):
            continue
        found = said if example.predicted else unsaid
        if len(found) < wanted:
            found.append((partition, record.offset, example))
        if len(said) == wanted:
            break
    taken = said if len(said) >= min(LEAST, len(unsaid)) else unsaid
    taken = sorted(taken, key=lambda its: its[:2])
    rows_N = np.array([_row(*its) for its in taken], ROW)
    panel = Panel(lineage.epoch_of(step.step), step.step, step.time_ms, rows_N)
    return Found(panel, [example for *_, example in taken])


def again(log: Log, panel: Panel, check: ExampleCheck, gone: Gone) -> Found:
    """A panel as it is on the log by now."""
    there_N, examples = np.zeros(len(panel), np.bool_), list[PanelExample]()
    for partition in np.unique(panel.rows_N["partition"]):
        of_N = np.flatnonzero(panel.rows_N["partition"] == partition)
        places = {int(panel.rows_N["offset"][n]): int(n) for n in of_N}
        for record in _records(log, int(partition), min(places), 1 + max(places)):
            n = places.get(record.offset)
            example = None if n is None else _read(record, check)
            if example is not None and not gone(example):
                there_N[n] = True
                examples.append(example)
    return Found(panel.only(there_N), examples)


class Came(NamedTuple):
    """Corrections. ``labels``: those of each example, by its id. ``ends``: the offsets to go on from.
    ``skipped``: records that weren't looked through, since there were too many."""

    labels: dict[tuple[int, int, int], list[float]]
    ends: dict[int, int]
    skipped: int


def corrections(log: Log, starts: dict[int, int], most: int = CORRECTIONS) -> Came:
    """What was corrected from these offsets on. Of each partition the newest ``most`` records are looked
    through at most."""
    found, ends, skipped = dict[tuple[int, int, int], list[float]](), dict[int, int](), 0
    for partition, start in starts.items():
        ends[partition] = end = log.end(EXAMPLES, partition)
        start = max(start, log.begin(EXAMPLES, partition))
        skipped += max(0, end - most - start)
        for record in _records(log, partition, max(start, end - most), end):
            if _CORRECTION in record.value:
                with suppress(*UNREADABLE):
                    its = unpack(record.value, _Corrected)
                    if its.correction and its.labels:
                        found[its.partition, its.offset, its.index] = its.labels
    return Came(found, ends, skipped)


def _back_from(lineage: Lineage, step: int) -> Iterator[Step]:
    """Step records from a step on backwards; they are read forwards, some at a time."""
    for stop in range(step + 1, max(1, step + 1 - _MOST_STEPS), -_STEPS):
        found = [lineage.record(number) for number in range(max(1, stop - _STEPS), stop)]
        yield from (its for its in reversed(found) if its is not None)


def _records(log: Log, partition: int, start: int, stop: int) -> Iterator[Record]:
    """What the log still has of [start, stop) of a partition of ``examples``."""
    while (start := max(start, log.begin(EXAMPLES, partition))) < stop:
        try:
            for record in read_range(log, EXAMPLES, partition, start, stop):
                yield record
                start = record.offset + 1
            return
        except LogLost:  # retention passed it meanwhile
            if start >= log.begin(EXAMPLES, partition):
                raise


def _read(record: Record, check: ExampleCheck) -> PanelExample | None:
    """An example that can be learned from, and is no correction; None for anything else."""
    try:
        example = unpack(record.value, PanelExample)
    except UNREADABLE:
        return None
    return None if example.correction or check.reason(example) else example


def _row(partition: int, offset: int, its: PanelExample) -> tuple[float, ...]:
    said = np.frombuffer(its.predicted, np.float32, 1)[0] if its.predicted else np.nan
    weight = represented_examples(its.labels, its.kept, its.sampled_out)
    return (partition, offset, its.offset, its.index, its.labels[0], weight, said, np.nan)
