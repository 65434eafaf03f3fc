"""Names accounts that push or sink an item, by how unlikely their engagements are for people like them.

The evidence of an account about an item is −log P(its engagements), in nats: P(it engages at all) by its own
other judgements, P(each kind | it engages), each repeat of a kind, and others on the item from its network.
An item's accounts are a cohort if their evidence together, less what as many viewers give by chance, exceeds
what all items give by chance. Accounts that engaged with one item alone are looked at together: how many did
so with the same item in the same ten minutes, by the item's share of other engagements. Engagements without
proof of their user don't count, so nobody can be named by events that others send. Pure.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from recsys.events.event_types import UNPROVEN, Engagement, Event, User, Verdict

PUSHES: Final = ("long_view", "click", "like", "follow", "comment", "share", "profile")
SINKS: Final = ("hide", "skip")
MARGIN: Final = 5.0  # nats: one false cohort in 150 looks, at the most
_SMOOTHING: Final = 5.0
_LEAST: Final = 2.5  # nats of a cohort's member: others engaged by chance
_REPEATS: Final = 3  # of one kind that count as evidence
_FEW, _SHARE = 20, 0.05  # users of a cohort that a rule may hold, and their share of all
_TOGETHER_MS: Final = 600_000
_OTHERS: Final = (
    5  # engagements at other times, for each at the same time, that an item's share is taken from
)
_HIDES: Final = 1  # kinds of SINKS that are an engagement by themselves: skips are common


class _Judgement:
    """Engagements of an account with an item: how often each kind came for the same list, at the most."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.newest_ms = 0
        self._uses: Counter[tuple[str, str]] = Counter()

    def engage(self, event: Engagement) -> None:
        """Adds an engagement. An item may be shown again, so repeats count by list."""
        use = (event.request_id, event.kind)
        self._uses[use] += 1
        self.counts[event.kind] = max(self.counts[event.kind], self._uses[use])
        self.newest_ms = max(self.newest_ms, event.time_ms)


class _Account:
    """Judgements of one account by item."""

    def __init__(self) -> None:
        self.judged: defaultdict[str, _Judgement] = defaultdict(_Judgement)
        self.source: int | None = None
        self.quarantined = False


@dataclass(frozen=True)
class Cohort:
    """Accounts with the items that they push or sink. ``nats``: evidence above chance; ``marks``: the largest
    kinds of it. ``by_rule``: whether a rule may hold them; what becomes the fashion brings people together,
    too."""

    users: tuple[str, ...]
    items: tuple[str, ...]
    pushes: bool
    nats: float
    marks: tuple[str, ...]
    by_rule: bool = True


class _Suspect(NamedTuple):
    user: str
    nats: float  # above the chance of one viewer
    marks: dict[str, float]


class Accounts:
    """Judgements of all accounts. ``feed`` takes events in any order of partitions."""

    def __init__(self) -> None:
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)
        self.judged_users: set[str] = set()  # by verdicts

    def feed(self, event: Event) -> None:
        """Takes an event; kinds without meaning for the evidence are ignored."""
        if isinstance(event, Engagement) and event.proof != UNPROVEN:
            account = self._accounts[str(event.user_id)]
            account.judged[str(event.item_id)].engage(event)
            if isinstance(event.source, int):
                account.source = event.source
        elif isinstance(event, Verdict):
            account = self._accounts[str(event.user_id)]
            account.quarantined = event.quarantined
            if not event.quarantined:
                account.judged.clear()  # someone has judged this evidence
            self.judged_users.add(str(event.user_id))
        elif isinstance(event, User) and event.removed:
            self._accounts.pop(str(event.user_id), None)

    def forget_before(self, time_ms: int) -> None:
        """Drops judgements older than a time."""
        for user, account in list(self._accounts.items()):
            for item, judgement in list(account.judged.items()):
                if judgement.newest_ms < time_ms:
                    del account.judged[item]
            if not account.judged and not account.quarantined:
                del self._accounts[user]

    def over(self, nats: float) -> list[Cohort]:
        """The cohorts that a rule holds: with so much evidence, and few of all accounts. What so many do is
        for a person to judge."""
        most = max(_FEW, _SHARE * len(self._accounts))
        return [c for c in self.cohorts() if c.by_rule and c.nats >= nats and len(c.users) <= most]

    @property
    def quarantined(self) -> list[str]:
        """Users in quarantine, by the verdicts among the events."""
        return sorted(user for user, account in self._accounts.items() if account.quarantined)

    def cohorts(self) -> list[Cohort]:
        """The cohorts among accounts that aren't in quarantine, those with most evidence first."""
        accounts = {user: a for user, a in self._accounts.items() if not a.quarantined}
        cohorts = [*_cohorts(accounts, PUSHES, True), *_cohorts(accounts, SINKS, False)]
        together = [*_together(accounts, PUSHES, True), *_together(accounts, SINKS[:_HIDES], False)]
        return sorted([*_merged(cohorts), *together], key=lambda cohort: -cohort.nats)


