"""Scenarios: the simulated world with one seeded change of taste or traffic that a recommender must cope
with.

    session_turn   a viewer's taste turns within a session, in every second one
    sale_day       for a day everybody wants what is on sale, and afterwards no more
    meaning        overnight the appeal of some tags changes: other people like them from then on
    viral          for some hours of each day everybody likes one author, who is shown everywhere
    bots           accounts that like one author, or anything, make a third of the traffic
    a_b_a          all tastes are those of another world for a day, then the old ones again

A scenario is laid out in days of ``day_ms``, so that a shorter day still contains all of it. People come in
visits of some requests, rarely at night, when nightly jobs run. Like the world, a scenario holds no state:
every draw is a hash of the seed and ids.
"""

import math
from collections.abc import Iterator
from typing import Any, Final

from examples.short_video.world import Request, World
from recsys.events.hashing import Id, uniform

DAY_MS: Final = 86_400_000
MOOD_MS: Final = 30 * 60_000  # as in the world
_TURN_MS: Final = 20 * 60_000  # a taste may turn once within
_REQUESTS: Final = 5  # of a visit, at most
_BETWEEN_MS: Final = 120_000  # requests of a visit
_SALE: Final = 1.5  # gain of a tag on sale; others lose half of it
_VIRAL: Final = 3.0
_SHARE: Final = 1 / 4  # fraction of topics on sale, or with a new meaning
DEEPEST: Final = 4 / 24  # of a day: the time with the fewest requests
_BOTS: Final = 1 / 3  # fraction of the traffic
_ACCOUNTS: Final = 20  # of the bots


