"""Logged lists as another policy would weigh them: read, recomputed, joined with their rewards.

A list counts once its join window is over, since a label may come until then. Skipped lists are counted by
reason. When there are more lists than asked for, those of a hashed sample of users are taken.
"""

# L lists, R ranks

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from experiments.assignment.definition import Arm, Experiment
from experiments.assignment.policy import Policies
from plugins.answer_explanation.answer_check import EQUAL, AnswerChecker
from plugins.off_policy.estimates import WeightedLists
from plugins.off_policy.propensities import CounterfactualList, counterfactual, same_candidates
from plugins.off_policy.target_policy import TargetPolicy
from recsys.config.system_config import Config
from recsys.events.dedupe import RecentIds
from recsys.events.event_types import Impression, Rejected, decode
from recsys.events.hashing import Id, key_of, uniform
from recsys.events.records import CLICK_LIST, EVENTS, EXAMPLES, unpack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, Record, newest_first, read_range
from recsys.process.log_consumer import UNREADABLE
from training.joining.sampling import represented_examples
from training.lines.offset_lookup import first_at, served_ms_of
from training.outcomes.shown_item import closed_ms_of, first_closed_ms

TEAM_DRAFT: Final = "interleaved: two policies drew them in turns"
BY_SCORE: Final = "asked for by score: nothing was drawn"
UNKNOWN: Final = "don't say what was asked or what they were made from"
EARLY: Final = "their window isn't over"
OTHER_CANDIDATES: Final = "other candidates: sources, trust_after, fixed or excluding rules differ"
GONE: Final = "can't be made again"
PROPENSITY_MISMATCH: Final = "propensities that aren't found again"
REPEATED: Final = "on the log a second time"
SAMPLED: Final = "of users who are left out: --lists"
MAX_GONE_SHARE: Final = 0.1  # of the tried lists: beyond, the remaining ones may be biased
_MARGIN_MS: Final = 60_000
_READ: Final = 1_000
_END: Final = 1 << 62
_READ_NEAR: Final = 20  # records read at once around a chosen one: most are skipped
_RECENT: Final = 100_000  # request ids of a partition kept to drop duplicates, as in the joiner
_TOLERANCE: Final = 1e-9


@dataclass
class LoggedLists:
    """Weighed lists; ``left_out`` counts by reason; ``why_gone``: reason of the first one that couldn't be
    recomputed."""

    lists: WeightedLists
    left_out: Counter[str] = field(default_factory=Counter)
    why_gone: str = ""

    @property
    def gone(self) -> float:
        """Fraction of the tried lists that couldn't be recomputed."""
        lost = self.left_out[GONE] + self.left_out[PROPENSITY_MISMATCH]
        tried = lost + len(self.lists)
        return lost / tried if tried else 0.0


Place = tuple[int, int]  # partition and offset of ``events``


class _LoggedExample(msgspec.Struct):
    """The fields of an example that are read here."""

    partition: int
    offset: int
    index: int
    labels: list[float]
    sampling_rate: float = msgspec.field(name="kept", default=1.0)
    correction: bool = False
    sampled_out: bool = False


def read_lists(
    log: Log, config: Config, features: FeatureSet, target: TargetPolicy, max_lists: int
) -> LoggedLists:
    """Lists of the target's time range, ``max_lists`` at most."""
    left_out: Counter[str] = Counter()
    places = chosen(log, int(config.join.window_s * 1000), target, max_lists, left_out)
    weighed, why = _weighed(log, config, features, target, places, left_out)
    rewards, shown = _rewards(log, features.schema.labels, target, weighed)
    return LoggedLists(_as_lists(weighed, rewards, shown, target.ranks), left_out, why)


def _ended_ms(log: Log, window_ms: int) -> dict[int, int]:
    """By partition, the time before which join windows are over, by the newest example."""
    ended_ms = {}
    for partition in range(log.partitions(EXAMPLES)):
        newest = newest_first(log, EXAMPLES, partition)
        ended_ms[partition] = first_closed_ms(newest) - window_ms
    return ended_ms


