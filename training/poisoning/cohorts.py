"""Names accounts that push or sink an item, by how unlikely their engagements are for people like them.

The evidence of an account about an item is −log P(its engagements), in nats: P(it engages at all) by its own
other judgements, P(each kind | it engages), each repeat of a kind, and others on the item from its network.
An item's accounts are a cohort if their evidence together, less what as many viewers give by chance, exceeds
what all items give by chance. Only attributed engagements count, so nobody can be named by events that others
send. Pure.
"""

# a smoothing in judgements

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from recsys.events.event_types import Engagement, Event, User, Verdict

PUSHES: Final = ("long_view", "click", "like", "follow", "comment", "share", "profile")
SINKS: Final = ("hide", "skip")
MARGIN: Final = 5.0  # nats: one false cohort in 150 looks, at the most
_SMOOTHING: Final = 5.0
_LEAST: Final = 2.5  # nats of a cohort's member: others engaged by chance
_REPEATS: Final = 3  # of one kind that count as evidence
_HIDES: Final = 1  # kinds of SINKS that are an engagement by themselves: skips are common


class _Account:
    """Judgements of one account: by item, how often each kind came for the same list, at the most."""

    def __init__(self) -> None:
        self.judged: dict[str, Counter[str]] = {}
        self._uses: Counter[tuple[str, str, str]] = Counter()
        self.source: int | None = None
        self.quarantined = False

    def engage(self, event: Engagement) -> None:
        """Adds an engagement. An item may be shown again, so repeats count by list."""
        item = str(event.item_id)
        use = (event.request_id, item, event.kind)
        self._uses[use] += 1
        counts = self.judged.setdefault(item, Counter())
        counts[event.kind] = max(counts[event.kind], self._uses[use])
        if isinstance(event.source, int):
            self.source = event.source


@dataclass(frozen=True)
class Cohort:
    """Accounts with the items that they push or sink. ``nats``: evidence above chance; ``marks``: the largest
    kinds of it."""

    users: tuple[str, ...]
    items: tuple[str, ...]
    pushes: bool
    nats: float
    marks: tuple[str, ...]


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
        if isinstance(event, Engagement) and event.attributed:
            self._accounts[str(event.user_id)].engage(event)
        elif isinstance(event, Verdict):
            self._accounts[str(event.user_id)].quarantined = event.quarantined
            self.judged_users.add(str(event.user_id))
        elif isinstance(event, User) and event.removed:
            self._accounts.pop(str(event.user_id), None)

    @property
    def quarantined(self) -> list[str]:
        """Users in quarantine, by the verdicts among the events."""
        return sorted(user for user, account in self._accounts.items() if account.quarantined)

    def cohorts(self) -> list[Cohort]:
        """The cohorts among accounts that aren't in quarantine, those with most evidence first."""
        accounts = {user: a for user, a in self._accounts.items() if not a.quarantined}
        cohorts = [*_cohorts(accounts, PUSHES, True), *_cohorts(accounts, SINKS, False)]
        return sorted(_merged(cohorts), key=lambda cohort: -cohort.nats)


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
            for counts in account.judged.values():
                self.judged += 1
                if self.engages(counts):
                    own[""] += 1
                    own.update(kind for kind in kinds if counts[kind])
                    self.repeats += sum(
                        min(counts[kind] - 1, _REPEATS) for kind in kinds if counts[kind]
                    )
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


def _cohorts(
    accounts: dict[str, _Account], kinds: tuple[str, ...], pushes: bool
) -> Iterator[Cohort]:
    """One cohort for each item with enough evidence."""
    population = _Population(accounts, kinds)
    viewers: Counter[str] = Counter()
    engaged: defaultdict[str, list[str]] = defaultdict(list)
    for user, account in accounts.items():
        viewers.update(account.judged.keys())
        for item, counts in account.judged.items():
            if population.engages(counts):
                engaged[item].append(user)
    outcomes = math.log(2 ** len(kinds))
    for item, users in engaged.items():
        sources = Counter(accounts[user].source for user in users)
        suspects = []
        for user in users:
            account = accounts[user]
            marks = population.evidence(user, account, account.judged[item])
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
            marks_of = tuple(
                f"{mark} {value:.0f}" for mark, value in sorted(total.items(), key=_largest)
            )
            yield Cohort(users_of, (item,), pushes, nats, marks_of)


def _largest(mark: tuple[str, float]) -> float:
    return -mark[1]


def _merged(cohorts: Iterable[Cohort]) -> list[Cohort]:
    """Cohorts of which half of the smaller one's users are the same become one."""
    merged: list[Cohort] = []
    for cohort in sorted(cohorts, key=lambda cohort: -cohort.nats):
        for place, other in enumerate(merged):
            common = len({*cohort.users} & {*other.users})
            if cohort.pushes == other.pushes and 2 * common >= min(
                len(cohort.users), len(other.users)
            ):
                users = tuple(sorted({*cohort.users, *other.users}))
                items = (*other.items, *cohort.items)
                nats = other.nats + cohort.nats
                merged[place] = Cohort(users, items, cohort.pushes, nats, other.marks)
                break
        else:
            merged.append(cohort)
    return merged
