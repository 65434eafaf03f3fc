"""Reads panels from the log: the newest examples before a step, the same ones again, and their corrections.
Examples of erased users are tombstones, and are omitted from the erasure request on."""

# N examples

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import numpy as np

from recsys.events.records import EXAMPLES, Step, unpack
from recsys.log.protocol import Log, LogLost, Record, read_range
from recsys.process.log_consumer import UNREADABLE, decoded
from training.forgetting.panels import LEAST, ROW, Panel
from training.joining.sampling import represented_examples
from training.steps.lineage import Lineage
from training.steps.step_reader import ExampleCheck, ServedExample, records_of

_STEPS: Final = 64  # step records read together
_MOST_STEPS: Final = 2_048  # that a panel may reach back
_LOOKED: Final = 8  # candidates per example of a panel, at most
CORRECTIONS: Final = 50_000  # newest records of a partition that are searched for corrections


class _Correction(msgspec.Struct):
    partition: int
    offset: int
    index: int
    labels: list[float]
    correction: bool = False


class LoggedPanel(NamedTuple):
    panel: Panel
    examples: list[ServedExample]  # in the order of the panel


_Placed = tuple[int, int, ServedExample]  # partition, offset
IsErased = Callable[[ServedExample], bool]  # whether its user asked for erasure


def read_newest(
    log: Log, lineage: Lineage, step: Step, count: int, check: ExampleCheck, is_erased: IsErased
) -> LoggedPanel:
    """Reads up to ``count`` newest examples learned by a step. Examples without a served prediction are used
    only if there are hardly any others. At most ``count`` of each kind are in memory. Raises LogLost."""
    served, unserved = list[_Placed](), list[_Placed]()
    backwards = (
        (past, partition, record)
        for past in _steps_before(lineage, step.step)
        for partition, record in reversed(records_of(log, past))
    )
    for past, partition, record in islice(backwards, _LOOKED * count):
        example = _read(record, check)
        if example is None or example.served_by in past.without or is_erased(example):
            continue
        same_kind = served if example.predicted else unserved
        if len(same_kind) < count:
            same_kind.append((partition, record.offset, example))
        if len(served) == count:
            break
    taken = served if len(served) >= min(LEAST, len(unserved)) else unserved
    taken = sorted(taken, key=lambda placed: placed[:2])
    rows_N = np.array([_row(*placed) for placed in taken], ROW)
    panel = Panel(lineage.epoch_of(step.step), step.step, step.time_ms, rows_N)
    return LoggedPanel(panel, [example for *_, example in taken])


def read_again(log: Log, panel: Panel, check: ExampleCheck, is_erased: IsErased) -> LoggedPanel:
    """Reads the examples of a panel that are still on the log."""
    present_N, examples = np.zeros(len(panel), np.bool_), list[ServedExample]()
    for partition in np.unique(panel.rows_N["partition"]):
        of_N = np.flatnonzero(panel.rows_N["partition"] == partition)
        places = {int(panel.rows_N["offset"][n]): int(n) for n in of_N}
        for record in _records(log, int(partition), min(places), 1 + max(places)):
            n = places.get(record.offset)
            example = None if n is None else _read(record, check)
            if example is not None and not is_erased(example):
                present_N[n] = True
                examples.append(example)
    return LoggedPanel(panel.only(present_N), examples)


class Corrections(NamedTuple):
    """``labels`` by example id; ``ends``: offsets to continue from; ``skipped``: records not searched."""

    labels: dict[tuple[int, int, int], list[float]]
    ends: dict[int, int]
    skipped: int


def read_corrections(log: Log, starts: dict[int, int], most: int = CORRECTIONS) -> Corrections:
    """Reads the corrections from some offsets on, in the ``most`` newest records of each partition."""
    labels, ends, skipped = dict[tuple[int, int, int], list[float]](), dict[int, int](), 0
    for partition, start in starts.items():
        ends[partition] = end = log.end(EXAMPLES, partition)
        start = max(start, log.begin(EXAMPLES, partition))
        skipped += max(0, end - most - start)
        records = _records(log, partition, max(start, end - most), end)
        for _, new in decoded(records, _Correction):
            if new.correction and new.labels:
                labels[new.partition, new.offset, new.index] = new.labels
    return Corrections(labels, ends, skipped)


def _steps_before(lineage: Lineage, step: int) -> Iterator[Step]:
    """Yields step records from a step backwards, reading blocks of them forwards."""
    for stop in range(step + 1, max(1, step + 1 - _MOST_STEPS), -_STEPS):
        steps = [lineage.record(number) for number in range(max(1, stop - _STEPS), stop)]
        yield from (past for past in reversed(steps) if past is not None)


def _records(log: Log, partition: int, start: int, stop: int) -> Iterator[Record]:
    """Yields the records in [start, stop) of a partition of ``examples`` that the log still has."""
    while (start := max(start, log.begin(EXAMPLES, partition))) < stop:
        try:
            for record in read_range(log, EXAMPLES, partition, start, stop):
                yield record
                start = record.offset + 1
            return
        except LogLost:  # retention passed it meanwhile
            if start >= log.begin(EXAMPLES, partition):
                raise


def _read(record: Record, check: ExampleCheck) -> ServedExample | None:
    """Decodes a usable example; None for a correction or anything else."""
    try:
        example = unpack(record.value, ServedExample)
    except UNREADABLE:
        return None
    return None if example.correction or check.reason(example) else example


def _row(partition: int, offset: int, example: ServedExample) -> tuple[float, ...]:
    predicted, labels = example.predicted, example.labels
    served = np.frombuffer(predicted, np.float32, 1)[0] if predicted else np.nan
    weight = represented_examples(labels, example.sampling_rate, example.sampled_out)
    return (partition, offset, example.offset, example.index, labels[0], weight, served, np.nan)