class ScenarioWorld(World):
    """A world by day and night in which tastes don't drift. A scenario overrides one of its hooks."""

    scenario = "none"
    drift = trend = 0.0
    night = 0.9  # fraction of the mean traffic by which the nights fall short

    def __init__(
        self,
        seed: int = 0,
        users: int = 100,
        items: int = 640,
        topics: int = 16,
        *,
        day_ms: int = DAY_MS,
        start_ms: int = 1_650_758_400_000,
        **options: Any,
    ) -> None:
        """``start_ms``: a midnight. ``requests_per_s`` is the mean over a day."""
        super().__init__(seed, users, items, topics, start_ms=start_ms, **options)
        self.day_ms = day_ms
        self._tastes: dict[tuple[Id, str, int], float] = {}

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        """Without drift and trend it's constant for as long as a mood."""
        key = user_id, tag, time_ms // MOOD_MS
        if (taste := self._tastes.get(key)) is None:
            taste = self._tastes[key] = super().taste(user_id, tag, time_ms)
        return taste

    def day(self, time_ms: int) -> float:
        """Days since the start: 1.5 is the second noon."""
        return (time_ms - self.start_ms) / self.day_ms

    def is_judged(self, user_id: Id) -> bool:
        """Whether a user's satisfaction counts."""
        return True

    def shown_too(self, time_ms: int) -> str | None:
        """Author with a guaranteed item in some lists now, if any."""
        return None

    def traffic(self, time_ms: int) -> float:
        """Requests a second now."""
        hour = self.day(time_ms) - DEEPEST
        return self.requests_per_s * (1 - self.night * math.cos(2 * math.pi * hour))

    def author(self, item_id: Id) -> str:
        """Author of an item; empty for an item of another world."""
        index = self._own_index(item_id)
        return "" if index is None else str(self.item(index).fields["author"])

    def next_requests(self, from_ms: int, until_ms: int) -> Iterator[Request]:
        """Visits of up to five requests, two minutes apart; at four in the night a twentieth of the peak."""
        longest = _REQUESTS * _BETWEEN_MS
        requests = [
            request
            for second in range((from_ms - longest) // 1000, -(-until_ms // 1000))
            for request in self._visit(second)
            if from_ms <= request.time_ms < until_ms
        ]
        yield from sorted(requests, key=lambda request: (request.time_ms, request.user_id))

    def _visit(self, second: int) -> list[Request]:
        """The requests of the visit that begins in a second, if any."""
        visits = self.traffic(second * 1000) / ((1 + _REQUESTS) / 2)
        if second * 1000 < self.start_ms or uniform(self.seed, "visit", second) >= visits:
            return []
        user_id = self._visitor(second)
        requests = 1 + self._pick(_REQUESTS, "requests", second)
        return [Request(second * 1000 + n * _BETWEEN_MS, user_id) for n in range(requests)]

    def _visitor(self, second: int) -> str:
        return f"u{int(uniform(self.seed, 'who', second) ** 2 * self.num_users)}"

    def _chosen(self, tag: str) -> bool:
        """Whether a topic is affected by the scenario; a tag goes with its topic."""
        for place, topic in enumerate(self.topics):
            if tag == topic.name or tag in topic.subtopics:
                turned = (place + self._pick(len(self.topics), "chosen")) % len(self.topics)
                return turned < _SHARE * len(self.topics)
        return False


class SessionTurn(ScenarioWorld):
    """Every second stretch of twenty minutes has a moment from which on a viewer wants something else."""

    scenario = "session_turn"

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        stretch, since_ms = divmod(time_ms, _TURN_MS)
        turns_ms = 2 * _TURN_MS * uniform(self.seed, "turns", user_id, stretch)
        if since_ms < turns_ms:
            return super().taste(user_id, tag, time_ms)
        return super().taste(user_id, f"{tag} of {stretch}", time_ms)


class SaleDay(ScenarioWorld):
    """The third day is a sale."""

    scenario = "sale_day"

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        taste = super().taste(user_id, tag, time_ms)
        if int(self.day(time_ms)) != 2:
            return taste
        return taste + (_SALE if self._chosen(tag) else -_SALE / 2)


class Meaning(ScenarioWorld):
    """At four in the third night, while a nightly job is at work, some tags begin to mean something else."""

    scenario = "meaning"

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        if self.day(time_ms) >= 2 + DEEPEST and self._chosen(tag):
            tag = f"new {tag}"
        return super().taste(user_id, tag, time_ms)


class Viral(ScenarioWorld):
    """From ten to six of each day but the first, one author is everywhere, and everybody likes it."""

    scenario = "viral"

    def true_long_view(self, user_id: Id, item_id: Id, time_ms: int, rank: int = 0) -> float:
        chance = super().true_long_view(user_id, item_id, time_ms, rank)
        if self.author(item_id) != self.shown_too(time_ms):
            return chance
        odds = math.exp(_VIRAL) * chance / (1 - chance)
        return odds / (1 + odds)

    def shown_too(self, time_ms: int) -> str | None:
        day = self.day(time_ms)
        if day < 1 or not 10 / 24 <= day % 1 < 18 / 24:
            return None
        return self.author(f"w{self._pick(self.num_items, 'viral', int(day))}")


class Bots(ScenarioWorld):
    """From the third day on, a third of all visits come from bots, which like one author, or anything."""

    scenario = "bots"

    def is_judged(self, user_id: Id) -> bool:
        return not str(user_id).startswith("bot")

    def true_long_view(self, user_id: Id, item_id: Id, time_ms: int, rank: int = 0) -> float:
        if self.is_judged(user_id):
            return super().true_long_view(user_id, item_id, time_ms, rank)
        if self._pick(2, "random", user_id):
            return 0.5
        return 0.98 if self.author(item_id) == self.author("w0") else 0.02

    def traffic(self, time_ms: int) -> float:
        people = super().traffic(time_ms)
        return (
            people / (1 - _BOTS) if self.day(time_ms) >= 2 else people
        )  # as many requests of people as before

    def _visitor(self, second: int) -> str:
        if self.day(second * 1000) >= 2 and uniform(self.seed, "is bot", second) < _BOTS:
            return f"bot{self._pick(_ACCOUNTS, 'which', second)}"
        return super()._visitor(second)


class ABA(ScenarioWorld):
    """From four in the third night on, for a day, everybody has the taste of another world."""

    scenario = "a_b_a"

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        if 2 + DEEPEST <= self.day(time_ms) < 3 + DEEPEST:
            tag = f"{tag} in b"
        return super().taste(user_id, tag, time_ms)


SCENARIOS: Final = {
    world.scenario: world for world in (SessionTurn, SaleDay, Meaning, Viral, Bots, ABA)
}
