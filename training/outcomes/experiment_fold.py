"""Folds the outcomes of one experiment: exposures from ``events``, shown items from ``examples``.

A user is exposed by the first impression whose stamp names the arm, even if nothing of it was shown. An item
counts once its window is over, so that slow engagements aren't missed in the newest items. Watch time is
taken from the first record of an example.
"""

# N rows, S sums

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from experiments.assignment.definition import Experiment
from experiments.assignment.design import Ramp
from experiments.assignment.policy import assign
from experiments.statistics.outcomes import NOBODY
from experiments.statistics.readout import Readout, outcomes_for, ratio_of, readout
from recsys.config.system_config import Config
from recsys.events.event_types import Stamp
from recsys.events.hashing import key_of
from recsys.events.records import CLICK_LIST, EVENTS, EXAMPLES, unpack
from recsys.log.protocol import Log, LogLost, Record
from recsys.process.log_consumer import UNREADABLE, decoded
from training.lines.offset_lookup import consumer_from, served_ms_of
from training.outcomes.shown_item import ShownItem, ShownList, closed_ms_of, metric_increments

BEFORE_MS: Final = 7 * 86_400_000  # the covariate: behaviour in the week before it began
MOST_SURFACES: Final = 16  # surfaces with a segment of their own
OTHER_SURFACES: Final = "other surfaces"  # the segment that pools all further surfaces
_READ: Final = 1_000
_MARGIN_MS: Final = 60_000  # records of one partition are nearly in the order of their times
_MOST_COUNTED: Final = 10_000  # distinct misassigned users, or pooled surfaces, that are counted


class _Row(NamedTuple):
    user: int
    arm: int
    shown_ms: int
    increments: list[float]


