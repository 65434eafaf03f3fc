"""Stories: the simulated world with one seeded change of taste or traffic that a recommender must live with.

    session_turn   a viewer's taste turns within a session, in every second one
    sale_day       for a day everybody wants what is on sale, and then no more
    meaning        overnight some tags come to mean something else: other people like them from then on
    viral          for some hours of each day everybody likes one author, who is shown everywhere
    bots           accounts that like one author, or anything, make a third of the traffic
    a_b_a          all tastes are those of another world for a day, and then the old ones again

A story is told in days of ``day_ms``, so that a short one has all of it. People come in visits of some
requests, hardly at night: nightly jobs have their time then. Like the world, a story holds no state: every
draw is a hash of the seed and ids.
"""

import math
from collections.abc import Iterator
from typing import Any, Final

from recsys.events.hashing import Id, uniform
from replay.simulation.world import Request, World

DAY_MS: Final = 86_400_000
_TURN_MS: Final = 20 * 60_000  # within so long, a taste may turn once
_REQUESTS: Final = 5  # of a visit, at the most
_BETWEEN_MS: Final = 120_000  # requests of a visit
_SALE: Final = 1.5  # what a tag on sale gains, and what others lose half of
_VIRAL: Final = 3.0
_SHARE: Final = 1 / 4  # of the topics are on sale, or change their meaning
_DEEPEST: Final = 4 / 24  # of the night: the hour of a day with the fewest requests
_BOTS: Final = 1 / 3  # of the traffic
_ACCOUNTS: Final = 20  # that they have


class ScenarioWorld(World):
    """A world by day and night in which tastes don't drift. A story changes one of its hooks."""

    story = "none"
    drift = trend = 0.0

    def __init__(
        self,
        seed: int = 0,
        users: int = 100,
        items: int = 640,
        topics: int = 16,
        *,
        day_ms: int = DAY_MS,
        start_ms: int = 1_650_758_400_000,
        **more: Any,
    ) -> None:
        """``start_ms``: a midnight. ``requests_per_s`` is the mean over a day."""
        super().__init__(seed, users, items, topics, start_ms=start_ms, **more)
        self.day_ms = day_ms

    def day(self, time_ms: int) -> float:
        """Days since the story began: 1.5 is the second noon."""
        return (time_ms - self.start_ms) / self.day_ms

    def is_judged(self, user_id: Id) -> bool:
        """Whether a user is somebody whose satisfaction counts."""
        return True

    def shown_too(self, time_ms: int) -> str | None:
        """An author of whom each list shows something now, whatever else it shows."""
        return None

    def traffic(self, time_ms: int) -> float:
        """Requests a second now."""
        hour = self.day(time_ms) - _DEEPEST
        return self.requests_per_s * (1 - 0.9 * math.cos(2 * math.pi * hour))

    def author(self, item_id: Id) -> str:
        """Whose an item is; empty where it isn't of this world."""
        index = self._own_index(item_id)
        return "" if index is None else str(self.item(index).fields["author"])

    def next_requests(self, from_ms: int, until_ms: int) -> Iterator[Request]:
        """Visits of up to five requests, two minutes apart; at four in the night a twentieth of the peak."""
        longest = _REQUESTS * _BETWEEN_MS
        found = [
            request
            for second in range((from_ms - longest) // 1000, -(-until_ms // 1000))
            for request in self._visit(second)
            if from_ms <= request.time_ms < until_ms
        ]
        yield from sorted(found, key=lambda request: (request.time_ms, request.user_id))

    def _visit(self, second: int) -> list[Request]:
        """Whoever comes in a second, with all that they ask for."""
        visits = self.traffic(second * 1000) / ((1 + _REQUESTS) / 2)
        if second * 1000 < self.start_ms or uniform(self.seed, "visit", second) >= visits:
            return []
        user_id = self._visitor(second)
        requests = 1 + self._pick(_REQUESTS, "requests", second)
        return [Request(second * 1000 + n * _BETWEEN_MS, user_id) for n in range(requests)]

    def _visitor(self, second: int) -> str:
        return f"u{int(uniform(self.seed, 'who', second) ** 2 * self.num_users)}"

    def _chosen(self, tag: str) -> bool:
        """Whether a topic is one of those that the story is about; a tag goes with its topic."""
        for place, topic in enumerate(self.topics):
            if tag == topic.name or tag in topic.subtopics:
                turned = (place + self._pick(len(self.topics), "chosen")) % len(self.topics)
                return turned < _SHARE * len(self.topics)
        return False


class SessionTurn(ScenarioWorld):
    """Every second stretch of twenty minutes has a moment from which on a viewer wants something else."""

    story = "session_turn"

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        stretch, since_ms = divmod(time_ms, _TURN_MS)
        turns_ms = 2 * _TURN_MS * uniform(self.seed, "turns", user_id, stretch)
        if since_ms < turns_ms:
            return super().taste(user_id, tag, time_ms)
        return super().taste(user_id, f"{tag} of {stretch}", time_ms)


class SaleDay(ScenarioWorld):
    """The third day is a sale."""

    story = "sale_day"

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        taste = super().taste(user_id, tag, time_ms)
        if int(self.day(time_ms)) != 2:
            return taste
        return taste + (_SALE if self._chosen(tag) else -_SALE / 2)


class Meaning(ScenarioWorld):
    """At four in the third night, while a nightly job is at work, some tags begin to mean something else."""

    story = "meaning"

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        if self.day(time_ms) >= 2 + _DEEPEST and self._chosen(tag):
            tag = f"new {tag}"
        return super().taste(user_id, tag, time_ms)


class Viral(ScenarioWorld):
    """From ten to six of each day but the first, one author is everywhere, and everybody likes it."""

    story = "viral"

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
    """From the third day on, a third of all visits are those of bots, who like one author, or anything."""

    story = "bots"

    def is_judged(self, user_id: Id) -> bool:
        return not str(user_id).startswith("bot")

    def true_long_view(self, user_id: Id, item_id: Id, time_ms: int, rank: int = 0) -> float:
        if self.is_judged(user_id):
            return super().true_long_view(user_id, item_id, time_ms, rank)
        if self._pick(2, "random", user_id):
            return 0.5
        return 0.98 if self.author(item_id) == self.author("w0") else 0.02

    def traffic(self, time_ms: int) -> float:
        there = super().traffic(time_ms)
        return there / (1 - _BOTS) if self.day(time_ms) >= 2 else there  # as many people as before

    def _visitor(self, second: int) -> str:
        if self.day(second * 1000) >= 2 and uniform(self.seed, "is bot", second) < _BOTS:
            return f"bot{self._pick(_ACCOUNTS, 'which', second)}"
        return super()._visitor(second)


class ABA(ScenarioWorld):
    """From four in the third night on, for a day, everybody likes what they like in another world."""

    story = "a_b_a"

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        if 2 + _DEEPEST <= self.day(time_ms) < 3 + _DEEPEST:
            tag = f"{tag} in b"
        return super().taste(user_id, tag, time_ms)


SCENARIOS: Final = {world.story: world for world in (SessionTurn, SaleDay, Meaning, Viral, Bots, ABA)}
