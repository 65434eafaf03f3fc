"""Both questions, asked of a recommender and of all simple lists over the rows of a log.

``AskedLists`` knows items as indices; ``Judge`` follows a recommender that answers with ids, e.g. over HTTP.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.events.hashing import Id
from replay.judging.answers import OURS, QuestionedAnswers, rank_of
from replay.judging.bounded_state import Indices, NewestItems
from replay.judging.ease import Ease
from replay.judging.neighbour_lists import ItemKnn, SessionKnn
from replay.judging.questions import Visits
from replay.judging.simple_lists import OwnItems, Popularity, SimpleList, Transitions

_HALF_LIVES_H: Final = (1, 6, 24, 7 * 24, 30 * 24)
_PAUSES_H: Final = (0.5, 24)  # sparse logs need the longer one
_SEEN: Final = 500  # newest items of a viewer, as a session remembers by default
_ITEMS: Final = 1_000_000
_BLOCK: Final = 1_000  # rows


def simple_lists(repeats: bool) -> list[SimpleList]:
    """A new one of each; the viewer's own items only where items repeat."""
    return [
        *(Popularity(hours) for hours in _HALF_LIVES_H),
        Transitions(),
        ItemKnn(),
        *(SessionKnn(hours) for hours in _PAUSES_H),
        Ease(),
        *([OwnItems()] if repeats else []),
    ]


class Open(Protocol):
    """Mask of items that may be in a list."""

    def __getitem__(self, indices: Indices, /) -> NDArray[np.bool_]: ...


class AskedLists:
    """Asks simple lists for the item that a viewer took, and then has them learn it.

    Rows of a moment are learned when a later moment begins: the items of a basket aren't predicted from
    each other, and in a log of days no row from another of its day. If items don't repeat
    (``repeats``), lists leave out what the viewer has engaged with, and such an item isn't asked for.
    """

    def __init__(self, pause_s: float, repeats: bool, lists: Sequence[SimpleList] | None = None) -> None:
        self._lists = simple_lists(repeats) if lists is None else lists
        self._visits, self._repeats = Visits(pause_s), repeats
        self._seen = NewestItems(_SEEN)
        self._moment_ms = 0
        self._moment: list[tuple[str, int]] = []  # its rows, which aren't learned yet
        self._own = [simple for simple in self._lists if isinstance(simple, OwnItems)]
        self._of_moment: set[tuple[str, int]] = set()
        self.answers, self.rows = QuestionedAnswers(), 0

    def question(self, user_id: str, now_ms: int) -> str:
        return self._visits.question(user_id, now_ms)

    def is_asked(self, user_id: str, item: int, now_ms: int) -> bool:
        """Whether an engagement now is a case: once a moment, and not with an item that the viewer had."""
        self._learn_before(now_ms)
        had = not self._repeats and item in self._seen.of(user_id)
        return not had and (user_id, item) not in self._of_moment

    def ask(
        self, user_id: str, now_ms: int, wanted: Sequence[int], ours: Sequence[int],
        open_items: Open | None = None,
    ) -> None:  # fmt: skip
        """Adds cases of a moment: the wanted items, -1 for one without an index, and their ranks in our list.
        ``open_items``: the lists may have no others."""
        self._learn_before(now_ms)
        ranks = [{OURS: rank} for rank in ours]
        closed = np.array([] if self._repeats else self._seen.of(user_id), np.int64)
        for simple in self._lists:
            indices, scores = simple.scores(user_id, now_ms)
            is_open = np.isin(indices, closed, invert=True)
            if open_items is not None:
                is_open &= open_items[indices]
            indices, scores = indices[is_open], scores[is_open]
            for item, by_name in zip(wanted, ranks, strict=True):
                by_name[simple.name] = rank_of(indices, scores, item)
        answers = self.answers.by_question[self.question(user_id, now_ms)]
        for by_name in ranks:
            answers.add(user_id, self.rows, by_name)

    def see(self, user_id: str, item: int) -> None:
        """Takes an engagement of another kind than the judged one."""
        self._seen.add(user_id, item)

    def recall(self, user_id: str, item: int, time_ms: int) -> None:
        """Takes an engagement of long ago, before any of ``learn``: only the viewer's own items learn it."""
        self._visits.take(user_id, time_ms)
        self._seen.add(user_id, item)
        for own in self._own:
            own.learn(user_id, item, time_ms)
        self.rows += 1

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        """Takes an engagement of the judged kind. Time never goes back."""
        self._learn_before(time_ms)
        self._moment_ms = time_ms
        self._visits.take(user_id, time_ms)
        self._moment.append((user_id, item))
        self._of_moment.add((user_id, item))
        self.rows += 1

    def _learn_before(self, now_ms: int) -> None:
        if not self._moment or now_ms <= self._moment_ms:
            return
        for user_id, item in self._moment:
            self._seen.add(user_id, item)
            for simple in self._lists:
                simple.learn(user_id, item, self._moment_ms)
        self._moment.clear()
        self._of_moment.clear()


class Judge:
    """Judges a recommender by the rows of a log: ``ask`` with its list before each row, then ``take``. The
    list is of ten items or more; what more than ten are judged by is recall at 100 and 300.

    State: that of the lists and answers, and an index for each of a million items. Later ones are counted in
    ``items_beyond``: they are cases, but no simple list learns them. ``lists``: as of ``AskedLists``.
    """

    def __init__(
        self, pause_s: float, repeats: bool, items: int = _ITEMS, lists: Sequence[SimpleList] | None = None
    ) -> None:
        self._asked, self._limit = AskedLists(pause_s, repeats, lists), items
        self._indices: dict[str, int] = {}
        self._due: tuple[str, int, list[str]] | None = None
        self._depth = 10  # requested at least; a shorter list has no more
        self._counts: Counter[str] = Counter(seen=0, items_beyond=0)

    def ask(self, user_id: Id, time_ms: int, our_items: Sequence[Id] | None) -> None:
        """Takes our list, best first, as of before the next row; None: that row is only learned."""
        self._due = None if our_items is None else (str(user_id), time_ms, [*map(str, our_items)])

    def take(self, user_id: Id, item_id: Id, time_ms: int) -> None:
        """Takes the row: an engagement of the judged kind. Time never goes back."""
        user, item = str(user_id), str(item_id)
        if self._due is not None:
            self._judge(user, item, time_ms)
        if item not in self._indices and len(self._indices) >= self._limit:
            self._counts["items_beyond"] += 1
            return
        self._asked.learn(user, self._indices.setdefault(item, len(self._indices)), time_ms)

    def report(self, block: int = _BLOCK) -> dict[str, Any]:
        """Figures of both questions, and ``curves``: hits of each list by question and block of rows."""
        answers = self._asked.answers
        return {
            "rows": self._asked.rows,
            **self._counts,
            "questions": answers.report(self._depth),
            "curves": answers.curves(block),
        }

    def _judge(self, user: str, item: str, time_ms: int) -> None:
        assert self._due is not None
        if self._due[:2] != (user, time_ms):
            raise ValueError(
                f"the list is of user {self._due[0]} at {self._due[1]}, the row of {user} at {time_ms}: "
                "call ask with the user and time of the row that follows"
            )
        ours, self._due = self._due[2], None
        self._depth = max(self._depth, len(ours))
        index = self._indices.get(item, -1)
        if not self._asked.is_asked(user, index, time_ms):
            self._counts["seen"] += 1
            return
        rank = ours.index(item) + 1 if item in ours else 0
        self._asked.ask(user, time_ms, [index], [rank])