def chosen(
    log: Log, window_ms: int, target: TargetPolicy, max_lists: int, left_out: Counter[str]
) -> list[tuple[Place, Impression]]:
    """The impressions to judge, by place. Others are dropped at once except their user id: an impression
    holds all its features."""
    usable = _usable(log, target, _ended_ms(log, window_ms), left_out)
    places = _sampled(usable, max_lists, left_out)
    impressions = list(_at(log, places))
    if lost := len(places) - len(impressions):
        left_out[GONE] += lost  # their users were deleted meanwhile
    return impressions


def _impressions(
    log: Log, target: TargetPolicy, left_out: Counter[str]
) -> Iterator[tuple[Place, Impression]]:
    """Each request once, at its first place, as the joiner takes it: a producer may append twice."""
    for partition in range(log.partitions(EVENTS)):
        seen = RecentIds(_RECENT)
        from_ms = target.from_ms - _MARGIN_MS
        offset = first_at(log, EVENTS, partition, from_ms, served_ms_of)
        for record in read_range(log, EVENTS, partition, offset, _END, _READ):
            event = _impression(record.value)
            if event is None or not _inside(event.time_ms, target):
                continue
            if seen.add(event.request_id):
                yield (partition, record.offset), event
            else:
                left_out[REPEATED] += 1


def _impression(value: bytes) -> Impression | None:
    try:
        event = decode(value)
    except Rejected:
        return None
    return event if isinstance(event, Impression) else None


def _inside(time_ms: int, target: TargetPolicy) -> bool:
    return target.from_ms <= time_ms and (not target.until_ms or time_ms < target.until_ms)


def _usable(
    log: Log, target: TargetPolicy, ended_ms: dict[int, int], left_out: Counter[str]
) -> list[tuple[Place, Id]]:
    """Places of usable impressions, with their users."""
    usable = []
    for place, impression in _impressions(log, target, left_out):
        if impression.request_id.startswith(CLICK_LIST):
            continue  # nobody saw it
        if impression.teams:
            left_out[TEAM_DRAFT] += 1
        elif impression.inputs is None or impression.stamp is None:
            left_out[UNKNOWN] += 1
        elif impression.inputs.by_score:
            left_out[BY_SCORE] += 1
        elif impression.time_ms > ended_ms.get(place[0], 0):
            left_out[EARLY] += 1
        else:
            usable.append((place, impression.user_id))
    return usable


def _sampled(places: list[tuple[Place, Id]], max_lists: int, left_out: Counter[str]) -> list[Place]:
    """Places of all lists of a hashed sample of the users."""
    share = max_lists / max(max_lists, len(places))
    sampled = [p for p, user in places if share == 1 or uniform(0, "counterfactual", user) < share]
    if len(sampled) < len(places):
        left_out[SAMPLED] += len(places) - len(sampled)
    return sampled


def _at(log: Log, places: Sequence[Place]) -> Iterator[tuple[Place, Impression]]:
    """Impressions at ascending places; one read serves all places that it reaches."""
    records_by_offset, reached = dict[int, Record](), (-1, -1)
    for place in places:
        partition, offset = place
        if place > reached or partition != reached[0]:
            records = log.read(EVENTS, partition, offset, _READ_NEAR)
            records_by_offset = {record.offset: record for record in records}
            reached = partition, max(records_by_offset, default=offset)
        record = records_by_offset.get(offset)
        if record is not None and (impression := _impression(record.value)) is not None:
            yield place, impression