class ExperimentFold:
    """Reads on incrementally. ``started_ms``: when it began, 0 before; the week before is read, too.
    ``complete``: whether the log still had all records. ``surfaces``: the first 16, by segment number."""

    def __init__(
        self, log: Log, config: Config, labels: Sequence[str], experiment: Experiment,
        started_ms: int, most_users: int = 200_000,
    ) -> None:  # fmt: skip
        self._log, self._labels = log, tuple(labels)
        self.experiment = experiment
        self.outcomes = outcomes_for(experiment, labels, most_users)
        self.surfaces: list[str] = []
        self.unreadable = 0
        self._pooled_surfaces: set[str] = set()
        self._all = replace(experiment, traffic=1 - experiment.offset, ramp=Ramp())
        self._whole = replace(experiment, ramp=Ramp())
        self._arms = {arm.name: number for number, arm in enumerate(experiment.arms)}
        self._misassigned: set[int] = set()
        self._ratio = 1.0
        self._window_ms = int(config.join.window_s * 1000)
        self._events = consumer_from(log, EVENTS, started_ms - _MARGIN_MS, served_ms_of)
        begins = ((log.begin(EVENTS, p), start) for p, start in self._events.offsets.items())
        self.complete = not (started_ms and any(0 < begin == start for begin, start in begins))
        since_ms = started_ms - BEFORE_MS - _MARGIN_MS
        self._examples = consumer_from(log, EXAMPLES, since_ms, closed_ms_of)
        self._waiting: dict[int, list[_Row]] = {}
        self._newest: dict[int, int] = {}

    @property
    def misassigned(self) -> int:
        """Number of users whose arm differs from the one the hash assigns (at most 10,000 are counted)."""
        return len(self._misassigned)

    @property
    def pooled_surfaces(self) -> int:
        """Number of surfaces in the segment ``OTHER_SURFACES`` (at most 10,000 are counted)."""
        return len(self._pooled_surfaces)

    @property
    def waiting(self) -> int:
        """Number of shown items whose window isn't over."""
        return sum(map(len, self._waiting.values()))

    @property
    def until_ms(self) -> int:
        """Event time up to which examples were read; 0 before the first."""
        return max(self._newest.values(), default=0)

    def read(self, polls: int = 20) -> int:
        """Reads new records and returns their number, with at most ``polls`` polls of each topic. An item of
        a user whose exposure wasn't read counts for no arm: so examples wait until all events are read that
        existed when this call began, and shown items settle once all events are read that existed when the
        examples were read."""
        ends = self._ends()
        moved = self._read(EVENTS, polls)
        if all(self._events.offsets[p] >= end for p, end in ends.items()):
            self._settle()
            read = self._read(EXAMPLES, polls)
            if read and self._ends() == ends:
                self._settle()
            moved += read
        if moved:
            self._ratio = ratio_of(self.experiment, self.outcomes, self._ratio).p
        return moved

    def _read(self, topic: str, polls: int) -> int:
        moved = 0
        for _ in range(polls):
            records = self._poll(topic)
            if not records:
                break
            moved += len(records)
            if topic == EVENTS:
                self._expose(record for _, record in records)
            else:
                self._take(records)
        return moved

    def _ends(self) -> dict[int, int]:
        return {p: self._log.end(EVENTS, p) for p in self._events.offsets}

    def readout(self, parts: bool = True) -> Readout:
        """Results of what was read. ``parts``: whether to include days and segments."""
        pooled = [OTHER_SURFACES] if self._pooled_surfaces else []
        return readout(
            self.experiment, self.outcomes, self._labels, until_ms=self.until_ms,
            segments=[*self.surfaces, *pooled], misassigned=self.misassigned,
            ratio_before=self._ratio, parts=parts,
        )  # fmt: skip

    def _poll(self, topic: str) -> list[tuple[int, Record]]:
        consumer = self._events if topic == EVENTS else self._examples
        try:
            return consumer.poll(_READ)
        except LogLost:  # retention has passed this fold: go on with what is left
            self.complete = False
            for partition, offset in consumer.offsets.items():
                consumer.offsets[partition] = max(offset, self._log.begin(topic, partition))
            return consumer.poll(_READ)

    def _arm_of(self, stamp: Stamp | None) -> int:
        """NOBODY if not in the experiment; past the last arm for one that its definition doesn't have."""
        name = stamp.arms.get(self.experiment.name) if stamp is not None else None
        return NOBODY if name is None else self._arms.get(name, len(self._arms))

    def _expose(self, records: Iterable[Record]) -> None:
        rows = []
        for _, impression in decoded(records, ShownList):
            arm = self._arm_of(impression.stamp)
            if arm == NOBODY:
                continue
            user = key_of("user", impression.user_id)
            expected = assign(impression.user_id, self._all)
            wrong = expected is None or self._arms[expected.name] != arm
            if wrong and len(self._misassigned) < _MOST_COUNTED:
                self._misassigned.add(user)
            if arm < len(self._arms):
                rows.append((user, arm, impression.time_ms, self._segment(impression.surface)))
        self.outcomes.expose(*np.array(rows, np.int64).reshape(-1, 4).T)

    def _take(self, records: Sequence[tuple[int, Record]]) -> None:
        for partition, record in records:
            try:
                item = unpack(record.value, ShownItem)
            except UNREADABLE:  # also a tombstone
                self.unreadable += 1
                continue
            self._newest[partition] = max(self._newest.get(partition, 0), item.closed_ms)
            arm = self._arm_of(item.stamp)
            # Nobody saw a click's list; users who are never in the experiment take no memory.
            is_seen = not item.request_id.startswith(CLICK_LIST)
            if not is_seen or (arm == NOBODY and assign(item.user_id, self._whole) is None):
                continue
            increments = metric_increments(item, self.outcomes.sums, self._labels)
            row = _Row(key_of("user", item.user_id), arm, item.shown_ms, increments)
            self._waiting.setdefault(partition, []).append(row)

    def _settle(self) -> None:
        for partition, rows in self._waiting.items():
            until_ms = self._newest.get(partition, 0) - self._window_ms
            over = [row for row in rows if row.shown_ms <= until_ms]
            if over:
                self._waiting[partition] = [row for row in rows if row.shown_ms > until_ms]
                users, arms, shown_ms, increments = zip(*over, strict=True)
                self.outcomes.add(
                    np.array(users, np.int64),
                    np.array(arms, np.int64),
                    np.array(shown_ms, np.int64),
                    np.array(increments, np.float64),
                )

    def _segment(self, surface: str) -> int:
        if surface in self.surfaces:
            return self.surfaces.index(surface)
        if len(self.surfaces) < MOST_SURFACES:
            self.surfaces.append(surface)
            return len(self.surfaces) - 1
        if len(self._pooled_surfaces) < _MOST_COUNTED:
            self._pooled_surfaces.add(surface)
        return MOST_SURFACES
