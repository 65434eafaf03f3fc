"""The simulated world: items about topics, people with drifting tastes, and their reactions to lists.

Everything is a hash of the seed and ids, so the same question has the same answer at any time and in any
order: there is no random generator. Tests may read the truth: ``true_long_view`` is the probability that
the world draws from.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from examples.short_video.world_topics import ENDINGS, TOPICS
from recsys.events.event_types import Engagement, Item, User
from recsys.events.hashing import Id, uniform

Number = TypeVar("Number", float, NDArray[np.float64])
_HOUR_MS: Final = 3_600_000
_MOOD_MS: Final = _HOUR_MS // 2
_DRIFT_MS: Final = 12 * _HOUR_MS
_TREND_MS: Final = 6 * _HOUR_MS
CLUSTERS: Final = 8  # people of one share half of their taste, so there is something to transfer
AGES_OF_A_CLUSTER: Final = 3
AGES: Final = ("13-17", "18-24", "25-34", "35-44", "45-54", "55-64", "65+", "unknown")
# P(kind | long view) at an average taste, and the mean delay after the view in ms.
AFTER: Final = {
    "click": (0.30, 0.0),
    "like": (0.22, 0.0),
    "follow": (0.04, 8_000.0),
    "comment": (0.05, 20_000.0),
    "share": (0.06, 30_000.0),
    "profile": (0.05, 4_000.0),
}
# Standard deviations of the independent personal parts of a taste: fixed, drifting, of the moment.
_OWN, _DRIFT, _MOOD = 0.6, 0.5, 0.4
IMPATIENCE: Final = 0.05  # loss of the logit at each rank
OWN_VARIANCE: Final = _OWN**2 + _DRIFT**2 + _MOOD**2


@dataclass(frozen=True)
class Request:
    """A user opens the feed."""

    time_ms: int
    user_id: str


@dataclass(frozen=True)
class Traits:
    """Properties of an item that decide P(long view): its logit is ``base`` + Σ weight · taste(tag) at rank
    0."""

    tags: tuple[tuple[str, float], ...]  # with their weights
    base: float  # from quality and length
    duration_ms: float


class World:
    """A world of ``users`` people and initially ``items`` items about ``topics`` topics.

    One more item is published each ``publish_every_s``. Items of other catalogues are registered by their
    fields (``know``): tastes are hashes of (user, tag), so every tag is liked by somebody.
    """

    drift = _DRIFT  # size of the drift of each person's taste
    trend = 0.3  # size of the common fashion

    def __init__(
        self,
        seed: int = 0,
        users: int = 1000,
        items: int = 2000,
        topics: int = 16,
        *,
        start_ms: int = 1_650_812_400_000,
        publish_every_s: float = 60.0,
        requests_per_s: float = 1.0,
    ) -> None:
        if not 1 <= topics <= len(TOPICS):
            raise ValueError(f"topics is {topics}, expected 1 to {len(TOPICS)}")
        if users < 1 or items < 1 or publish_every_s <= 0:
            raise ValueError(
                f"users is {users}, items {items}, publish_every_s {publish_every_s}: "
                "expected positive numbers"
            )
        self.seed, self.num_users, self.num_items = seed, users, items
        self.topics = TOPICS[:topics]
        self.start_ms = start_ms
        self.publish_every_ms = round(publish_every_s * 1000)
        self.requests_per_s = requests_per_s
        self._known: dict[str, Traits] = {}

    def items(self, now_ms: int) -> list[Item]:
        """The catalogue as published until now, oldest first."""
        new = max(0, now_ms - self.start_ms) // self.publish_every_ms
        return [self.item(index) for index in range(self.num_items + new)]

    def new_items(self, from_ms: int, until_ms: int) -> list[Item]:
        """Items that are published in [from_ms, until_ms), without the first catalogue."""
        first = max(0, -(-(from_ms - self.start_ms) // self.publish_every_ms) - 1)
        items = []
        while (item := self.item(self.num_items + first)).time_ms < until_ms:
            items.append(item)
            first += 1
        return items

    def item(self, index: int) -> Item:
        """The item of a number: its fields depend on the seed and the number alone."""
        item_id = f"w{index}"
        topic = self.topics[self._pick(len(self.topics), "topic", item_id)]
        sub = self._pick(len(topic.subtopics), "sub", item_id)
        ending = ENDINGS[self._pick(len(ENDINGS), "ending", item_id)]
        # An author has one topic of their own, so authors are worth following.
        author = self._pick(1 + self.num_items // (20 * len(self.topics)), "author", item_id)
        subtopic = topic.subtopics[sub]
        new = index - self.num_items + 1
        return Item(
            time_ms=self.start_ms + max(0, new) * self.publish_every_ms,
            item_id=item_id,
            fields={
                "author": f"{topic.name.replace(' ', '_')}_{author}",
                "tags": [topic.name, subtopic],
                "topic": topic.name,
                "emoji": topic.emoji[sub % len(topic.emoji)],
                "hue": topic.hue,
                "duration_ms": round(4_000 * 6 ** uniform(self.seed, "duration", item_id)),
                "title": f"{subtopic[0].upper()}{subtopic[1:]}{ending}",
            },
        )

    def users(self) -> list[User]:
        """Profiles of all people."""
        return [self.user(f"u{index}") for index in range(self.num_users)]

    def user(self, user_id: Id) -> User:
        """A profile; it reveals a little of the taste, since each age favours some clusters."""
        age = (self._cluster(user_id) + self._pick(AGES_OF_A_CLUSTER, "age", user_id)) % len(AGES)
        return User(time_ms=self.start_ms, user_id=user_id, fields={"age_band": AGES[age]})

    def know(self, item_id: Id, fields: Mapping[str, Any]) -> None:
        """Registers an item by its fields: by its tags, else its author, else its id."""
        if fields and str(item_id) not in self._known:
            self._known[str(item_id)] = self._traits_of(item_id, fields)

    def next_requests(self, from_ms: int, until_ms: int) -> Iterator[Request]:
        """Requests in [from_ms, until_ms), in order: more in the evening, and more by some people."""
        for second in range(from_ms // 1000, -(-until_ms // 1000)):
            evening = 1 + 0.5 * math.sin(2 * math.pi * (second * 1000 / _HOUR_MS - 14) / 24)
            number = _poisson(self.requests_per_s * evening, uniform(self.seed, "many", second))
            times = sorted((second * 1000 + self._pick(1000, "when", second, i), i) for i in range(number))
            for time_ms, i in times:
                if from_ms <= time_ms < until_ms:
                    # Squared: a quarter of the people make half of the requests.
                    who = int(uniform(self.seed, "who", second, i) ** 2 * self.num_users)
                    yield Request(time_ms, f"u{who}")

    def true_long_view(self, user_id: Id, item_id: Id, time_ms: int, rank: int = 0) -> float:
        """P(long view | shown at this rank). Lower ranks are watched with less patience."""
        traits = self.traits(item_id)
        liking = sum(weight * self.taste(user_id, tag, time_ms) for tag, weight in traits.tags)
        return _sigmoid(traits.base + liking - IMPATIENCE * rank)

    def taste(self, user_id: Id, tag: str, time_ms: int) -> float:
        """A user's liking of a tag now: shared, personal, drifting and momentary parts, and the fashion."""
        seed = self.seed
        return (
            self.shared_taste(self._cluster(user_id), tag, time_ms)
            + _OWN * _normal(seed, "own", user_id, tag)
            + self.drift * _turning(seed, time_ms, _DRIFT_MS, "drift", user_id, tag)
            + _MOOD * _normal(seed, "mood", user_id, tag, time_ms // _MOOD_MS)
        )

    def shared_taste(self, cluster: int, tag: str, time_ms: int) -> float:
        """Mean taste of a cluster's people; the variance around it is OWN_VARIANCE."""
        return 0.6 * _normal(self.seed, "cluster", cluster, tag) + self.trend * _turning(
            self.seed, time_ms, _TREND_MS, "trend", tag
        )

    def traits(self, item_id: Id) -> Traits:
        """Traits of an item; an unregistered one gets traits of its own."""
        traits = self._known.get(str(item_id))
        if traits is None:
            index = self._own_index(item_id)
            fields = self.item(index).fields if index is not None else {}
            traits = self._known[str(item_id)] = self._traits_of(item_id, fields)
        return traits

    def react(self, user_id: Id, item_ids: Sequence[Id], request_id: str, time_ms: int) -> list[Engagement]:
        """The viewer's engagements with a list served at ``time_ms``, in time order.

        Items are watched one after the other until the viewer has had enough: unreached ones get no ``view``
        and were never shown. Engagements with the view precede it; a few come later.
        """
        engagements: list[Engagement] = []
        now_ms = time_ms + 300
        for rank, item_id in enumerate(item_ids):
            if rank and uniform(self.seed, request_id, rank, "stays") > 0.95:
                break
            item_engagements = self._watch(user_id, item_id, request_id, now_ms, rank)
            engagements.extend(item_engagements)
            now_ms = next(e.time_ms for e in item_engagements if e.kind == "view") + 200
        return sorted(engagements, key=lambda engagement: engagement.time_ms)

    def _watch(self, user_id: Id, item_id: Id, request_id: str, start_ms: int, rank: int) -> list[Engagement]:
        def draw(what: str) -> float:
            return uniform(self.seed, request_id, rank, item_id, what)

        liked = self.true_long_view(user_id, item_id, start_ms, rank)
        duration_ms = self.traits(item_id).duration_ms
        long_view = draw("long_view") < liked
        part = 0.7 + 0.5 * draw("part") if long_view else 0.05 + 0.4 * draw("part") ** 2
        watch_ms = max(300, round(part * duration_ms))
        end_ms = start_ms + watch_ms
        kinds: list[tuple[str, int]] = []
        if long_view:
            kinds.append(("long_view", end_ms))
            for kind, (_, delay_ms) in AFTER.items():
                if draw(kind) < after_chance(kind, liked):
                    kinds.append((kind, end_ms + round(-delay_ms * math.log(1 - draw(kind + "?")))))
        else:
            if draw("hide") < hide_chance(liked):
                kinds.append(("hide", end_ms))
            if watch_ms < 0.2 * duration_ms:
                kinds.append(("skip", end_ms))
        # Sorting is stable, so the view stays behind other events of the same time.
        kinds = sorted([*kinds, ("view", end_ms)], key=lambda pair: pair[1])
        return [
            Engagement(
                time_ms=at_ms,
                request_id=request_id,
                user_id=user_id,
                item_id=item_id,
                kind=kind,
                watch_ms=watch_ms if kind in ("view", "long_view") else None,
                event_id=f"{request_id}.{rank}.{kind}",
            )
            for kind, at_ms in kinds
        ]

    def _cluster(self, user_id: Id) -> int:
        return self._pick(CLUSTERS, "cluster", user_id)

    def _pick(self, among: int, *ids: Id) -> int:
        return int(uniform(self.seed, *ids) * among)

    def _own_index(self, item_id: Id) -> int | None:
        text = str(item_id)
        return int(text[1:]) if text.startswith("w") and text[1:].isdigit() else None

    def _traits_of(self, item_id: Id, fields: Mapping[str, Any]) -> Traits:
        tags = fields.get("tags") or fields.get("author") or str(item_id)
        names = [str(tag) for tag in tags] if isinstance(tags, list) else [str(tags)]
        weights = [1.0] + [0.5] * (len(names) - 1)
        duration = fields.get("duration_ms")
        duration_ms = min(float(duration), 60_000.0) if duration else 10_000.0
        quality = 0.6 * _normal(self.seed, "quality", item_id)
        return Traits(
            tags=tuple(zip(names, (1.5 * w / math.hypot(*weights) for w in weights), strict=True)),
            base=-1.0 + quality - 0.3 * math.log(max(duration_ms, 1000.0) / 10_000),
            duration_ms=duration_ms,
        )


def after_chance(kind: str, liked: Number) -> Number:
    """P(a kind of ``AFTER`` follows | long view), given the probability of a long view."""
    return AFTER[kind][0] * 2 * liked


def hide_chance(liked: Number) -> Number:
    """P(hide | no long view)."""
    return 0.06 * (1 - liked) ** 3


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@lru_cache(maxsize=1 << 17)
def _normal(seed: int, *ids: Id) -> float:
    """A standard normal draw of ids (Box and Muller 1958)."""
    radius = math.sqrt(-2 * math.log(1 - uniform(seed, "radius", *ids)))
    return radius * math.cos(2 * math.pi * uniform(seed, "angle", *ids))


def _turning(seed: int, time_ms: int, period_ms: int, *ids: Id) -> float:
    """A smooth path through one normal draw each period; its variance is 1 at all times."""
    at = time_ms / period_ms + uniform(seed, "phase", *ids)
    before = math.floor(at)
    angle = (at - before) * math.pi / 2
    now, then = _normal(seed, *ids, before), _normal(seed, *ids, before + 1)
    return math.cos(angle) * now + math.sin(angle) * then


def _poisson(mean: float, draw: float) -> int:
    """Poisson quantile of a draw. Means are small here: a few requests a second."""
    number, chance = 0, math.exp(-mean)
    below = chance
    while draw > below and number < 10_000:
        number += 1
        chance *= mean / number
        below += chance
    return number
