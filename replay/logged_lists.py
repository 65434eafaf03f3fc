"""The lists of a log as another policy would weigh them: read, made again, joined with what was done.

A list counts once its window is over, since a label may come until then. What is left out is counted, by its
reason. Lists of more users than asked for are those of a share of the users, by a hash.
"""

# L lists, R ranks

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import msgspec
import numpy as np

from experiments.assignment.policy import Policy
from experiments.assignment.target_policy import Target
from experiments.statistics.off_policy import Lists
from recsys.config.system_config import Config, digest
from recsys.events.dedupe import Recent
from recsys.events.event_types import Impression, Rejected, decode
from recsys.events.hashing import Id, key_of, uniform
from recsys.events.records import EVENTS, EXAMPLES
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, Record, newest_first
from recsys.process.log_consumer import UNREADABLE
from replay.answer_check import EQUAL, Explainer
from serving.reconstruction.counterfactual_propensities import Judged, judged, same_candidates
from training.joining.sampling import stands_for
from training.lines.offset_lookup import first_at, served_ms_of

TEAM_DRAFT: Final = "interleaved: two policies drew them in turns"
BY_SCORE: Final = "asked for by score: nothing was drawn"
UNKNOWN: Final = "don't say what was asked or what they were made from"
EARLY: Final = "their window isn't over"
OTHERS: Final = "other candidates: another policy.sources, trust_after or fixed than the target's"
GONE: Final = "can't be made again"
OFF: Final = "propensities that aren't found again"
REPEATED: Final = "on the log a second time"
SAMPLED: Final = "of users who are left out: --lists"
MOST_GONE: Final = (
    0.1  # of the lists that could be judged: beyond, those that are left may not stand for all
)
_MARGIN_MS: Final = 60_000
_READ: Final = 1_000
_AGAIN: Final = 20  # records read at once where some of them were chosen: most may be passed over
_RECENT: Final = 100_000  # requests of a partition by whose ids repeats are known, as the joiner's
_OFF: Final = 1e-9


@dataclass
class Read:
    """Lists that are judged; ``left_out`` by reason; ``why_gone``: the first reason of one that is gone."""

    lists: Lists
    left_out: Counter[str] = field(default_factory=Counter)
    why_gone: str = ""

    @property
    def gone(self) -> float:
        """The share that couldn't be made again of those that were tried."""
        lost = self.left_out[GONE] + self.left_out[OFF]
        tried = lost + len(self.lists)
        return lost / tried if tried else 0.0


Place = tuple[int, int]  # partition and offset of ``events``


class _Done(msgspec.Struct):
    """What is read of an example."""

    partition: int
    offset: int
    index: int
    labels: list[float]
    closed_ms: int
    kept: float = 1.0
    correction: bool = False
    sampled_out: bool = False


def read_lists(log: Log, config: Config, features: FeatureSet, target: Target, most: int) -> Read:
    """Everything that the log has of the target's time range, of ``most`` lists at the most."""
    left_out: Counter[str] = Counter()
    places = chosen(log, int(config.join.window_s * 1000), target, most, left_out)
    weighed, why = _weighed(log, config, features, target, places, left_out)
    rewards, shown = _rewards(log, features.schema.labels, target, weighed)
    return Read(_as_lists(weighed, rewards, shown, target.ranks), left_out, why)


def _ended_ms(log: Log, window_ms: int) -> dict[int, int]:
    """By partition, the time before which lists have had their window: by the newest example."""
    found = {}
    for partition in range(log.partitions(EXAMPLES)):
        newest = islice(newest_first(log, EXAMPLES, partition), 1)
        times = [_closed.decode(record.value).closed_ms for record in newest]
        found[partition] = max(times, default=0) - window_ms
    return found


def chosen(
    log: Log, window_ms: int, target: Target, most: int, left_out: Counter[str]
) -> list[tuple[Place, Impression]]:
    """The impressions to judge, by place. Of all others no more than whose they are is kept meanwhile: an
    impression has its features."""
    places = _sampled(_usable(log, target, _ended_ms(log, window_ms), left_out), most, left_out)
    found = list(_at(log, places))
    if lost := len(places) - len(found):
        left_out[GONE] += lost  # their users were forgotten meanwhile
    return found


def _impressions(
    log: Log, target: Target, left_out: Counter[str]
) -> Iterator[tuple[Place, Impression]]:
    """Each request once, where it came first, as the joiner has it: who appends may append again."""
    for partition in range(log.partitions(EVENTS)):
        seen = Recent(_RECENT)
        from_ms = target.from_ms - _MARGIN_MS
        offset = first_at(log, EVENTS, partition, from_ms, served_ms_of)
        while records := log.read(EVENTS, partition, offset, _READ):
            for record in records:
                event = _impression(record.value)
                if event is None or not _inside(event.time_ms, target):
                    continue
                if seen.add(event.request_id):
                    yield (partition, record.offset), event
                else:
                    left_out[REPEATED] += 1
            offset = records[-1].offset + 1


def _impression(value: bytes) -> Impression | None:
    try:
        event = decode(value)
    except Rejected:
        return None
    return event if isinstance(event, Impression) else None


def _inside(time_ms: int, target: Target) -> bool:
    return target.from_ms <= time_ms and (not target.until_ms or time_ms < target.until_ms)


def _usable(
    log: Log, target: Target, ended_ms: dict[int, int], left_out: Counter[str]
) -> list[tuple[Place, Id]]:
    """Places, and whose lists they are."""
    found = []
    for place, its in _impressions(log, target, left_out):
        if its.teams:
            left_out[TEAM_DRAFT] += 1
        elif its.asked is None or its.stamp is None:
            left_out[UNKNOWN] += 1
        elif its.asked.by_score:
            left_out[BY_SCORE] += 1
        elif its.time_ms > ended_ms.get(place[0], 0):
            left_out[EARLY] += 1
        else:
            found.append((place, its.user_id))
    return found


