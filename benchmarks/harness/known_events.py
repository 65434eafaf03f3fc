"""Viewers whose events have known ids and are sent again until they are acknowledged, as an app does."""

import itertools
import threading
import time
from collections import Counter

from benchmarks.harness.live_system import Live
from recsys.client import ApiError, Client, Receipt
from recsys.events.event_types import Engagement

USERS = 100  # viewers
_EVERY_S = 0.1
_ITEMS = 5
_AGAIN_S = 0.5


class KnownEvents:
    """One list after the other, and a view of each item. ``acknowledged``: by event id, whether the event was
    sent more than once."""

    _numbers = itertools.count()  # no two objects send the same ids

    def __init__(self, system: Live) -> None:
        self._system, self._number = system, next(self._numbers)
        self.acknowledged: dict[str, bool] = {}
        self.rejected: list[str] = []
        self.unanswered = Counter[int]()  # lists without an answer, by status
        self.sent = 0
        self._again = False
        self._client: tuple[str, Client] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self, patience_s: float = 120.0) -> None:
        """Returns once all that was sent is acknowledged, or after ``patience_s``."""
        self._stop.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.wait(_EVERY_S):
                return
            try:
                answer = self._current().recommend(f"u{number % USERS}", _ITEMS)
            except ApiError as error:
                self.unanswered[error.status] += 1
                continue
            now_ms = time.time_ns() // 1_000_000
            events = [
                Engagement(
                    time_ms=now_ms, request_id=answer.request_id, user_id=f"u{number % USERS}",
                    item_id=item.item_id, kind="view", watch_ms=500 + 3_000 * (number % 3),
                    event_id=f"known-{self._number}-{number}-{rank}", token=answer.token,
                )
                for rank, item in enumerate(answer.items)
            ]  # fmt: skip
            self.sent += len(events)
            for event in events:  # one by one, so that most kills come while one is on its way
                self._note([event], self._deliver([event]))

    def _deliver(self, events: list[Engagement]) -> Receipt:
        """Sends events until an answer comes."""
        self._again = False
        while True:
            try:
                return self._current().send_events(events)
            except ApiError as error:
                if not error.passing:
                    raise
                self._wait(_AGAIN_S)

    def _current(self) -> Client:
        """Client of the system, whose address may change when it starts anew."""
        url = self._system.url
        if self._client is None or self._client[0] != url:
            self._client = url, Client(url, timeout_s=3.0, sleep=self._wait)
        return self._client[1]

    def _wait(self, seconds: float) -> None:
        self._again = True
        time.sleep(min(seconds, 1.0))

    def _note(self, events: list[Engagement], receipt: Receipt) -> None:
        for event, outcome in zip(events, receipt.results, strict=True):
            if outcome.status in ("accepted", "duplicate"):
                self.acknowledged[str(event.event_id)] = self._again
            else:
                self.rejected.append(f"{event.event_id}: {outcome}")
