"""Scope of a rewind: events since a time, by user, source or request; and the answers given since.

Pure: it takes the events of one partition after the other, each in order. A source is the hash of an API key
or network, which engagements carry, and lists that were asked for with a key.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from recsys.events.event_types import SEEN, Stamp, Withdrawal
from recsys.events.hashing import Id
from recsys.events.records import CLICK_LIST
from training.lines.line import MAIN

USER: Final = "user"
ACCOUNT: Final = "account"
NETWORK: Final = "network"
REQUESTS: Final = "requests"
EVERYTHING: Final = "everything"


class ListItem(msgspec.Struct, gc=False):
    """An item of a list."""

    item_id: Id


class LoggedList(msgspec.Struct, tag="impression", tag_field="type", gc=False):
    """The fields of an impression that a rewind needs."""

    time_ms: int
    request_id: str
    user_id: Id
    items: list[ListItem]
    stamp: Stamp | None = None
    source: int | UnsetType = UNSET


class LoggedEngagement(msgspec.Struct, tag="engagement", tag_field="type", gc=False):
    """The fields of an engagement that a rewind needs."""

    time_ms: int
    request_id: str
    user_id: Id
    item_id: Id
    kind: str = ""
    proof: int | UnsetType = UNSET
    source: int | UnsetType = UNSET
    choice: str | UnsetType = UNSET


class LoggedTick(msgspec.Struct, tag="tick", tag_field="type", gc=False):
    """Moves event time."""

    time_ms: int


LoggedEvent = LoggedList | LoggedEngagement | LoggedTick


class ServedList(msgspec.Struct, frozen=True):
    """An answer of the live line."""

    request_id: str
    user_id: Id
    time_ms: int
    line: str
    epoch: int
    step: int
    items: list[Id]


@dataclass
class Named:
    """Meanings of a text of an operator. ``sources``: kind (account or network) by hash. ``seen``: by kind,
    how many events it named; ``requests_seen``: of its requests."""

    text: str
    users: frozenset[str] = frozenset()
    sources: Mapping[int, str] = field(default_factory=dict)
    requests: frozenset[str] = frozenset()
    everything: bool = False
    seen: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    requests_seen: set[str] = field(default_factory=set)


class RewindScope:
    """Collects the events since ``from_ms`` that are named, by user, and the live line's answers since.
    ``shows_lists``: whether an engagement confirms its list as shown."""

    def __init__(self, names: Iterable[Named], from_ms: int, shows_lists: bool = False) -> None:
        self.names, self.from_ms = list(names), from_ms
        self.answers = list[ServedList]()
        self._shows_lists, self._shown = shows_lists, set[str]()  # confirmed lists
        self._choices = dict[tuple[str, str], str]()  # candidates, by served list and item
        self._users = set[str]()  # whose events are all named
        # By user and request, the named items; None: the whole list.
        self._items = defaultdict[str, dict[str, set[str] | None]](dict)
        self._of_user = {user: name for name in self.names for user in name.users}
        self._of_request = {request: name for name in self.names for request in name.requests}
        self._of_source = {source: name for name in self.names for source in name.sources}
        self._everything = next((name for name in self.names if name.everything), None)

    def take(self, events: Iterable[LoggedEvent]) -> None:
        """Takes the events of a partition, from ``from_ms`` on or from earlier."""
        now_ms = 0
        for event in events:
            now_ms = max(now_ms, event.time_ms)  # clients may date an engagement back
            is_since = now_ms >= self.from_ms
            if isinstance(event, LoggedList):
                if is_since:
                    self._add_answer(event)
                    self._add(event, None)
            elif isinstance(event, LoggedEngagement) and event.proof is UNSET:  # else it counts for nobody
                shows = self._shows(event)
                if event.choice:
                    self._choices[event.request_id, str(event.item_id)] = event.choice
                if is_since and (shows or event.kind != SEEN):
                    self._add(event, None if shows else str(event.item_id))

    @property
    def users(self) -> set[str]:
        """Users some of whose events are named."""
        return self._users | self._items.keys()

    def withdrawals(self, time_ms: int) -> Iterator[Withdrawal]:
        """Yields for each of these users the event that takes back what is named."""
        for user in sorted(self.users):
            requests = {} if user in self._users else self._items[user]
            items = {request: sorted(named or ()) for request, named in requests.items()}
            yield Withdrawal(time_ms=time_ms, user_id=user, from_ms=self.from_ms, requests=items)

    def _shows(self, event: LoggedEngagement) -> bool:
        """Whether an engagement is the first in its list, so that all items of the list count by it."""
        is_first = self._shows_lists and event.request_id and event.request_id not in self._shown
        self._shown.add(event.request_id)
        return bool(is_first)

    def _add_answer(self, shown: LoggedList) -> None:
        stamp = shown.stamp
        if stamp is not None and stamp.line == MAIN and not shown.request_id.startswith(CLICK_LIST):
            items = [item.item_id for item in shown.items]
            about = (shown.request_id, shown.user_id, shown.time_ms)
            self.answers.append(ServedList(*about, stamp.line, stamp.epoch, stamp.step, items))

    def _add(self, event: LoggedList | LoggedEngagement, item_id: str | None) -> None:
        """Adds an event, if it is named. ``item_id``: of an engagement; None: a whole list."""
        user, request_id = str(event.user_id), event.request_id
        if self._everything is not None:
            self._everything.seen[EVERYTHING] += 1
            self._users.add(user)
        if name := self._of_user.get(user):
            name.seen[USER] += 1
            self._users.add(user)
        if name := self._of_request.get(request_id):
            name.seen[REQUESTS] += 1
            name.requests_seen.add(request_id)
            self._items[user][request_id] = None
            self._add_choice(event)
        if isinstance(event.source, int) and (name := self._of_source.get(event.source)):
            name.seen[name.sources[event.source]] += 1
            named = self._items[user].setdefault(request_id, set())
            if item_id is None:
                self._items[user][request_id] = None
            elif named is not None:
                named.add(item_id)
            self._add_choice(event)

    def _add_choice(self, event: LoggedList | LoggedEngagement) -> None:
        """Adds the list of candidates that a click is learned in; it is of that click alone."""
        if not isinstance(event, LoggedEngagement):
            return
        choice = self._choices.get((event.request_id, str(event.item_id)), "")
        for request_id in (event.request_id, choice):
            if request_id.startswith(CLICK_LIST):
                self._items[str(event.user_id)][request_id] = None
