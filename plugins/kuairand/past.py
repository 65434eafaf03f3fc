"""Events from before a log as columns: folded into item counters at once, and into a session when it is first
read. The state is that of the same events one by one, bit for bit.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays import key_index
from recsys.arrays.compiled import kernel, read_only
from recsys.events.event_types import Engagement, Event, Impression, ServedItem
from recsys.features import counter_kernels
from recsys.features.columns import VIEWER
from recsys.features.counters import CounterTable, Values, amounts
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.item_counters import ItemCounters
from recsys.features.session import COUNTER_ROWS, REQUESTS, Entry, Session
from recsys.features.source_credits import ALL
from recsys.model.model import unique_keys
from replay.player import Player

NAME: Final = "history"  # of the surface, and in request ids
_BLOCK: Final = 65_536  # rows that are counted together
_int, _float = types.int64, types.float32
_KEYS, _VALUES = read_only(_int, 1), read_only(_float, 2)
Added = tuple[Values, Keys]  # amounts (A, K), and where those of each code begin, with their end


@dataclass(frozen=True)
class Past:
    """Lists of one item each in time order (N,), each with its engagements at the same time. No later event
    may belong to their requests."""

    users: NDArray[Any]
    items: NDArray[Any]
    time_ms: NDArray[np.int64]
    places: NDArray[Any]  # among the user's lists, for the request id
    codes: NDArray[Any]  # index into ``kinds``
    kinds: Sequence[Sequence[str]]  # of engagement, in order

    def __iter__(self) -> Iterator[Event]:
        return self.events(range(len(self.users)))

    def fold_into(self, player: Player) -> bool:
        """Folds all events: into sessions when they are first read. False: features need them one by one."""
        if not folds_columns(player.features):
            return False
        items, first, items_N = np.unique(self.items, return_index=True, return_inverse=True)
        keys = {at: player.keys_of(self.items[at].item()) for at in np.sort(first).tolist()}
        keys_UI = np.array([keys[at] for at in first.tolist()], np.int64).reshape(len(items), -1)
        fold = PastFold(self, player.features, keys_UI, items, items_N)
        fold.fold_counters(self, items_N, player.item_counters)
        player.take_visits()
        for session in player.sessions.values():
            fold.fold_session(session)
        player.fold_before = fold.fold_session
        return True

    def events(self, rows: Iterable[int]) -> Iterator[Event]:
        for row in rows:
            item_id = self.items[row].item()
            about: dict[str, Any] = {"time_ms": int(self.time_ms[row]), "surface": NAME}
            about |= {"request_id": self.request_id(row), "user_id": self.users[row].item()}
            yield Impression(items=[ServedItem(item_id=item_id)], shown=True, **about)
            for kind in self.kinds[self.codes[row]]:
                yield Engagement(item_id=item_id, kind=kind, **about)

    def request_id(self, row: int) -> str:
        return f"{self.users[row].item()}-{NAME}-{self.places[row].item()}"


@kernel(types.void(_float[:, ::1], _int[::1], read_only(types.float64, 1), _KEYS, _KEYS, _KEYS,
                   _VALUES, _KEYS, _KEYS, _KEYS))  # fmt: skip
def add_events(values: Any, last_ms: Any, half_lives: Any, rows: Any, begins: Any, groups: Any,
               amounts: Any, parts: Any, codes: Any, times_ms: Any) -> None:  # fmt: skip
    """Adds events in order: those rows of ``amounts`` that belong to its code, to the rows of its group."""
    for n in range(groups.shape[0]):
        own = rows[begins[groups[n]] : begins[groups[n] + 1]]
        for a in range(parts[codes[n]], parts[codes[n] + 1]):
            counter_kernels.add(values, last_ms, half_lives, own, amounts[a], times_ms[n])


@dataclass(frozen=True)
class Groups:
    """Groups of counter keys, one after the other. ``begins`` (G + 1,): of each, and the end."""

    keys: Keys
    begins: Keys

    @staticmethod
    def of(groups: Sequence[tuple[int, ...]]) -> "Groups":
        keys = np.array([*chain.from_iterable(groups)], np.int64)
        return Groups(keys, np.cumsum([0, *map(len, groups)]))

    def of_each(self, groups_N: NDArray[Any]) -> "Groups":
        """A group for each of some events, by the numbers of their groups."""
        sizes_N = self.begins[groups_N + 1] - self.begins[groups_N]
        ends_N = np.cumsum(sizes_N)
        places = np.arange(sizes_N.sum()) + np.repeat(self.begins[groups_N] + sizes_N - ends_N, sizes_N)
        return Groups(self.keys[places], np.append(0, ends_N))

    def in_table(self, table: CounterTable) -> "PlacedGroups":
        """The groups' rows in a table; keys that it lacks are added, with no more room than needed."""
        new = unique_keys(self.keys)[0]
        if len(table):
            new = np.array([key for key in new.tolist() if key not in table], np.int64)
        table.set(new, np.zeros((len(new), table.columns), np.float32), np.zeros(len(new), np.int64))
        rows = np.empty(len(self.keys), np.int64)
        key_index.find(table.arrays[0], self.keys, rows)
        return PlacedGroups(table, rows, self.begins)


