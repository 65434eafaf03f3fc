"""Reads the credits of an interleaving experiment: arms of ranks from ``events``, labels from ``examples``.
An item counts once its window is over, and later engagements correct it."""

# U users

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from experiments.assignment.definition import INTERLEAVED, Experiment
from experiments.statistics.interleaving import ArmCredits, Preference, preference
from recsys.config.system_config import Config
from recsys.events.dedupe import RecentIds
from recsys.events.hashing import key_of
from recsys.events.records import EVENTS, EXAMPLES
from recsys.log.protocol import Log, newest_first, read_range
from recsys.process.log_consumer import decoded
from training.lines.offset_lookup import first_at, served_ms_of
from training.outcomes.shown_item import ShownList, closed_ms_of, first_closed_ms

_MARGIN_MS: Final = 60_000
_RECENT: Final = 100_000  # request ids of a partition remembered to detect duplicates
_Position = tuple[int, int]  # partition and offset of ``events``


class _LabelledExample(msgspec.Struct):
    partition: int
    offset: int
    index: int
    labels: list[float]


@dataclass(frozen=True)
class InterleavingCredits:
    """Credits read so far. ``waiting``: lists whose window isn't over. ``repeats``: duplicates of lists on
    the log; the first one counts. ``complete``: whether the log still had all records of the experiment.
    ``uncredited``: engaged items at ranks that belong to no arm."""

    credits: ArmCredits
    waiting: int
    complete: bool
    uncredited: int
    repeats: int


@dataclass(frozen=True)
class _List:
    user: int
    teams: tuple[int, ...]  # by rank: 0 control, 1 treatment, -1 neither
    shares: tuple[float, ...]  # by rank: the treatment's share of what is earned there


def read_credits(
    log: Log, config: Config, labels: Sequence[str], experiment: Experiment, started_ms: int
) -> InterleavingCredits:
    """Reads all records since the experiment began (0: not yet): 700 bytes a list, 200 a credited item."""
    names = [arm.name for arm in experiment.arms]
    lists, waiting, repeats, complete = dict[_Position, _List](), 0, 0, True
    window_ms = int(config.join.window_s * 1000)
    for partition in range(log.partitions(EVENTS)):
        over_ms = first_closed_ms(newest_first(log, EXAMPLES, partition)) - window_ms
        begin, seen = log.begin(EVENTS, partition), RecentIds(_RECENT)
        offset = first_at(log, EVENTS, partition, started_ms - _MARGIN_MS, served_ms_of)
        complete = complete and not (started_ms and 0 < begin == offset)
        records = read_range(log, EVENTS, partition, offset, log.end(EVENTS, partition))
        for record, impression in decoded(records, ShownList):
            stamp = impression.stamp
            if stamp is None or stamp.arms.get(experiment.name) != INTERLEAVED:
                continue
            if not seen.add(impression.request_id):  # a client may append a list again
                repeats += 1
            elif impression.time_ms > over_ms:
                waiting += 1
            else:
                teams = tuple(names.index(t) if t in names else -1 for t in impression.teams)
                lists[partition, record.offset] = _list_of(impression, teams)
    weights = [(labels.index(label), weight) for label, weight in experiment.credited.items()]
    credits, uncredited = _summed(lists, _earned(log, lists, weights, started_ms))
    return InterleavingCredits(credits, waiting, complete, uncredited, repeats)


def _list_of(impression: ShownList, teams: tuple[int, ...]) -> _List:
    """Without explicit shares, each rank is credited to the arm that picked it."""
    has_shares = len(impression.shares) == len(teams)
    shares = impression.shares if has_shares else [float(team == 1) for team in teams]
    return _List(key_of("user", impression.user_id), teams, tuple(shares))


def interleaving_readout(experiment: Experiment, read: InterleavingCredits) -> Preference:
    return preference(read.credits, experiment.metrics.alpha, experiment.metrics.find)


def _earned(
    log: Log, lists: dict[_Position, _List], weights: list[tuple[int, float]], started_ms: int
) -> dict[tuple[_Position, int], float]:
    """Non-zero credits by list and rank, from the newest record of each example."""
    earned = dict[tuple[_Position, int], float]()
    for partition in range(log.partitions(EXAMPLES)):
        offset = first_at(log, EXAMPLES, partition, started_ms - _MARGIN_MS, closed_ms_of)
        records = read_range(log, EXAMPLES, partition, offset, log.end(EXAMPLES, partition))
        for _, example in decoded(records, _LabelledExample):  # skips tombstones
            position = (example.partition, example.offset)
            credit = sum(w * example.labels[at] for at, w in weights) if position in lists else 0.0
            if credit:
                earned[position, example.index] = credit
            else:
                earned.pop((position, example.index), None)
    return earned


def _summed(
    lists: dict[_Position, _List], earned: dict[tuple[_Position, int], float]
) -> tuple[ArmCredits, int]:
    """Credits by user, and the number of items that earned a credit for no arm."""
    rows: dict[int, int] = {}
    for shown in lists.values():
        rows.setdefault(shown.user, len(rows))
    picked_U2, shared_U2 = np.zeros((len(rows), 2)), np.zeros((len(rows), 2))
    lists_U = np.zeros(len(rows), np.int64)
    first, uncredited = [0, 0], 0
    for shown in lists.values():
        lists_U[rows[shown.user]] += 1
        picker = next((team for team in shown.teams if team >= 0), -1)
        if picker >= 0:
            first[picker] += 1
    for (position, rank), credit in earned.items():
        shown = lists[position]
        team = shown.teams[rank] if rank < len(shown.teams) else -1
        if team >= 0:
            row, share = rows[shown.user], shown.shares[rank]
            picked_U2[row, team] += credit
            shared_U2[row] += credit * (1 - share), credit * share
        else:
            uncredited += 1
    return ArmCredits(picked_U2, shared_U2, lists_U, (first[0], first[1])), uncredited
