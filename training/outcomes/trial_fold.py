"""Outcomes of one experiment, folded from the log: exposures from ``events``, the shown from ``examples``.

A user is exposed by the first impression whose stamp has the arm, also where nothing of it was shown. What
was shown, and done, is told by examples: the joiner decides once for all what counts, and corrects it. An
item counts once its window is over, so that what takes long isn't missed in the newest. Watch time is that
of when its example was first told.
"""

# N rows, S sums

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from experiments.assignment.assignment import assign
from experiments.assignment.definition import Experiment
from experiments.assignment.design import Ramp
from experiments.statistics.outcomes import NOBODY
from experiments.statistics.readout import Readout, outcomes_for, ratio_of, readout
from recsys.config.system_config import Config
from recsys.events.event_types import Stamp
from recsys.events.hashing import Id, key_of
from recsys.events.records import EVENTS, EXAMPLES
from recsys.log.protocol import Log, LogLost
from recsys.process.log_consumer import UNREADABLE, Consumer
from training.lines.offset_lookup import first_at, served_ms_of
from training.outcomes.shown_item import closed_ms_of, read_shown, values_of

BEFORE_MS: Final = 7 * 86_400_000  # what is a covariate: a week before it began
_READ: Final = 1_000
_MARGIN_MS: Final = 60_000  # records of one partition come nearly in the order of their times
_MOST_NAMED: Final = 10_000  # misassigned users that are told apart


class _Impression(msgspec.Struct, tag="impression", tag_field="type"):
    user_id: Id
    time_ms: int
    surface: str = "feed"
    stamp: Stamp | None = None


class _Row(NamedTuple):
    user: int
    arm: int
    shown_ms: int
    values: list[float]


