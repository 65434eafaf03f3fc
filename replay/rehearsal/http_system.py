"""A running system over HTTP, as viewers of a log ask it, whose clock waits for them."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

from recsys.client import ApiError, Client, Recommendations
from recsys.events.event_types import Engagement, Item, User
from recsys.events.hashing import Id
from recsys.process.clock_file import ClockKeeper
from replay.rehearsal.log_viewers import SystemList

T = TypeVar("T")
_SETTLED_S: Final = 2.0  # for which a list waits for its viewer's session
_RECENT_S: Final = 1.0  # a session that was written so long ago needs no look
_POLL_S: Final = 0.005
_BUSY_S, _AGAIN_S = 60.0, 0.1  # how long a request is tried again, and the pause before it is


class HttpSystem:
    """A running system over HTTP, asked for lists of ``n`` items. ``clock``: its event time in ms, which
    ``keeper`` paces. ``kinds``: of engagements that enter a history; none: all do."""

    def __init__(
        self, client: Client, keeper: ClockKeeper, clock: Callable[[], int], speed: float, n: int,
        kinds: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._client, self._keeper, self._clock, self._speed = client, keeper, clock, speed
        self._n, self._kinds = n, kinds
        self._sent: dict[str, tuple[float, int, str]] = {}  # newest engagement of a user
        self.counts = Counter(refused=0, unsettled=0, degraded=0, busy=0)
        self.waited_s = 0.0  # for the clock, which had to pass

    def wait(self, time_ms: int) -> None:
        self._keeper.change(self._speed, time_ms)
        began_s = time.monotonic()
        while (left_ms := time_ms - self._clock()) > 0:
            time.sleep(min(1.0, max(0.0005, left_ms / self._speed / 1000)))
        self.waited_s += time.monotonic() - began_s

    def publish(self, items: Sequence[Item]) -> None:
        self._note(self._client.upsert_items({item.item_id: item.fields for item in items}))

    def profile(self, users: Sequence[User]) -> None:
        self._note(self._client.upsert_users({user.user_id: user.fields for user in users}))

    def recommend(self, user_id: Id, surface: str, context: Mapping[str, Any]) -> SystemList:
        self._settle(str(user_id))
        return self._served(
            lambda: self._client.recommend(user_id, self._n, surface=surface, context=context)
        )

    def rank(
        self, user_id: Id, item_ids: Sequence[Id], surface: str, context: Mapping[str, Any]
    ) -> SystemList:
        return self._served(lambda: self._client.rank(user_id, item_ids, surface=surface, context=context))

    def send(self, events: Sequence[Engagement]) -> None:
        receipt = self._client.send_events(events)
        self._note(receipt)
        refused = set(receipt.rejected)  # which no session will have
        for n, event in enumerate(events):
            if n in refused or (self._kinds and event.kind not in self._kinds):
                continue
            newest = time.monotonic(), event.time_ms, str(event.item_id)
            self._sent[str(event.user_id)] = newest

    def _settle(self, user_id: str) -> None:
        """Waits until the viewer's session has the viewer's newest engagement."""
        sent_s, time_ms, item_id = self._sent.pop(user_id, (0.0, 0, ""))
        if not item_id or time.monotonic() - sent_s > _RECENT_S:
            return
        until_s = time.monotonic() + _SETTLED_S
        while time.monotonic() < until_s:
            recent = self._insist(lambda: self._client.session(user_id))["recent"]
            if any(r["time_ms"] >= time_ms or str(r["item_id"]) == item_id for r in recent):
                return
            time.sleep(_POLL_S)
        self.counts["unsettled"] += 1

    def _insist(self, ask: Callable[[], T]) -> T:
        """Asks again while the system is busy, for which the clock waits."""
        until_s = time.monotonic() + _BUSY_S
        while True:
            try:
                return ask()
            except ApiError as error:
                if not error.passing or time.monotonic() > until_s:
                    raise
                self.counts["busy"] += 1
                time.sleep(_AGAIN_S)

    def _served(self, ask: Callable[[], Recommendations]) -> SystemList:
        answer = self._insist(ask)
        self.counts["degraded"] += bool(answer.degraded)
        return SystemList(answer.request_id, tuple(str(item.item_id) for item in answer.items))

    def _note(self, receipt: Any) -> None:
        self.counts["refused"] += len(receipt.rejected)
