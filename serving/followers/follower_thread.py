"""The thread that reads the log for a replica, and hands batches to the event loop, one at a time."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from recsys.events.records import DELTAS
from recsys.log.protocol import Log, LogUnavailable
from serving.followers.followers import Batch, Followers

_IDLE_S: Final = 0.02  # wait for more records; a step ends it, where the log can
_REST_S: Final = 0.5  # the same, once there have been none for a second
_LOOK_S: Final = 0.02  # between two checks whether it has caught up
_RETRY_S: Final = 0.5
PATIENCE_S: Final = 5.0  # a longer outage of the log leaves the replica too far behind


class FollowerThread:
    """Runs ``Followers`` in a thread. ``failure``: the reason, where it ended unasked."""

    def __init__(self, log: Log, followers: Followers, now_s: Callable[[], float] = time.monotonic) -> None:
        self._log, self._followers, self._now_s = log, followers, now_s
        self.failure = ""
        self._read_s = now_s()  # when there was something to read
        self._away: tuple[float, str] | None = None  # since when, and the error; set by the thread
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="followers", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def away(self) -> str:
        """Reason why the log can't be reached, after an outage of ``PATIENCE_S``; otherwise empty."""
        away = self._away
        if away is None or self._now_s() - away[0] <= PATIENCE_S:
            return ""
        return f"the log has been away for {self._now_s() - away[0]:.0f} s: {away[1]}"

    @property
    def away_s(self) -> float:
        """Duration of the outage of the log, 0 for none."""
        away = self._away
        return 0.0 if away is None else self._now_s() - away[0]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    async def caught_up(self, wait_s: float) -> None:
        """Returns once the log has been read to its end, or can't be, or after ``wait_s``."""
        until_s = self._now_s() + wait_s
        while not self._followers.ready and not self.failure and self._now_s() < until_s:
            await asyncio.sleep(_LOOK_S)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the thread and waits for it. Not in the event loop, for which the thread may be waiting."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _follow(self) -> None:
        try:
            self._retry(lambda: self._followers.catch_up(self._stopping.is_set))
            while not self._stopping.is_set():
                self._retry(self._follow_once)
        except Exception as error:  # the replica goes on answering, and reports it
            self.failure = f"{type(error).__name__}: {error}"
            logging.getLogger(__name__).exception("the replica can't follow the log")

    def _follow_once(self) -> None:
        batch = self._followers.read()
        if batch:
            self._hand_over(batch)
        if batch.full:
            self._read_s = self._now_s()
        else:
            rests = self._now_s() - self._read_s > 1.0
            self._log.wait(DELTAS, _REST_S if rests else _IDLE_S)
            self._stopping.wait(0.002)  # a log in memory doesn't wait

    def _retry(self, act: Callable[[], None]) -> None:
        """Retries while the log is unavailable."""
        while not self._stopping.is_set():
            began = self._now_s()
            try:
                act()
            except LogUnavailable as error:
                # Counted from before the call, which may take seconds.
                self._away = (self._away[0] if self._away else began), str(error)
                logging.getLogger(__name__).warning("log is away", extra={"error": str(error)})
                self._stopping.wait(_RETRY_S)
            else:
                self._away = None
                return

    def _hand_over(self, batch: Batch) -> None:
        """Lets the event loop apply a batch, and waits for it, so that at most one batch is pending."""
        assert self._loop is not None
        done: Future[None] = Future()

        def apply() -> None:
            try:
                self._followers.apply(batch)
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(apply)
        while not self._stopping.is_set():
            try:
                return done.result(timeout=0.5)
            except TimeoutError:
                if done.done():
                    raise
