"""Judged engagements of a log, found by a scan before its replay."""

from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import Engagement, Event, Impression
from recsys.events.hashing import Id, key_of, uniform
from recsys.model.prediction_metrics import days
from replay.datasets.dataset import Dataset
from replay.judging.questions import QUESTIONS, Visits
from replay.replay_run import ReplayOptions

Indices = NDArray[np.int64]
_Pair = tuple[str, str]  # user and item
_SALT: Final = 0x5EED
_DAY_MS: Final = 86_400_000
_QUESTIONS: Final = tuple(QUESTIONS)


class _Scan:
    """Engagements of a log in order: of the first label keys, times and questions, and whether it's the
    user's first engagement with the item; items by moment where there are several."""

    def __init__(self, pause_s: float) -> None:
        self._visits = Visits(pause_s)
        self.keys, self.times, self.questions = array("q"), array("q"), array("b")
        self._pairs, self._places = array("q"), array("q")  # of all engagements; those of the label
        self.moments: dict[int, list[Id]] = {}
        self._newest: dict[str, tuple[int, Id]] = {}  # moment and item, by user

    def pair(self, event: Engagement) -> None:
        self._pairs.append(key_of(str(event.user_id), event.item_id))

    def target(self, event: Engagement, key: int) -> None:
        user_id = str(event.user_id)
        self._places.append(len(self._pairs) - 1)
        self.keys.append(key)
        self.times.append(event.time_ms)
        self.questions.append(_QUESTIONS.index(self._visits.take(user_id, event.time_ms)))

    def moment(self, event: Engagement) -> None:
        """Notes an engagement without a list."""
        user_id = str(event.user_id)
        time_ms, item_id = self._newest.get(user_id, (-1, ""))
        if time_ms == event.time_ms:
            items = self.moments.setdefault(key_of(f"{time_ms}", user_id), [item_id])
            items += [event.item_id] if event.item_id not in items else []
        self._newest[user_id] = event.time_ms, event.item_id

    def is_first(self) -> NDArray[np.bool_]:
        """Mask of the label's engagements that are the user's first of any kind with the item."""
        first = np.zeros(len(self._pairs), np.bool_)
        first[np.unique(np.array(self._pairs, np.int64), return_index=True)[1]] = True
        mask: NDArray[np.bool_] = first[np.array(self._places, np.int64)]
        return mask


class Targets:
    """Judged engagements of a log: a sample of those with the first label.

    By default the later half of the days is judged, of a single day the later half of its time. An item
    counts once a list; in a log without lists, where a request is no more than a visit, each engagement
    counts, and those of a viewer's moment are due together. ``share``: of the engagements; ``cases``: about
    so many for each question at most, of those that will be asked (see ``AskedLists``).
    """

    def __init__(
        self, dataset: Dataset, options: ReplayOptions, share: float = 1.0,
        cases: int | None = None, pause_s: float = 1_800.0, repeats: bool = False,
    ) -> None:  # fmt: skip
        self._label = dataset.labels[0]
        span = options.from_ms, options.until_ms
        self._has_lists = any(isinstance(event, Impression) for event in dataset.events(*span))
        unnamed: set[_Pair] = set()  # engagements without a request, in a log with lists
        scan = self._scan(dataset.events(*span), unnamed, pause_s)
        if unnamed:
            scan = self._scan(dataset.events(*span), unnamed, pause_s)
        time_N, keys_N = np.array(scan.times, np.int64), np.array(scan.keys, np.int64)
        from_ms = options.judge_from_ms
        self.from_ms = _judged_from(time_N, dataset.utc_offset_h) if from_ms is None else from_ms
        judged_N = time_N >= self.from_ms
        self._left, self._moments = set(keys_N[judged_N].tolist()), scan.moments
        if not repeats:
            judged_N &= scan.is_first()
        counts = Counter(np.array(scan.questions)[judged_N].tolist())
        self._shares = {
            question: share if cases is None else min(share, cases / max(1, counts[number]))
            for number, question in enumerate(_QUESTIONS)
        }

    def take(self, event: Event, question: str) -> list[Id]:
        """Drawn items of the event, whose query is due before it and answers the question."""
        items: list[Id] = []
        if isinstance(event, Impression):
            items = [served.item_id for served in event.items]
        elif isinstance(event, Engagement) and event.kind == self._label:
            items = [event.item_id]
            if not self._within(event):
                moment = key_of(f"{event.time_ms}", str(event.user_id))
                items = self._moments.get(moment, items)
        due = {key: item for item in items if (key := self._key(event, item)) in self._left}
        self._left.difference_update(due)
        share = self._shares[question]
        return [item for key, item in due.items() if uniform(_SALT, key) < share]

    def _scan(self, events: Iterable[Event], unnamed: set[_Pair], pause_s: float) -> _Scan:
        """Scans engagements. A pair in ``unnamed`` belongs to the newest list with its item; an empty one is
        filled."""
        scan, newest, without = _Scan(pause_s), dict[_Pair, str](), set[_Pair]()
        for event in events:
            if isinstance(event, Impression):
                pairs = [(str(event.user_id), str(item.item_id)) for item in event.items]
                newest.update((pair, event.request_id) for pair in pairs if pair in unnamed)
            elif isinstance(event, Engagement):
                scan.pair(event)
                if event.kind != self._label:
                    continue
                pair = str(event.user_id), str(event.item_id)
                if not event.request_id:
                    without.add(pair)
                request_id = newest.get(pair, "")
                scan.target(event, self._key(event, event.item_id, request_id))
                if not self._within(event, request_id):
                    scan.moment(event)
        if self._has_lists:
            unnamed |= without
        return scan

    def _within(self, event: Event, request_id: str = "") -> str:
        """The list that an event belongs to: that of its request, else ``request_id``."""
        assert isinstance(event, Impression | Engagement)
        return (event.request_id or request_id) if self._has_lists else ""

    def _key(self, event: Event, item_id: Id, request_id: str = "") -> int:
        """Key of an item in its list; without one in its event."""
        assert isinstance(event, Impression | Engagement)
        within = self._within(event, request_id)
        return key_of(within or f"{event.time_ms}\x1f{event.user_id}", item_id)


def _judged_from(time_N: Indices, utc_offset_h: float) -> int:
    if not len(time_N):
        return 0
    distinct = np.unique(days(time_N, utc_offset_h))
    if len(distinct) == 1:
        return int(time_N.min() + time_N.max()) // 2
    return int(distinct[-(len(distinct) // 2)]) * _DAY_MS - round(utc_offset_h * 3_600_000)