def _weighed(
    log: Log,
    config: Config,
    features: FeatureSet,
    target: TargetPolicy,
    places: list[tuple[Place, Impression]],
    left_out: Counter[str],
) -> tuple[dict[Place, tuple[int, CounterfactualList]], str]:
    """By place: the user key and the list's weights; and the reason of the first list that is gone."""
    checker = AnswerChecker(log, config, features)
    # As an arm of all users: its overrides follow those of a list's surface.
    arm = Experiment("target", (Arm("target", 1.0, target.overrides),))
    policies = Policies(target.policy, [arm], config.surfaces)
    weighed_lists, why = dict[Place, tuple[int, CounterfactualList]](), ""
    for place, impression in sorted(places, key=_as_answered):
        check = checker.check(impression, place)
        query, answer = check.query, check.answer
        if check.verdict != EQUAL or query is None or answer is None or not answer.candidates:
            left_out[GONE] += 1
            why = why or f"{impression.request_id}: {check.why or check.differences[:2]}"
            continue
        policy = policies.resolve(impression.user_id, impression.surface)
        if not same_candidates(query.policy, policy):
            left_out[OTHER_CANDIDATES] += 1
            continue
        weighed = counterfactual(checker.pipeline, query, answer, policy, target.reward)
        if weighed.off > _TOLERANCE:
            left_out[PROPENSITY_MISMATCH] += 1
            why = why or f"{impression.request_id}: a propensity is off by {weighed.off:.2g}"
            continue
        weighed_lists[place] = (key_of("user", impression.user_id), weighed)
    return weighed_lists, why


def _as_answered(placed: tuple[Place, Impression]) -> tuple[Any, ...]:
    """Sort key: replica by replica, forward in each, since going back restarts the reconstruction."""
    stamp, inputs = placed[1].stamp, placed[1].inputs
    assert stamp is not None and inputs is not None
    state = (stamp.item_state_offset, stamp.catalogue_offset)
    return (inputs.item_state_from, stamp.line, stamp.epoch, *state, stamp.step)


def _rewards(
    log: Log, labels: Sequence[str], target: TargetPolicy, weighed: dict[Place, Any]
) -> tuple[dict[tuple[Place, int], float], defaultdict[int, float]]:
    """By list and rank, the reward; and by rank, the number of shown lists, where a sampled example counts
    for the ones that were left out."""
    rewards_by_place, shown = dict[tuple[Place, int], float](), defaultdict[int, float](float)
    worth = [(labels.index(label), weight) for label, weight in target.reward.items()]
    for partition in range(log.partitions(EXAMPLES)):
        offset = first_at(log, EXAMPLES, partition, target.from_ms, closed_ms_of)
        for record in read_range(log, EXAMPLES, partition, offset, _END, _READ):
            try:
                example = unpack(record.value, _LoggedExample)
            except UNREADABLE:  # a tombstone of a deleted user
                continue
            place = (example.partition, example.offset)
            if place not in weighed:
                continue
            rewards_by_place[place, example.index] = sum(w * example.labels[at] for at, w in worth)
            if not example.correction:
                shown[example.index] += represented_examples(
                    example.labels, example.sampling_rate, example.sampled_out
                )
    return rewards_by_place, shown


def _as_lists(
    weighed: dict[Place, tuple[int, CounterfactualList]],
    rewards_by_place: dict[tuple[Place, int], float],
    shown: defaultdict[int, float],
    ranks: int,
) -> WeightedLists:
    size = max((len(weights.ratios_R) for _, weights in weighed.values()), default=0)
    shape = (len(weighed), size)
    ratios, ended = np.ones(shape), np.zeros(shape, np.bool_)
    expected_rewards, expected, unsupported, rewards = (np.zeros(shape) for _ in range(4))
    for row, (place, (_, weights)) in enumerate(weighed.items()):
        own = (row, slice(len(weights.ratios_R)))
        ratios[own], ended[own] = weights.ratios_R, weights.ended_R
        expected_rewards[own], expected[own] = weights.predicted_R, weights.expected_R
        unsupported[own] = weights.unsupported_R
        rewards[row] = [rewards_by_place.get((place, rank), 0.0) for rank in range(size)]
    reach = np.array([min(1.0, shown[r] / max(1, len(weighed))) for r in range(size)])
    users = np.array([user for user, _ in weighed.values()], np.int64)
    lists = WeightedLists(
        ratios, rewards, expected_rewards * reach, expected * reach, unsupported, users, ended
    )
    return lists.first(ranks) if ranks else lists