class _Population:
    """Rates of one sort of engagements among all accounts, and of each account."""

    def __init__(self, accounts: dict[str, _Account], kinds: tuple[str, ...]) -> None:
        self.kinds = kinds
        self._engaging = kinds[:_HIDES] if kinds is SINKS else kinds
        self.judged = self.engaged = self.repeats = 0
        self.by_kind: Counter[str] = Counter()
        self.of_user: dict[str, Counter[str]] = {}
        self.sources: Counter[int] = Counter()
        for user, account in accounts.items():
            own = self.of_user[user] = Counter()
            for judgement in account.judged.values():
                counts = judgement.counts
                self.judged += 1
                if self.engages(counts):
                    own[""] += 1
                    own.update(kind for kind in kinds if counts[kind])
                    repeats = [counts[kind] - 1 for kind in kinds if counts[kind]]
                    self.repeats += sum(min(count, _REPEATS) for count in repeats)
            self.engaged += own[""]
            self.by_kind.update(own)
            if account.source is not None:
                self.sources[account.source] += 1

    def engages(self, counts: Counter[str]) -> bool:
        """Whether an account engages with an item."""
        return any(counts[kind] for kind in self._engaging)

    def evidence(self, user: str, account: _Account, counts: Counter[str]) -> dict[str, float]:
        """Nats by mark of an account's engagement with one item."""
        own, marks = self.of_user[user], defaultdict[str, float](float)
        judged, engaged = len(account.judged) - 1, own[""] - 1
        rate = self.engaged / self.judged
        marks["selective"] = -math.log((engaged + _SMOOTHING * rate) / (judged + _SMOOTHING))
        repeat = (self.repeats + 1) / (self.engaged + len(self.kinds))
        for kind in self.kinds:
            if not counts[kind]:
                continue
            of_kind = self.by_kind[kind] / self.engaged
            chance = (own[kind] - 1 + _SMOOTHING * of_kind) / (engaged + _SMOOTHING)
            marks["all kinds"] -= math.log(min(chance, 1.0))
            marks["repeats"] -= min(counts[kind] - 1, _REPEATS) * math.log(min(repeat, 1.0))
        return marks


def _cohorts(accounts: dict[str, _Account], kinds: tuple[str, ...], pushes: bool) -> Iterator[Cohort]:
    """One cohort for each item with enough evidence."""
    population = _Population(accounts, kinds)
    viewers: Counter[str] = Counter()
    engaged: defaultdict[str, list[str]] = defaultdict(list)
    for user, account in accounts.items():
        viewers.update(account.judged.keys())
        for item, judgement in account.judged.items():
            if population.engages(judgement.counts):
                engaged[item].append(user)
    outcomes = math.log(2 ** len(kinds))
    for item, users in engaged.items():
        sources = Counter(accounts[user].source for user in users)
        suspects = []
        for user in users:
            account = accounts[user]
            marks = population.evidence(user, account, account.judged[item].counts)
            expected = len(users) * population.sources[account.source or 0] / len(accounts)
            same = sources[account.source]
            if account.source is not None and same > max(1.0, expected):
                marks["network"] = math.log(same / expected) - 1 + expected / same
            nats = sum(marks.values()) - math.log(viewers[item]) - outcomes
            if nats > _LEAST:
                suspects.append(_Suspect(user, nats, marks))
        nats = sum(suspect.nats for suspect in suspects) - math.log(len(viewers)) - MARGIN
        if nats > 0:
            total = defaultdict[str, float](float)
            for suspect in suspects:
                for mark, value in suspect.marks.items():
                    total[mark] += value
            users_of = tuple(sorted(suspect.user for suspect in suspects))
            largest = sorted(total.items(), key=lambda mark: -mark[1])
            marks_of = tuple(f"{mark} {value:.0f}" for mark, value in largest)
            yield Cohort(users_of, (item,), pushes, nats, marks_of)


def _together(accounts: dict[str, _Account], kinds: tuple[str, ...], pushes: bool) -> Iterator[Cohort]:
    """Cohorts of accounts with one engagement. The evidence is that of a Poisson number: k log(k / mean) less
    what k exceeds the mean by."""
    alone: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    engaged: Counter[tuple[int, str]] = Counter()  # by time and item
    for user, account in accounts.items():
        places = [
            (judgement.newest_ms // _TOGETHER_MS, item)
            for item, judgement in account.judged.items()
            if any(judgement.counts[kind] for kind in kinds)
        ]
        engaged.update(places)
        if len(places) == 1:
            alone[places[0]].append(user)
    of_item, of_time, all_alone = Counter[str](), Counter[int](), Counter[int]()
    for (time, item), count in engaged.items():
        of_item[item] += count
        of_time[time] += count
    for (time, _), users in alone.items():
        all_alone[time] += len(users)
    for (time, item), users in alone.items():
        count, others = len(users), engaged.total() - of_time[time]
        if others < _OTHERS * of_time[time]:
            continue
        share = (of_item[item] - engaged[time, item] + 1) / (others + len(of_item))
        mean = all_alone[time] * share
        nats = count * math.log(max(1.0, count / mean)) - max(0.0, count - mean)
        nats -= math.log(len(alone)) + MARGIN
        if nats > 0:
            yield Cohort(tuple(sorted(users)), (item,), pushes, nats, (f"together {count}",), False)


def _merged(cohorts: Iterable[Cohort]) -> list[Cohort]:
    """Cohorts of which half of the smaller one's users are the same become one."""
    merged: list[Cohort] = []
    for cohort in sorted(cohorts, key=lambda cohort: -cohort.nats):
        for place, other in enumerate(merged):
            common = len({*cohort.users} & {*other.users})
            fewer = min(len(cohort.users), len(other.users))
            if cohort.pushes == other.pushes and 2 * common >= fewer:
                users = tuple(sorted({*cohort.users, *other.users}))
                items = (*other.items, *cohort.items)
                nats = other.nats + cohort.nats
                merged[place] = Cohort(users, items, cohort.pushes, nats, other.marks)
                break
        else:
            merged.append(cohort)
    return merged
