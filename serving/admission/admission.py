"""Who is let in: a request is refused at the door where its answer would come too late. Pure.

One event loop answers one request after the other, so a request waits for those before it: their number times
the time that one takes. A queue that is gone now and then is a burst, and may grow until the deadline. One
that wasn't gone for 30 ms and five answers stands: it makes every answer late and not one more of them, so
it is cut short (the rule of CoDel: Nichols and Jacobson, "Controlling queue delay", 2012).
"""

import math
from collections import OrderedDict
from typing import Final

ONGOING, WAIT, CLIENT = "ongoing", "wait", "client"  # why somebody is refused
_LEAST: Final = 4  # always let in: fewer would leave the thread without work
_INTERVAL_S: Final = 0.03  # a queue that was never gone for so long stands
_ANSWERS: Final = 5  # given meanwhile: behind a loop that hung for a moment no queue stands
_READ_S: Final = 1.0  # for so long the shortest reading of a session counts
_SMOOTHING: Final = 0.05
_FIRST_S: Final = 0.005  # what an answer takes, until one was seen
_CLIENTS: Final = 10_000  # remembered at a time: who was longest away begins with a full bucket


class Limit:
    """At most ``most`` inside at a time. Times are seconds of one clock that never goes back."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0

    def refusal(self, now_s: float) -> str:
        """Why the next request isn't let in; empty where it is."""
        return ONGOING if self.inside >= self.most else ""

    def enter(self, now_s: float) -> None:
        self.inside += 1

    def leave(self, now_s: float) -> None:
        self.inside -= 1


class Admission(Limit):
    """A limit where one thread answers one after the other: nobody is let in who would wait for longer than
    ``deadline_s``, or for longer than ``queue_s`` where the queue stands."""

    def __init__(self, deadline_s: float, queue_s: float, most: int) -> None:
        super().__init__(most)
        self.deadline_s, self.queue_s = deadline_s, queue_s
        self.answer_s = (
            _FIRST_S  # smoothed time between two answers while there is something to answer
        )
        self._since_s = 0.0
        self._short_s = -math.inf  # when there was last no queue
        self._answers = 0  # given since
        self._read_s, self._read_at_s = 0.0, -math.inf

    def refusal(self, now_s: float) -> str:
        if self.inside < min(_LEAST, self.most):
            return ""
        if full := super().refusal(now_s):
            return full
        longest_s = self.queue_s if self.standing(now_s) else self.deadline_s
        return WAIT if self._wait_s() > longest_s else ""

    def standing(self, now_s: float) -> bool:
        """Whether the queue has been there for too long."""
        return self._answers >= _ANSWERS and now_s - self._short_s > _INTERVAL_S

    def enter(self, now_s: float) -> None:
        if self.inside == 0:
            self._since_s = self._short_s = now_s
            self._answers = 0
        super().enter(now_s)

    def read(self, took_s: float, now_s: float) -> None:
        """A session was read: a wait that keeps no thread. The shortest of a second is what the store takes,
        and what is more the thread's queue."""
        if took_s <= self._read_s or now_s - self._read_at_s > _READ_S:
            self._read_s, self._read_at_s = took_s, now_s

    def leave(self, now_s: float) -> None:
        """An answer was given: since the one before it, or since nobody was inside, so much time went by."""
        self.answer_s += _SMOOTHING * (now_s - self._since_s - self.answer_s)
        self._since_s = now_s
        super().leave(now_s)
        self._answers += 1
        if self._wait_s() < self.answer_s / 2:
            self._short_s, self._answers = now_s, 0

    def _wait_s(self) -> float:
        """How long the next one would wait for the thread: all of the time that those inside take (Little's
        law), less what the store takes of it."""
        return self.inside * self.answer_s - self._read_s


class TokenBuckets:
    """What each client may ask: ``rate`` requests a second, and a second's worth at once. 0 is no limit."""

    def __init__(self, rate: float, clients: int = _CLIENTS) -> None:
        self._rate, self._clients = rate, clients
        self._most = max(1.0, rate)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def __len__(self) -> int:
        return len(self._left)

    def take(self, client: str, now_s: float) -> float:
        """Takes a token, 0 s; or the seconds until there is one."""
        if self._rate <= 0:
            return 0.0
        tokens, at_s = self._left.pop(client, (self._most, now_s))
        tokens = min(self._most, tokens + (now_s - at_s) * self._rate)
        wait_s = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate
        self._left[client] = (tokens - 1.0 if wait_s == 0.0 else tokens, now_s)
        if len(self._left) > self._clients:
            self._left.popitem(last=False)
        return wait_s
