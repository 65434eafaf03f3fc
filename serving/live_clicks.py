"""Gives the clicks of an app without lists a list of candidates each, as they come."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from recsys.events.event_types import Engagement, Event
from recsys.observability.log_lines import LogThrottle
from serving.admission.fair_lock import FairLock
from serving.click_lists import AWAY, BUSY, FAILED, ClickLists
from serving.sessions.user_sessions import UserSessions
from serving.variants.model_variant import ModelVariant

_LOG: Final = logging.getLogger(__name__)
_CLICKS_S: Final = 2.0  # in which clicks of a batch get lists; later ones are counted only


class LiveClicks:
    """Makes lists of clicks with the live variant. ``lock``: of the thread's computations."""

    def __init__(
        self, live: ModelVariant, sessions: UserSessions, lock: FairLock, now_ms: Callable[[], int]
    ) -> None:
        self.lists, self._followers = ClickLists(live.pipeline), live.followers
        self._sessions, self._lock, self._now_ms = sessions, lock, now_ms
        self._one_at_a_time = asyncio.Lock()  # so that requests wait for one click's list at most
        self._failures = LogThrottle()

    async def with_lists(self, engagements: Sequence[Engagement], guessed: bool) -> list[Event]:
        """Engagements of an app without lists, those that can be learned after a list that they chose from
        (serving/click_lists.py, also on ``guessed``)."""
        until_s, events = time.monotonic() + _CLICKS_S, list[Event]()
        for event in engagements:
            events += await self._listed(event, guessed, until_s)
        return events

    async def _listed(self, click: Engagement, guessed: bool, until_s: float) -> tuple[Event, ...]:
        if not self.lists.needs_list(click):
            return (click,)
        if time.monotonic() >= until_s:
            return self.lists.leave_out(click, BUSY)
        session, read = await self._sessions.read(click.user_id)
        if not (read and self._followers.ready):
            return self.lists.leave_out(click, AWAY)
        async with self._one_at_a_time:
            await self._lock.acquire()
            try:
                return self.lists.listed(click, session, self._now_ms(), guessed)
            except Exception:  # the click counts all the same
                self._failures.exception(_LOG, "no list can be made of a click", time.monotonic())
                return self.lists.leave_out(click, FAILED)
            finally:
                self._lock.release_later()
