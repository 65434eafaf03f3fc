"""Events from before a log as columns: folded into item counters at once, and into a session when it is first
read. The state is that of the same events one by one, bit for bit.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import Engagement, Event, Impression, ServedItem
from recsys.features.counters import amounts, amounts_by_code
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.item_counters import ItemCounters
from recsys.features.session import COUNTER_ROWS, REQUESTS, USER, Entry, Session
from recsys.features.source_credits import ALL
from replay.player import Player

NAME: Final = "history"  # of the surface, and in request ids
_BLOCK: Final = 65_536  # rows that are counted together


@dataclass(frozen=True)
class Past:
    """Lists of one item each in time order (N,), each with its engagements at the same time. No later event
    may belong to their requests."""

    users: NDArray[Any]
    items: NDArray[Any]
    time_ms: NDArray[np.int64]
    places: NDArray[np.int64]  # among the user's lists, for the request id
    codes: NDArray[np.int64]  # index into ``kinds``
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
        fold = PastFold(self, player.features, keys_UI, items_N)
        fold.fold_counters(player.item_counters, player.with_visits)
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
            yield Impression(items=[ServedItem(item_id=item_id)], **about)
            for kind in self.kinds[self.codes[row]]:
                yield Engagement(item_id=item_id, kind=kind, **about)

    def request_id(self, row: int) -> str:
        return f"{self.users[row].item()}-{NAME}-{self.places[row].item()}"

    def rows_by_user(self) -> dict[str, Keys]:
        """The rows of each user, in order."""
        users, codes = np.unique(self.users, return_inverse=True)
        rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        return dict(zip(map(str, users.tolist()), rows, strict=True))


def folds_columns(features: FeatureSet) -> bool:
    """Whether a past can be folded as columns: without operators, and with all that was shown."""
    return features.schema.shown_by == "impression" and not (
        features.lefts or features.tracked or features.distinct or features.declared.history_of
    )


class PastFold:
    """Folds a past, once. ``keys_UI``: of its distinct items, as before the log; ``items_N``: the index of
    each row's among them."""

    def __init__(self, past: Past, features: FeatureSet, keys_UI: Keys, items_N: Keys) -> None:
        self._past, self._features, self._keys_UI, self._items_N = past, features, keys_UI, items_N
        self._context = features.context_keys(NAME, {})[0]
        self._rows = past.rows_by_user()
        self._entries = [features.history_entry(keys_I) for keys_I in keys_UI]
        own = tuple(dict.fromkeys((USER, self._context)))
        self._own = [(*own, *features.counted_keys(keys_I)) for keys_I in keys_UI]
        labels = features.schema.labels
        self._outcomes = [[float(label in kinds) for label in labels] for kinds in past.kinds]
        self._shown = amounts(features.kinds, "shown")
        none: dict[str, Any] = {"time_ms": 0, "request_id": "", "user_id": "", "item_id": ""}
        counted = [[k for k in kinds if k in features.engagement_kinds] for kinds in past.kinds]
        self._each = [
            [self._shown, *(features.amounts(Engagement(kind=k, **none)) for k in kinds)]
            for kinds in counted
        ]
        self._added = amounts_by_code(self._each)

    def fold_counters(self, counters: ItemCounters, with_visits: bool) -> None:
        """Counts everything of all viewers, with their visits if anything reads them."""
        past, main = self._past, self._features.main_labels[0]
        groups = [counters.counted_keys(keys_I, self._context, 0, {}) for keys_I in self._keys_UI]
        added = amounts_by_code([[one for one in each if one.any()] for each in self._each])
        liked = np.array([main in kinds for kinds in past.kinds])[past.codes]
        credit = amounts_by_code([[self._shown + amounts(self._features.kinds, main)]])
        for start in range(0, len(liked), _BLOCK):
            block = slice(start, start + _BLOCK)
            items, times = self._items_N[block], past.time_ms[block]
            counters.add_all(groups, items, added, past.codes[block], times)
            times = times[liked[block]]
            one = np.zeros(len(times), np.int64)
            counters.add_all([(ALL,)], one, credit, one, times)
        for row in np.flatnonzero(liked).tolist() if with_visits else ():
            item = int(self._keys_UI[self._items_N[row], 0])
            counters.visits.add(past.users[row].item(), item, int(past.time_ms[row]))

    def fold_session(self, session: Session) -> None:
        """Folds the viewer's part into a session without events."""
        rows, past = self._rows.pop(str(session.user_id), None), self._past
        if rows is None:
            return
        items, codes = self._items_N[rows].tolist(), past.codes[rows].tolist()
        groups = [self._own[item] for item in items]
        limit = COUNTER_ROWS * self._features.own_rows
        if session.plain or len(set(chain.from_iterable(groups))) > 2 * limit:
            self._fold_events(session, rows)
            return
        order, times_ms = np.arange(len(rows)), past.time_ms[rows]
        session.counters.add_all(groups, order, self._added, past.codes[rows], times_ms)
        newest = rows[-max(REQUESTS, session.history.maxlen or 0) :].tolist()
        ids = [past.request_id(row) for row in newest]
        session.requests.extend((id_, self._context) for id_ in ids)
        session.seen.extend(self._entries[item][0] for item in items)
        last = zip(ids[::-1], items[::-1], codes[::-1], times_ms[::-1].tolist(), strict=False)
        entries = [Entry(id_, self._entries[n], self._outcomes[c], 0, ms) for id_, n, c, ms in last]
        session.history.extend(entries[::-1])
        hidden = (n for n, c in zip(items, codes, strict=True) if "hide" in past.kinds[c])
        session.hidden.extend(self._entries[item][0] for item in hidden)
        session.events += sum(len(past.kinds[code]) for code in codes)
        session.last_ms = max(session.last_ms, times_ms[-1].item())

    def _fold_events(self, session: Session, rows: Keys) -> None:
        keys = iter(self._keys_UI[self._items_N[rows]])
        keys_I = self._keys_UI[0]
        for event in self._past.events(rows.tolist()):
            if isinstance(event, Impression):
                keys_I = next(keys)
                session.fold_impression(event, keys_I[None])
            elif isinstance(event, Engagement):
                session.fold_engagement(event, keys_I)
