"""A simulated news page: articles that rise and fade within hours, readers with drifting tastes by category,
breaking news, and slates whose articles compete for clicks.

Every draw is a hash of the seed and ids. The click probabilities are known, so an oracle can be judged:

    weight = exp(quality + burst + rise and decay with age + taste of the reader + position)
    P(click) = appetite · weight / (outside + sum of the slate's weights)
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from examples.hashed_draws import Floats, draws, normals, turning
from recsys.events.event_types import Engagement, Event, Impression, Item, ServedItem, User

CATEGORIES: Final = ("politics", "world", "business", "sports", "culture", "science", "local", "technology")
REGIONS: Final = ("north", "east", "south", "west")
DEVICES: Final = ("phone", "desktop")
SLATE: Final = 12
_HOUR_MS: Final = 3_600_000
_LIFE_MS: Final = 24 * _HOUR_MS
_AUTHORS: Final = 24
_BURST_EVERY_MS: Final = 12 * _HOUR_MS
_BURST_ARTICLES: Final = 4
_OUTSIDE: Final = 5.0  # weight of clicking nothing
_APPETITE: Final = 1.7  # expected clicks in a slate without an outside option
_MOST: Final = 0.9  # bound of a click probability


@dataclass(frozen=True)
class Truth:
    """The click probability of one shown article, and what it would be at the mean position weight."""

    request_id: str
    item_id: str
    rank: int
    time_ms: int
    probability: float
    without_position: float
    clicked: bool


@dataclass(frozen=True)
class Articles:
    """Articles as columns, in the order of their publication."""

    time_ms: NDArray[np.int64]
    category: NDArray[np.int64]
    author: NDArray[np.int64]
    quality: Floats
    half_life_h: Floats


class NewsWorld:
    """``hours`` of a page with ``users`` readers who come ``visits_per_h`` times an hour in all.
    ``events`` is the log, ``truth`` the probability of each shown article."""

    def __init__(
        self,
        seed: int = 0,
        users: int = 300,
        hours: int = 96,
        *,
        start_ms: int = 1_700_006_400_000,
        articles_per_h: int = 4,
        visits_per_h: float = 48.0,
    ) -> None:
        if users < 1 or hours < 1 or articles_per_h < 1 or visits_per_h <= 0:
            raise ValueError(
                f"users is {users}, hours {hours}, articles_per_h {articles_per_h}, visits_per_h "
                f"{visits_per_h}: expected positive numbers"
            )
        self.seed, self.users, self.hours, self.start_ms = seed, users, hours, start_ms
        self.articles_per_h, self.visits_per_h = articles_per_h, visits_per_h
        self.truth: list[Truth] = []
        self._clicked: defaultdict[str, set[int]] = defaultdict(set)

    def events(self) -> list[Event]:
        """The log, sorted by time. Fills ``truth``."""
        self.truth.clear()
        self._clicked.clear()
        events: list[Event] = [*self._readers(), *self._publications()]
        for time_ms, user, visit in self._slates():
            events += self._slate(time_ms, user, visit)
        return sorted(events, key=lambda event: event.time_ms)

    @cached_property
    def bursts(self) -> list[tuple[int, int]]:
        """Time and category of each breaking story."""
        number = math.ceil(self.hours * _HOUR_MS / _BURST_EVERY_MS)
        when, what = draws(self.seed, 2 * number, "bursts").reshape(2, number)
        times = self.start_ms + ((np.arange(number) + when) * _BURST_EVERY_MS).astype(np.int64)
        return [(int(t), int(w * len(CATEGORIES))) for t, w in zip(times, what, strict=True)]

    @cached_property
    def articles(self) -> Articles:
        """All articles, from a day before the start on."""
        seed, number = self.seed, self.articles_per_h * (self.hours + 24)
        step_ms = _HOUR_MS / self.articles_per_h
        jitter, category, author = draws(seed, 3 * number, "articles").reshape(3, number)
        begin = self.start_ms - _LIFE_MS
        times = [begin + ((np.arange(number) + jitter) * step_ms).astype(np.int64)]
        categories = [(category * len(CATEGORIES)).astype(np.int64)]
        boosts = [np.zeros(number)]
        for at, (time_ms, what) in enumerate(self.bursts):
            later = np.sort(draws(seed, _BURST_ARTICLES, "burst", at)) * 0.7 * _HOUR_MS
            times.append(time_ms + later.astype(np.int64))
            categories.append(np.full(_BURST_ARTICLES, what))
            boosts.append(np.full(_BURST_ARTICLES, 1.3))
        time_ms_N = np.concatenate(times)
        order = np.argsort(time_ms_N, kind="stable")
        extra = len(order) - number
        author_N = np.concatenate([author, draws(seed, extra, "burst authors")])[order]
        authors = (author_N * _AUTHORS).astype(np.int64)
        quality, life = normals(seed, 2 * len(order), "quality").reshape(2, -1)
        skill = normals(seed, _AUTHORS, "skill")
        return Articles(
            time_ms_N[order],
            np.concatenate(categories)[order],
            authors,
            0.4 * quality + 0.4 * skill[authors] + np.concatenate(boosts)[order],
            3.5 * np.exp(0.2 * life),
        )

    def appeal(self, time_ms: int, shown: NDArray[np.int64]) -> Floats:
        """Log weight of articles to everybody: quality, a rise within the first hour, decay with age."""
        articles = self.articles
        age_h = (time_ms - articles.time_ms[shown]) / _HOUR_MS
        rise = np.log(0.15 + 0.85 * (1 - np.exp(-3 * age_h)))
        decay = math.log(2) * age_h / articles.half_life_h[shown]
        return np.asarray(articles.quality[shown] + rise - decay)

    def taste(self, user: str, device: str, visit: str, time_ms: int) -> Floats:
        """Log weight of each category to a reader now."""
        seed, n = self.seed, len(CATEGORIES)
        taste = (
            0.6 * normals(seed, n, "region", self._region(user))
            + 0.25 * normals(seed, n, "own", user)
            + 0.25 * turning(seed, n, time_ms, _LIFE_MS, "drift", user)
            + 0.2 * normals(seed, n, "device", device)
            + 0.1 * normals(seed, n, "mood", visit)
            + 0.3 * turning(seed, n, time_ms, 12 * _HOUR_MS, "fashion")
        )
        for burst_ms, category in self.bursts:
            if burst_ms <= time_ms:
                taste[category] += 0.8 * 0.5 ** ((time_ms - burst_ms) / (2 * _HOUR_MS))
        return taste

    def _readers(self) -> Iterator[User]:
        for n in range(self.users):
            fields = {"region": self._region(f"u{n}")}
            yield User(time_ms=self.start_ms - _LIFE_MS, user_id=f"u{n}", fields=fields)

    def _publications(self) -> Iterator[Item]:
        """Articles appear, and leave a day later."""
        articles, end = self.articles, self.start_ms + self.hours * _HOUR_MS
        for n, time_ms in enumerate(articles.time_ms.tolist()):
            fields = {"category": CATEGORIES[articles.category[n]], "author": f"author{articles.author[n]}"}
            if time_ms < end:
                yield Item(time_ms=time_ms, item_id=f"a{n}", fields=fields)
            if time_ms + _LIFE_MS < end:
                yield Item(time_ms=time_ms + _LIFE_MS, item_id=f"a{n}", removed=True)

    def _slates(self) -> list[tuple[int, str, str]]:
        """Time, reader and visit of each slate, in order: some slates a visit, more visits in the evening."""
        slates = []
        for hour in range(self.hours):
            evening = 1 + 0.6 * math.sin(2 * math.pi * (hour - 14) / 24)
            mean = self.visits_per_h * evening
            number = int(mean + float(draws(self.seed, 1, "visits", hour)[0]))
            for at in range(number):
                visit = f"{hour}.{at}"
                when, who, *stays = draws(self.seed, 14, "visit", visit)
                time_ms = self.start_ms + int((hour + when) * _HOUR_MS)
                user = f"u{int(who**2 * self.users)}"  # squared: few readers come often
                for page in range(6):
                    slates.append((time_ms, user, visit))
                    if stays[2 * page] > 0.45:
                        break
                    time_ms += int(60_000 + 120_000 * stays[2 * page + 1])
        return sorted(slates)

    def _slate(self, time_ms: int, user: str, visit: str) -> Iterator[Event]:
        """One slate and its clicks. The page prefers new and good articles that the reader hasn't read."""
        seed, request_id = self.seed, f"{user}-{time_ms}"
        device = DEVICES[int(draws(seed, 1, "device", visit)[0] < 0.4)]
        live = self._live(time_ms, user)
        noise = -np.log(-np.log(1 - draws(seed, len(live), "page", request_id)))
        age_h = (time_ms - self.articles.time_ms[live]) / _HOUR_MS
        score = 0.8 * self.articles.quality[live] - age_h / 8 + noise
        shown = live[np.argsort(-score, kind="stable")[:SLATE]]
        liking = self.taste(user, device, visit, time_ms)[self.articles.category[shown]]
        position = -np.log1p(0.08 * np.arange(len(shown)))
        utility = self.appeal(time_ms, shown) + liking
        appetite = _APPETITE * math.exp(0.5 * float(normals(seed, 1, "appetite", user)[0]))
        probability = click_probabilities(utility + position, appetite)
        level = click_probabilities(utility + position.mean(), appetite)
        yield Impression(
            time_ms=time_ms,
            request_id=request_id,
            user_id=user,
            items=[ServedItem(item_id=f"a{n}") for n in shown],
            context={"device": device},
            surface="front",
            shown=True,
        )
        happens, delays = draws(seed, 2 * len(shown), "clicks", request_id).reshape(2, -1)
        for rank, n in enumerate(shown.tolist()):
            clicked = bool(happens[rank] < probability[rank])
            true = float(probability[rank]), float(level[rank])
            self.truth.append(Truth(request_id, f"a{n}", rank, time_ms, *true, clicked))
            if clicked:
                self._clicked[user].add(n)
                yield Engagement(
                    time_ms=time_ms + int(2_000 + 50_000 * delays[rank]),
                    request_id=request_id,
                    user_id=user,
                    item_id=f"a{n}",
                    kind="click",
                    surface="front",
                )

    def _live(self, time_ms: int, user: str) -> NDArray[np.int64]:
        """Articles of the last day that the reader hasn't read."""
        first, last = np.searchsorted(self.articles.time_ms, [time_ms - _LIFE_MS, time_ms], side="right")
        read = np.array(sorted(self._clicked[user]), np.int64)
        return np.setdiff1d(np.arange(first, last), read, assume_unique=True)

    def _region(self, user: str) -> str:
        return REGIONS[int(draws(self.seed, 1, "region", user)[0] * len(REGIONS))]


def click_probabilities(utility: Floats, appetite: float) -> Floats:
    """Click probabilities in a slate: the share of each article's weight, besides clicking nothing."""
    weights = np.exp(utility)
    return np.asarray(np.minimum(_MOST, appetite * weights / (_OUTSIDE + weights.sum())))
