"""Viewers of a log: before each row its user asks a system for a list; then the row is sent.

Judged are the rows of one kind. A row of a list that the log has is sent in that list, which the system is
asked to rank. Another row is sent in the list that was asked for, if that holds its item, else alone. A user
asks once for the rows of a moment: whoever takes a basket sees one list before it. A row of another kind goes
with the row before it of the same user and item. Pure: the system is handed in."""

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from recsys.events.event_types import SEEN, Engagement, Event, Impression, Item, User
from recsys.events.hashing import Id, uniform

K = TypeVar("K")
V = TypeVar("V")
_READ_SALT: Final = 0x4EAD
_LISTS: Final = 100_000  # newest lists whose rows may still come
_ITEMS: Final = 200  # published together at the most
_MOST: Final = 100  # items of a list that the system ranks


class SystemList(NamedTuple):
    """A list of the system: its request, and its items, best first."""

    request_id: str
    item_ids: tuple[str, ...]


class System(Protocol):
    """A system, asked as its clients ask it. Its event time passes until the time of ``wait``."""

    def wait(self, time_ms: int) -> None:
        """Waits until event time reaches ``time_ms``, and stands still there."""

    def publish(self, items: Sequence[Item]) -> None: ...
    def profile(self, users: Sequence[User]) -> None: ...

    def recommend(self, user_id: Id, surface: str, context: Mapping[str, Any]) -> SystemList: ...

    def rank(
        self, user_id: Id, item_ids: Sequence[Id], surface: str, context: Mapping[str, Any]
    ) -> SystemList: ...

    def send(self, events: Sequence[Engagement]) -> None: ...


class Judged(Protocol):
    """Judge of the lists; see ``replay.judging.asked_lists.Judge``."""

    def ask(self, user_id: Id, time_ms: int, our_items: Sequence[Id] | None) -> None: ...
    def take(self, user_id: Id, item_id: Id, time_ms: int) -> None: ...


class LogViewers:
    """Plays events in the order of time. ``label``: the kind of engagement that is judged. ``read``: lists
    per row that are asked for besides, and only read. ``counts``: rows, lists, and rows sent in a list."""

    def __init__(self, system: System, judge: Judged, label: str, read: float = 0.0) -> None:
        self._system, self._judge, self._label, self._read = system, judge, label, read
        self._items: list[Item] = []
        self._users: list[User] = []
        # Lists of the log as the system ranked them, and as it would have recommended then.
        self._ranked = OrderedDict[str, tuple[str, SystemList]]()
        # Request of the newest row of user and item.
        self._rows = OrderedDict[tuple[str, str], str]()
        self._moment_ms = 0
        self._asked: dict[str, SystemList] = {}  # for the moment's rows, by user
        self.counts = Counter[str]()

    def play(self, event: Event) -> None:
        """Takes the next event. Time never goes back."""
        if isinstance(event, Item):
            self._items.append(event)
            if len(self._items) >= _ITEMS:
                self.publish()
        elif isinstance(event, User):
            self._users.append(event)
        elif isinstance(event, Impression):
            self._show(event)
        elif isinstance(event, Engagement):
            self._engage(event)

    def publish(self) -> None:
        """Publishes the items and profiles that came since the last row."""
        if self._items:
            self._system.publish(self._items)
            self._items.clear()
        if self._users:
            self._system.profile(self._users)
            self._users.clear()

    def _show(self, shown: Impression) -> None:
        self._before(shown.time_ms)
        served = self._recommend(shown, shown.context)
        ids = [item.item_id for item in shown.items[:_MOST]]
        if not ids:
            return
        ranked = self._system.rank(shown.user_id, ids, shown.surface, shown.context)
        _put(self._ranked, shown.request_id, (ranked.request_id, served))
        seen = Engagement(
            time_ms=shown.time_ms, request_id=ranked.request_id, user_id=shown.user_id,
            item_id=shown.items[0].item_id, kind=SEEN, surface=shown.surface,
        )  # fmt: skip
        if shown.shown:
            self._system.send([seen])
        self.counts["lists of the log"] += 1

    def _engage(self, row: Engagement) -> None:
        self._before(row.time_ms)
        pair = str(row.user_id), str(row.item_id)
        request_id, served = self._ranked.get(row.request_id, (self._rows.get(pair, ""), None))
        if row.kind == self._label:
            if served is None:
                served = self._list_of_moment(row)
                request_id = served.request_id if pair[1] in served.item_ids else ""
            self._judge.ask(row.user_id, row.time_ms, served.item_ids)
            self._judge.take(row.user_id, row.item_id, row.time_ms)
        _put(self._rows, pair, request_id)
        row.request_id, row.event_id = request_id, None
        self._system.send([row])
        self.counts["rows"] += 1
        self.counts["rows in a list"] += bool(request_id)

    def _list_of_moment(self, row: Engagement) -> SystemList:
        if row.time_ms != self._moment_ms:
            self._moment_ms, self._asked = row.time_ms, {}
        user_id = str(row.user_id)
        if user_id not in self._asked:
            self._asked[user_id] = self._recommend(row, {})
        return self._asked[user_id]

    def _before(self, time_ms: int) -> None:
        self.publish()
        self._system.wait(time_ms)

    def _recommend(self, event: Impression | Engagement, context: Mapping[str, Any]) -> SystemList:
        """The user's list; before it the share that is only read."""
        row = self.counts["lists"]
        times = int(self._read) + (uniform(_READ_SALT, "read", row) < self._read % 1)
        for _ in range(1 + times):
            served = self._system.recommend(event.user_id, event.surface, context)
        self.counts["lists"] += 1
        self.counts["lists that were only read"] += times
        return served


def _put(places: OrderedDict[K, V], key: K, value: V) -> None:
    places[key] = value
    if len(places) > _LISTS:
        places.popitem(last=False)