def _sampled(places: list[tuple[Place, Id]], most: int, left_out: Counter[str]) -> list[Place]:
    """All lists of a share of the users."""
    share = most / max(most, len(places))
    kept = [p for p, user in places if share == 1 or uniform(0, "counterfactual", user) < share]
    if len(kept) < len(places):
        left_out[SAMPLED] += len(places) - len(kept)
    return kept


def _at(log: Log, places: Sequence[Place]) -> Iterator[tuple[Place, Impression]]:
    """Of ascending places. One read gives all of them that it reaches."""
    there, reached = dict[int, Record](), (-1, -1)
    for place in places:
        partition, offset = place
        if place > reached or partition != reached[0]:
            records = log.read(EVENTS, partition, offset, _AGAIN)
            there = {record.offset: record for record in records}
            reached = partition, max(there, default=offset)
        its = _impression(there[offset].value) if offset in there else None
        if its is not None:
            yield place, its


def _weighed(
    log: Log,
    config: Config,
    features: FeatureSet,
    target: Target,
    places: list[tuple[Place, Impression]],
    left_out: Counter[str],
) -> tuple[dict[Place, tuple[int, Judged]], str]:
    """By place: the user, and how the target would weigh the list; and why the first is gone."""
    explainer = Explainer(log, config, features)
    policy = Policy(target.policy, digest(target.policy))
    found, why = dict[Place, tuple[int, Judged]](), ""
    for place, its in sorted(places, key=_as_answered):
        again = explainer.again(its, place)
        ranked = again.answer.ranked if again.answer else None
        if (
            again.verdict != EQUAL
            or again.policy is None
            or again.session is None
            or ranked is None
        ):
            left_out[GONE] += 1
            why = why or f"{its.request_id}: {again.why or again.differences[:2]}"
            continue
        if not same_candidates(again.policy, policy):
            left_out[OTHERS] += 1
            continue
        weighed = judged(
            explainer.pipeline, its, again.session, ranked, again.policy, policy, target.reward
        )
        if weighed.off > _OFF:
            left_out[OFF] += 1
            why = why or f"{its.request_id}: a propensity is off by {weighed.off:.2g}"
            continue
        found[place] = (key_of("user", its.user_id), weighed)
    return found, why


def _as_answered(one: tuple[Place, Impression]) -> tuple[Any, ...]:
    """Replica by replica, each forward: going back begins anew."""
    stamp, asked = one[1].stamp, one[1].asked
    assert stamp is not None and asked is not None
    state = (stamp.item_state_offset, stamp.catalogue_offset)
    return (asked.item_state_from, stamp.line, stamp.epoch, *state, stamp.step)


def _rewards(
    log: Log, labels: Sequence[str], target: Target, weighed: dict[Place, Any]
) -> tuple[dict[tuple[Place, int], float], defaultdict[int, float]]:
    """By list and rank, what was earned; and by rank, how many lists had it shown: an example that stands for
    others that were left out counts for them."""
    earned, shown = dict[tuple[Place, int], float](), defaultdict[int, float](float)
    worth = [(labels.index(label), weight) for label, weight in target.reward.items()]
    for partition in range(log.partitions(EXAMPLES)):
        offset = first_at(
            log, EXAMPLES, partition, target.from_ms, lambda v: _closed.decode(v).closed_ms
        )
        while records := log.read(EXAMPLES, partition, offset, _READ):
            for record in records:
                try:
                    its = _done.decode(record.value)
                except UNREADABLE:  # an empty place of somebody who was forgotten
                    continue
                place = (its.partition, its.offset)
                if place not in weighed:
                    continue
                earned[place, its.index] = sum(w * its.labels[at] for at, w in worth)
                if not its.correction:
                    shown[its.index] += stands_for(its.labels, its.kept, its.sampled_out)
            offset = records[-1].offset + 1
    return earned, shown


def _as_lists(
    weighed: dict[Place, tuple[int, Judged]],
    earned: dict[tuple[Place, int], float],
    shown: defaultdict[int, float],
    ranks: int,
) -> Lists:
    size = max((len(its.ratios_R) for _, its in weighed.values()), default=0)
    shape = (len(weighed), size)
    ratios, said, expected, unsupported, rewards = (np.zeros(shape) for _ in range(5))
    ended = np.zeros(shape, np.bool_)
    ratios[:] = 1.0
    for row, (place, (_, its)) in enumerate(weighed.items()):
        its_ranks = len(its.ratios_R)
        ratios[row, :its_ranks], said[row, :its_ranks] = its.ratios_R, its.said_R
        expected[row, :its_ranks] = its.expected_R
        unsupported[row, :its_ranks], ended[row, :its_ranks] = its.unsupported_R, its.ended_R
        rewards[row] = [earned.get((place, rank), 0.0) for rank in range(size)]
    reach = np.array([min(1.0, shown[r] / max(1, len(weighed))) for r in range(size)])
    users = np.array([user for user, _ in weighed.values()], np.int64)
    lists = Lists(ratios, rewards, said * reach, expected * reach, unsupported, users, ended)
    return lists.first(ranks) if ranks else lists


class _Closed(msgspec.Struct):
    closed_ms: int = 0


_done: Any = msgspec.msgpack.Decoder(_Done)
_closed: Any = msgspec.msgpack.Decoder(_Closed)