class TrialFold:
    """Reads on in turns. ``started_ms``: when the experiment began; a week before it is read, too.

    ``complete``: whether the log still had all of it. ``segments``: surfaces, by their numbers.
    """

    def __init__(
        self,
        log: Log,
        config: Config,
        labels: Sequence[str],
        experiment: Experiment,
        started_ms: int,
        most_users: int = 200_000,
    ) -> None:
        self._log, self._labels = log, tuple(labels)
        self.experiment = experiment
        self.outcomes = outcomes_for(experiment, labels, most_users)
        self.segments: list[str] = []
        self.unreadable = 0
        self._all = replace(experiment, traffic=1 - experiment.offset, ramp=Ramp())
        self._whole = replace(experiment, ramp=Ramp())
        self._arms = {arm.name: number for number, arm in enumerate(experiment.arms)}
        self._misassigned: set[int] = set()
        self._ratio = 1.0
        self._window_ms = int(config.join.window_s * 1000)
        self._from_ms = started_ms - BEFORE_MS
        self.complete = True
        self._events = self._consumer(EVENTS, started_ms, served_ms_of)
        self._examples = self._consumer(EXAMPLES, self._from_ms, closed_ms_of)
        self._waiting: dict[int, list[_Row]] = {}
        self._newest: dict[int, int] = {}

    @property
    def misassigned(self) -> int:
        """Users whose arm isn't the one that the hash gives them (10,000 are told apart at the most)."""
        return len(self._misassigned)

    @property
    def waiting(self) -> int:
        """Shown items whose window isn't over."""
        return sum(map(len, self._waiting.values()))

    @property
    def until_ms(self) -> int:
        """Event time up to which examples were read; 0 where there were none."""
        return max(self._newest.values(), default=0)

    def read(self, polls: int = 20) -> int:
        """Takes what is new; returns how many records that were. At most so many ``polls`` of each topic, for
        whoever has other things to look at.

        There are far more events than examples, and an item of a user whose exposure wasn't read counts for
        nobody. So examples wait until all events are read that were there when this call began, and what
        they show until all are that were there when they were read.
        """
        ends = self._ends()
        moved = self._read_events(polls)
        if self._has_read(ends):
            self._settle()
            read = self._read_examples(polls)
            if read and self._ends() == ends:
                self._settle()
            moved += read
        if moved:
            self._ratio = ratio_of(self.experiment, self.outcomes, self._ratio).p
        return moved

    def _read_events(self, polls: int) -> int:
        moved = 0
        for _ in range(polls):
            records = self._poll(EVENTS)
            if not records:
                break
            moved += len(records)
            self._expose([record.value for _, record in records])
        return moved

    def _read_examples(self, polls: int) -> int:
        moved = 0
        for _ in range(polls):
            records = self._poll(EXAMPLES)
            if not records:
                break
            moved += len(records)
            for partition, record in records:
                self._take(partition, record.value)
        return moved

    def _ends(self) -> dict[int, int]:
        return {p: self._log.end(EVENTS, p) for p in self._events.offsets}

    def _has_read(self, ends: dict[int, int]) -> bool:
        """Whether all events before these offsets are read."""
        return all(self._events.offsets[p] >= end for p, end in ends.items())

    def readout(self, parts: bool = True) -> Readout:
        """As of what was read. ``parts``: with days and segments."""
        return readout(
            self.experiment, self.outcomes, self._labels, until_ms=self.until_ms,
            segments=self.segments, misassigned=self.misassigned, ratio_before=self._ratio,
            parts=parts,
        )  # fmt: skip

    def _consumer(self, topic: str, from_ms: int, time_of: Any) -> Consumer:
        places = {}
        for partition in range(self._log.partitions(topic)):
            begin = self._log.begin(topic, partition)
            places[partition] = first_at(self._log, topic, partition, from_ms - _MARGIN_MS, time_of)
            if topic == EVENTS and begin > 0 and places[partition] == begin:
                self.complete = False
        return Consumer(self._log, topic, list(places), places)

    def _poll(self, topic: str) -> list[Any]:
        its = self._events if topic == EVENTS else self._examples
        try:
            return its.poll(_READ)
        except LogLost:  # retention was quicker: go on with what is left
            self.complete = False
            for partition, offset in its.offsets.items():
                its.offsets[partition] = max(offset, self._log.begin(topic, partition))
            return its.poll(_READ)

    def _expose(self, values: Sequence[bytes]) -> None:
        users, arms, times, segments = list[int](), list[int](), list[int](), list[int]()
        for value in values:
            try:
                its: Any = _impression.decode(value)
            except UNREADABLE:  # mostly another kind of event
                continue
            name = its.stamp.arms.get(self.experiment.name) if its.stamp is not None else None
            if name is None or name not in self._arms:
                continue
            user = key_of("user", its.user_id)
            expected = assign(its.user_id, self._all)
            wrong = expected is None or expected.name != name
            if wrong and len(self._misassigned) < _MOST_NAMED:
                self._misassigned.add(user)
            users.append(user)
            arms.append(self._arms[name])
            times.append(its.time_ms)
            segments.append(self._segment(its.surface))
        self.outcomes.expose(_ints(users), _ints(arms), _ints(times), _ints(segments))

    def _take(self, partition: int, value: bytes) -> None:
        its = read_shown(value)
        if its is None:  # an empty place, or nothing that can be read: a worker answers for that
            self.unreadable += 1
            return
        self._newest[partition] = max(self._newest.get(partition, 0), its.closed_ms)
        name = its.stamp.arms.get(self.experiment.name) if its.stamp is not None else None
        arm = self._arms.get(name, NOBODY) if name is not None else NOBODY
        # Of who isn't in the experiment, and never will be, nothing is held.
        if arm == NOBODY and assign(its.user_id, self._whole) is None:
            return
        values = values_of(its, self.outcomes.sums, self._labels)
        row = _Row(key_of("user", its.user_id), arm, its.shown_ms, values)
        self._waiting.setdefault(partition, []).append(row)

    def _settle(self) -> None:
        for partition, rows in self._waiting.items():
            until_ms = self._newest.get(partition, 0) - self._window_ms
            over = [row for row in rows if row.shown_ms <= until_ms]
            if over:
                self._waiting[partition] = [row for row in rows if row.shown_ms > until_ms]
                users, arms, shown_ms, values = zip(*over, strict=True)
                self.outcomes.add(
                    _ints(users), _ints(arms), _ints(shown_ms), np.array(values, np.float64)
                )

    def _segment(self, surface: str) -> int:
        if surface not in self.segments:
            if len(self.segments) >= 16:
                return 16
            self.segments.append(surface)
        return self.segments.index(surface)


def _ints(values: Sequence[int]) -> Any:
    return np.array(values, np.int64)


_impression = msgspec.msgpack.Decoder(_Impression)
