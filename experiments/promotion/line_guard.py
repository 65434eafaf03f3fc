"""Guard of the live line by its lists: whether they are behind two simple lists, popularity of the last hour
and transitions, that learn from the same engagements; or whether the line learns no positive.

Pure, and a fold: it takes lists, engagements with the first label and learned examples in order of event
time, and returns decisions as values. An engagement soon after the list that it names, or else after its
viewer's newest one, is a case: whether the first ten of our list have the item, beside as many of each simple
list as of that moment. Memory is bounded.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

import numpy as np

from experiments.statistics.significance import AnytimeEstimate, ClusteredMean
from recsys.events.hashing import Id, key_of

TOP: Final = 10
LIST_AGE_MS: Final = 600_000  # an engagement later than this after a list isn't a case
WINDOW_MS: Final = 900_000  # a window lasts longer until it has enough cases and users
LEAST_CASES: Final = 200
LEAST_USERS: Final = 50
MARGIN: Final = 0.02  # tolerated loss of hits per case
WINDOWS: Final = 2  # in a row
DECLINE: Final = 0.8  # of the hits before, below which a line is worse than it was
_PAST: Final = 8  # windows that say what it was
LEAST_EXAMPLES: Final = 5_000  # learned without a positive one …
LEAST_ENGAGEMENTS: Final = 50  # … while this many engagements came
POPULARITY, TRANSITIONS = "popularity", "transitions"
BEHIND, NO_POSITIVE = "behind", "no_positive"
_ALPHA: Final = 0.005  # of each of the two bounds of a 99 % interval
_HALF_LIFE_MS: Final = 3_600_000
_USERS: Final = 100_000  # whose newest lists and newest engagement are known
_LISTS: Final = 4  # newest ones of a user: a page asks for the next before it is read
_ITEMS: Final = 100_000  # of which popularity and transitions are counted
_NEXT: Final = 50  # next items counted for each item
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class LineFault:
    """The live line must not go on. ``kind``: behind, or no_positive. ``since_ms``: event time up to which it
    is not known to be at fault. ``was_well``: whether it was better before, so that there is something to
    return to; it wasn't where a fashion lifted a simple list above it."""

    kind: str
    reason: str
    since_ms: int
    was_well: bool
    evidence: dict[str, float] = field(default_factory=dict)


class LineGuard:
    """``serve``, ``engage`` and ``learn`` take what happened, and return a fault or None."""

    def __init__(self) -> None:
        self._now_ms = 0
        self._lists = _Newest[str, list[_List]](_USERS)  # newest last
        self._simple: dict[str, _SimpleList] = {POPULARITY: _Popularity(), TRANSITIONS: _Transitions()}
        self._window = _Window(list(self._simple))
        self._behind: list[_Result] = []  # newest windows in a row
        self._well: list[float] = []  # hits of the newest windows that weren't behind
        self._examples = self._engagements = 0  # since the last positive example was learned
        self._positive_ms: int | None = None  # event time of the last positive example
        self._learned_ms: int | None = None  # of the first one
        self.cases = 0

    def serve(self, user_id: Id, request_id: str, items: Sequence[Id], time_ms: int) -> None:
        """Takes a list of the live line, best first."""
        self._now_ms = max(self._now_ms, time_ms)
        served = _List(request_id, time_ms, [str(item) for item in items[:TOP]])
        before = self._lists.get(str(user_id)) or []
        self._lists.put(str(user_id), [*before, served][-_LISTS:])

    def engage(self, user_id: Id, item_id: Id, time_ms: int, request_id: str = "") -> LineFault | None:
        """Takes an engagement with the first label. ``request_id``: of its list, else empty."""
        # A client may date an engagement back.
        self._now_ms = now_ms = max(self._now_ms, time_ms)
        user, item, fault = str(user_id), str(item_id), None
        newest_first = reversed(self._lists.get(user) or [])
        served = next((s for s in newest_first if request_id in ("", s.request_id)), None)
        if served is not None and now_ms - served.time_ms <= LIST_AGE_MS:
            if item in served.engaged:  # a client that repeats itself is no evidence
                return None
            served.engaged.add(item)
            length = len(served.items)
            hits = {name: item in simple.top(user, length) for name, simple in self._simple.items()}
            self._window.add(user, item in served.items, hits, now_ms)
            self.cases += 1
            fault = self._judge(now_ms)
        for simple in self._simple.values():
            simple.learn(user, item, now_ms)
        self._engagements += 1
        return fault or self._judge_learning()

    def learn(self, examples: float, positives: float, time_ms: int) -> LineFault | None:
        """Takes a learned step of the live line. ``positives``: of the first label."""
        if self._learned_ms is None:
            self._learned_ms = time_ms
        if positives > 0:
            self._positive_ms = time_ms
            self._examples = self._engagements = 0
            return None
        self._examples += round(examples)
        return self._judge_learning()

    def restart(self) -> None:
        """Forgets what was judged: another epoch is live. The simple lists go on."""
        self._lists = _Newest(_USERS)
        self._window, self._behind, self._well = _Window(list(self._simple)), [], []
        self._examples = self._engagements = 0
        self._positive_ms = self._learned_ms = None

    def _judge(self, now_ms: int) -> LineFault | None:
        """Decides at the end of a window."""
        if not self._window.is_over(now_ms):
            return None
        result, self._window = self._window.result(), _Window(list(self._simple))
        if not result.is_behind:
            self._behind, self._well = [], [*self._well, result.ours][-_PAST:]
            return None
        self._behind = [*self._behind, result][-WINDOWS:]
        if len(self._behind) < WINDOWS:
            return None
        first, self._behind = self._behind[0], []
        gained, was_well = result.gained, bool(self._well)
        if was_well:
            was_well = result.ours < DECLINE * sum(self._well) / len(self._well)
        reason = (
            f"its first ten items hit {result.ours:.1%} of what viewers took, those of {result.simple} "
            f"{result.simple_hits:.1%}: {gained.text} in {result.cases} cases of the last of {WINDOWS} "
            f"windows in a row, allowed -{MARGIN}"
        )
        evidence = {
            "ours": result.ours, result.simple: result.simple_hits, "gained": gained.mean,
            "low": gained.low, "high": gained.high, "cases": float(result.cases),
        }  # fmt: skip
        return LineFault(BEHIND, reason, first.since_ms, was_well, evidence)

    def _judge_learning(self) -> LineFault | None:
        examples, engagements = self._examples, self._engagements
        if examples < LEAST_EXAMPLES or engagements < LEAST_ENGAGEMENTS:
            return None
        was_well = self._positive_ms is not None
        since_ms = self._positive_ms if self._positive_ms is not None else self._learned_ms or 0
        self._examples = self._engagements = 0
        reason = f"it learned {examples} examples without a positive one while {engagements} engagements came"
        evidence = {"examples": float(examples), "engagements": float(engagements)}
        return LineFault(NO_POSITIVE, reason, since_ms, was_well, evidence)


