"""Credits of an interleaving, read off the log: whose each rank was from ``events``, what was done from
``examples``.

An example names the place of its impression, and the impression the arm that picked each of its ranks. As for
other experiments an item counts once its window is over, and later engagements correct it.
"""

# U users

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec
import numpy as np

from experiments.assignment.definition import INTERLEAVED, Experiment
from experiments.statistics.interleaving import Credits, Preference, preference
from recsys.config.system_config import Config
from recsys.events.dedupe import Recent
from recsys.events.event_types import Stamp
from recsys.events.hashing import Id, key_of
from recsys.events.records import EVENTS, EXAMPLES
from recsys.log.protocol import Log, newest_first
from recsys.process.log_consumer import UNREADABLE
from training.lines.offset_lookup import first_at, served_ms_of
from training.outcomes.shown_item import closed_ms_of

_READ: Final = 1_000
_MARGIN_MS: Final = 60_000
_RECENT: Final = 100_000  # requests of a partition by whose ids repeats are known, as the joiner's
_Place = tuple[int, int]  # partition and offset of ``events``


class _Drafted(msgspec.Struct, tag="impression", tag_field="type"):
    request_id: str
    user_id: Id
    time_ms: int
    teams: list[str] = []
    shares: list[float] = []
    stamp: Stamp | None = None


class _Done(msgspec.Struct):
    partition: int
    offset: int
    index: int
    labels: list[float]


@dataclass(frozen=True)
class CreditsRead:
    """``waiting``: lists whose window isn't over. ``repeats``: lists that stand on the log a second time, and
    count where they came first. ``complete``: whether the log still had all of it.
    ``nobodys``: items that were done something with at ranks that nobody is credited for."""

    credits: Credits
    waiting: int
    complete: bool
    nobodys: int
    repeats: int


@dataclass(frozen=True)
class _List:
    user: int
    teams: tuple[int, ...]  # by rank: 0 control, 1 treatment, -1 nobody's
    shares: tuple[float, ...]  # by rank: the treatment's of what is earned there


def read_credits(
    log: Log, config: Config, labels: Sequence[str], experiment: Experiment, started_ms: int
) -> CreditsRead:
    """All that the log has since the experiment began. Holds some 700 bytes for each of its lists of 8 ranks,
    and 200 for each item that earned something."""
    names = [arm.name for arm in experiment.arms]
    lists, waiting, repeats, complete = dict[_Place, _List](), 0, 0, True
    window_ms = int(config.join.window_s * 1000)
    for partition in range(log.partitions(EVENTS)):
        over_ms = _newest_ms(log, partition) - window_ms
        begin, seen = log.begin(EVENTS, partition), Recent(_RECENT)
        offset = first_at(log, EVENTS, partition, started_ms - _MARGIN_MS, served_ms_of)
        complete = complete and not 0 < begin == offset
        while records := log.read(EVENTS, partition, offset, _READ):
            for record in records:
                its = _drafted_of(record.value, experiment.name)
                if its is None:
                    continue
                if not seen.add(its.request_id):  # who appends may append again
                    repeats += 1
                    continue
                if its.time_ms > over_ms:
                    waiting += 1
                    continue
                teams = tuple(names.index(t) if t in names else -1 for t in its.teams)
                lists[partition, record.offset] = _list_of(its, teams)
            offset = records[-1].offset + 1
    worth = [(labels.index(label), weight) for label, weight in experiment.credited.items()]
    earned = _earned(log, lists, worth, started_ms)
    credits, nobodys = _summed(lists, earned)
    return CreditsRead(credits, waiting, complete, nobodys, repeats)


def _list_of(its: _Drafted, teams: tuple[int, ...]) -> _List:
    """A list that doesn't say its shares is shared by picks."""
    told = len(its.shares) == len(teams)
    shares = tuple(its.shares) if told else tuple(float(team == 1) for team in teams)
    return _List(key_of("user", its.user_id), teams, shares)


def interleaving_readout(experiment: Experiment, read: CreditsRead) -> Preference:
    its = experiment.metrics
    return preference(read.credits, its.alpha, its.find)


def _drafted_of(value: bytes, name: str) -> _Drafted | None:
    try:
        its: _Drafted = _drafted.decode(value)
    except UNREADABLE:  # mostly another kind of event
        return None
    mine = its.stamp is not None and its.stamp.arms.get(name) == INTERLEAVED
    return its if mine else None


def _newest_ms(log: Log, partition: int) -> int:
    newest = islice(newest_first(log, EXAMPLES, partition), 1)
    return max((closed_ms_of(record.value) for record in newest), default=0)


def _earned(
    log: Log, lists: dict[_Place, _List], worth: list[tuple[int, float]], started_ms: int
) -> dict[tuple[_Place, int], float]:
    """By list and rank, as the newest record of each example says, where that isn't 0."""
    found = dict[tuple[_Place, int], float]()
    for partition in range(log.partitions(EXAMPLES)):
        offset = first_at(log, EXAMPLES, partition, started_ms - _MARGIN_MS, closed_ms_of)
        while records := log.read(EXAMPLES, partition, offset, _READ):
            for record in records:
                try:
                    its = _done.decode(record.value)
                except UNREADABLE:  # an empty place of somebody who was forgotten
                    continue
                place = (its.partition, its.offset)
                value = sum(w * its.labels[at] for at, w in worth) if place in lists else 0.0
                if value:
                    found[place, its.index] = value
                else:
                    found.pop((place, its.index), None)
            offset = records[-1].offset + 1
    return found


def _summed(
    lists: dict[_Place, _List], earned: dict[tuple[_Place, int], float]
) -> tuple[Credits, int]:
    """And how many items earned something for nobody."""
    rows: dict[int, int] = {}
    for its in lists.values():
        rows.setdefault(its.user, len(rows))
    picked_U2, shared_U2 = np.zeros((len(rows), 2)), np.zeros((len(rows), 2))
    lists_U = np.zeros(len(rows), np.int64)
    first, nobodys = [0, 0], 0
    for its in lists.values():
        lists_U[rows[its.user]] += 1
        picker = next((team for team in its.teams if team >= 0), -1)
        if picker >= 0:
            first[picker] += 1
    for (place, rank), value in earned.items():
        its = lists[place]
        team = its.teams[rank] if rank < len(its.teams) else -1
        if team >= 0:
            row, share = rows[its.user], its.shares[rank]
            picked_U2[row, team] += value
            shared_U2[row] += value * (1 - share), value * share
        else:
            nobodys += 1
    return Credits(picked_U2, shared_U2, lists_U, (first[0], first[1])), nobodys


_drafted: Any = msgspec.msgpack.Decoder(_Drafted)
_done: Any = msgspec.msgpack.Decoder(_Done)
