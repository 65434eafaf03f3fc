"""The questions that quality is judged by: the next item of a visit, and the first item of the next visit."""

from collections import OrderedDict
from typing import Final

from recsys.features.families.declared import Declared

NEXT: Final = "next"
FIRST: Final = "first"
NEW: Final = "new"  # a viewer without a past: neither of the two
QUESTIONS: Final = {
    NEXT: "the next item of a visit",
    FIRST: "the first item of the next visit",
    NEW: "new viewers",
}
_PAUSE_S: Final = 1_800.0
_USERS: Final = 1_000_000


def pause_of(declared: Declared) -> float:
    """Seconds of the pause that ends a visit: the app's ``visit``, by default half an hour."""
    return declared.visit_s or _PAUSE_S


class Visits:
    """Tells which question an engagement answers. It sees each user's engagements in the order of time.

    A visit ends with a pause of more than ``pause_s``. All engagements of a moment answer the question of
    that moment: where a log has days only, a day's rows are all ``first`` or all ``new``, and so are the
    items of a basket. Beyond ``users``, the user who was inactive longest is new again.
    """

    def __init__(self, pause_s: float = _PAUSE_S, users: int = _USERS) -> None:
        self._pause_ms, self._limit = 1000 * pause_s, users
        self._newest: OrderedDict[str, tuple[int, str]] = OrderedDict()  # moment and its question

    def question(self, user_id: str, now_ms: int) -> str:
        """The question that an engagement now would answer."""
        if user_id not in self._newest:
            return NEW
        moment_ms, question = self._newest[user_id]
        if now_ms <= moment_ms:
            return question
        return NEXT if now_ms - moment_ms <= self._pause_ms else FIRST

    def take(self, user_id: str, time_ms: int) -> str:
        """Takes an engagement; the question that it answered."""
        question = self.question(user_id, time_ms)
        self._newest[user_id] = time_ms, question
        self._newest.move_to_end(user_id)
        if len(self._newest) > self._limit:
            self._newest.popitem(last=False)
        return question