@dataclass(frozen=True)
class PlacedGroups:
    """Groups of rows in a table of counters."""

    table: CounterTable
    rows: Keys
    begins: Keys

    def add(self, groups_N: Keys, added: Added, codes_N: Keys, times_ms_N: Keys) -> None:
        """Adds the amounts of each event's code to all keys of its group, in order."""
        _, values, last_ms = self.table.arrays
        add_events(values, last_ms, self.table.half_lives_ms, self.rows, self.begins, groups_N,
                   *added, codes_N, times_ms_N)  # fmt: skip


def amounts_by_code(codes: Sequence[Sequence[Values]]) -> Added:
    """Amounts of events by code; a code may have several."""
    rows = np.array([*chain.from_iterable(codes)], np.float32)
    return rows, np.cumsum([0, *map(len, codes)])


def folds_columns(features: FeatureSet) -> bool:
    """Whether a past can be folded as columns: without operators, and with all that was shown."""
    return features.schema.shown_by == "impression" and not (
        features.lefts
        or features.operators.tracked
        or features.operators.distinct
        or features.declared.history_of
    )


class PastFold:
    """Folds a past, once. ``keys_UI``: of its distinct items, as before the log; ``items_N``: the index of
    each row's among them. Rows are held viewer by viewer."""

    def __init__(
        self, past: Past, features: FeatureSet, keys_UI: Keys, items_U: NDArray[Any], items_N: Keys
    ) -> None:
        self._features, self._keys_UI, self._items_U = features, keys_UI, items_U
        self._kinds, self._context = past.kinds, features.context_keys(NAME, {})[0]
        self._entries = [features.history_entry(keys_I) for keys_I in keys_UI]
        self._item_keys = [entry[0] for entry in self._entries]
        own = tuple(dict.fromkeys((VIEWER, self._context)))
        self._own = Groups.of([(*own, *features.counted_keys(keys_I)) for keys_I in keys_UI])
        labels = features.schema.labels
        self._outcomes = [[float(label in kinds) for label in labels] for kinds in past.kinds]
        self._shown = amounts(features.kinds, "shown")
        none: dict[str, Any] = {"time_ms": 0, "request_id": "", "user_id": "", "item_id": ""}
        counted = [[k for k in kinds if k in features.engagement_kinds] for kinds in past.kinds]
        self._each = [
            [self._shown, *(features.amounts(Engagement(kind=k, **none)) for k in kinds)] for kinds in counted
        ]
        self._added = amounts_by_code(self._each)
        users, viewers = np.unique(past.users, return_inverse=True)
        order, ends = np.argsort(viewers, kind="stable"), np.cumsum(np.bincount(viewers))
        self._places, self._items_N = past.places[order], items_N[order].astype(np.int32)
        codes = self._codes_N = past.codes[order].astype(np.int16)
        self._times_ms_N = past.time_ms[order]
        self._hides = np.array(["hide" in kinds for kinds in past.kinds])[codes]
        self._any_hides = bool(self._hides.any())
        begins, engaged = [0, *ends.tolist()], np.array([len(kinds) for kinds in past.kinds])[codes]
        events = np.add.reduceat(engaged, begins[:-1]) if len(users) else ends
        rows = zip(begins, begins[1:], events.tolist(), strict=False)
        # By viewer: where rows start and stop, and the number of engagements.
        self._rows = dict(zip(map(str, users.tolist()), rows, strict=True))

    def fold_counters(self, past: Past, items_N: Keys, counters: ItemCounters) -> None:
        """Counts everything of all viewers, with their visits."""
        main = self._features.main_labels[0]
        keys = [counters.counted_keys(keys_I, self._context, 0, {}) for keys_I in self._keys_UI]
        groups, everyone = Groups.of([*keys, (ALL,)]).in_table(counters.counters), len(keys)
        counters.mark_changed(chain(*keys, [ALL]))
        added = amounts_by_code([[one for one in each if one.any()] for each in self._each])
        liked = np.array([main in kinds for kinds in past.kinds])[past.codes]
        credit = amounts_by_code([[self._shown + amounts(self._features.kinds, main)]])
        for start in range(0, len(liked), _BLOCK):
            block = slice(start, start + _BLOCK)
            items, times = items_N[block], past.time_ms[block]
            groups.add(items, added, past.codes[block].astype(np.int64), times)
            times = times[liked[block]]
            groups.add(np.full(len(times), everyone), credit, np.zeros(len(times), np.int64), times)
        for row in np.flatnonzero(liked).tolist():
            item = int(self._keys_UI[items_N[row], 0])
            counters.visits.add(past.users[row].item(), item, int(past.time_ms[row]))

    def fold_session(self, session: Session) -> None:
        """Folds the viewer's part into a session without events."""
        start, stop, events = self._rows.pop(str(session.user_id), (0, 0, 0))
        if start == stop:
            return
        items, codes, times_ms = self._items_N, self._codes_N, self._times_ms_N
        own = self._own.of_each(items[start:stop])
        limit = 2 * COUNTER_ROWS * self._features.operators.own_rows
        if session.plain or len(unique_keys(own.keys)[0]) > limit:
            self._fold_events(session, slice(start, stop))
            return
        rows = np.arange(stop - start), self._added, codes[start:stop].astype(np.int64)
        own.in_table(session.counters).add(*rows, times_ms[start:stop])
        seen = items[start:stop].tolist()
        session.seen.extend(map(self._item_keys.__getitem__, seen))
        if self._any_hides:
            hidden = np.flatnonzero(self._hides[start:stop]).tolist()
            session.hidden.extend(self._item_keys[seen[place]] for place in hidden)
        session.events += events
        session.last_ms = max(session.last_ms, times_ms[stop - 1].item())
        first = max(start, stop - max(REQUESTS, session.history.maxlen or 0))
        newest = slice(first, stop)
        ids = [f"{session.user_id}-{NAME}-{place}" for place in self._places[newest].tolist()]
        session.requests.extend((id_, self._context) for id_ in ids)
        columns = seen[first - start :], codes[newest].tolist(), times_ms[newest].tolist()
        session.history.extend(
            Entry(id_, self._entries[item], self._outcomes[code], 0, time_ms)
            for id_, item, code, time_ms in zip(ids, *columns, strict=True)
        )

    def _fold_events(self, session: Session, rows: slice) -> None:
        items = self._items_N[rows]
        users = np.full(len(items), session.user_id)
        own = self._times_ms_N[rows], self._places[rows], self._codes_N[rows]
        events = Past(users, self._items_U[items], *own, self._kinds)
        keys = iter(self._keys_UI[items])
        keys_I = self._keys_UI[0]
        for event in events:
            if isinstance(event, Impression):
                keys_I = next(keys)
                session.fold_impression(event, keys_I[None])
            elif isinstance(event, Engagement):
                session.fold_engagement(event, keys_I)