@dataclass
class _List:
    """A list of a user. ``engaged``: items that were cases of it already."""

    request_id: str
    time_ms: int
    items: list[str]
    engaged: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Result:
    """A window that is over, beside the better simple list."""

    since_ms: int
    cases: int
    simple: str
    ours: float
    simple_hits: float
    gained: AnytimeEstimate

    @property
    def is_behind(self) -> bool:
        return self.gained.high < -MARGIN


class _Window:
    """Cases of a time. The interval holds at any number of cases, since a window may be extended."""

    def __init__(self, simple: Sequence[str]) -> None:
        self._gained = {name: ClusteredMean(_ALPHA, LEAST_CASES, LEAST_USERS) for name in simple}
        self._hits = Counter[str]()
        self._users = set[int]()
        self._since_ms = self._cases = self._ours = 0

    def add(self, user: str, ours: bool, hits: dict[str, bool], now_ms: int) -> None:
        if not self._cases:
            self._since_ms = now_ms
        self._cases += 1
        self._ours += ours
        cluster = key_of("user", user)
        if len(self._users) < LEAST_USERS:
            self._users.add(cluster)
        for name, hit in hits.items():
            self._hits[name] += hit
            self._gained[name].add(np.array([cluster]), np.array([float(ours) - float(hit)]))

    def is_over(self, now_ms: int) -> bool:
        is_enough = self._cases >= LEAST_CASES and len(self._users) >= LEAST_USERS
        return is_enough and now_ms - self._since_ms >= WINDOW_MS

    def result(self) -> _Result:
        name = max(self._gained, key=lambda name: self._hits[name])
        rates = self._ours / self._cases, self._hits[name] / self._cases
        return _Result(self._since_ms, self._cases, name, *rates, self._gained[name].estimate())


class _Newest(Generic[K, V]):
    """Values of the keys that were put last."""

    def __init__(self, most: int) -> None:
        self._most, self._values = most, OrderedDict[K, V]()

    def get(self, key: K) -> V | None:
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)


class _SimpleList(Protocol):
    """The top of a simple list, at most ten, which learns from engagements one by one."""

    def top(self, user: str, most: int) -> set[str]: ...

    def learn(self, user: str, item: str, now_ms: int) -> None: ...


class _Popularity:
    """Counts that halve every hour. A level is the logarithm of a count plus the time in half-lives, so that
    only learning changes it, and it only grows: the top ten are exact."""

    def __init__(self) -> None:
        self._levels: dict[str, float] = {}
        self._top: dict[str, float] = {}

    def top(self, user: str, most: int) -> set[str]:
        return set(sorted(self._top, key=self._top.__getitem__, reverse=True)[:most])

    def learn(self, user: str, item: str, now_ms: int) -> None:
        now = now_ms / _HALF_LIFE_MS
        level = float(np.logaddexp2(self._levels.get(item, -np.inf), now))
        self._levels[item] = self._top[item] = level
        if len(self._top) > TOP:
            del self._top[min(self._top, key=self._top.__getitem__)]
        if len(self._levels) > _ITEMS:  # the lower half is dropped
            higher = sorted(self._levels, key=self._levels.__getitem__)[_ITEMS // 2 :]
            self._levels = {item: self._levels[item] for item in higher}


class _Transitions:
    """How often an item came next after another of the same user."""

    def __init__(self) -> None:
        self._newest = _Newest[str, str](_USERS)
        self._next = _Newest[str, Counter[str]](_ITEMS)

    def top(self, user: str, most: int) -> set[str]:
        before = self._newest.get(user)
        counts = None if before is None else self._next.get(before)
        return set() if counts is None else {item for item, _ in counts.most_common(most)}

    def learn(self, user: str, item: str, now_ms: int) -> None:
        before = self._newest.get(user)
        if before is not None:
            counts = self._next.get(before) or Counter[str]()
            counts[item] += 1
            if len(counts) > _NEXT:  # those counted once go
                counts = Counter(dict(counts.most_common(_NEXT // 2)))
            self._next.put(before, counts)
        self._newest.put(user, item)
