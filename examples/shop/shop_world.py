"""A simulated shop without impressions: visits browse within hidden clusters of items, offers are wanted for
an hour or two, and visitors look at items again.

Every draw is a hash of the seed and ids.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np

from examples.hashed_draws import Floats, chosen, draws, normals, turning
from recsys.events.event_types import Engagement, Event, Item

_HOUR_MS: Final = 3_600_000
_OFFER_EVERY_MS: Final = _HOUR_MS // 4
_OFFER_FADES_MS: Final = _HOUR_MS // 2  # half-life
_AGAIN: Final = 0.2  # P(a click looks at an item of the visit again)
_OFFER: Final = 0.3  # P(a click goes to an offer)
_STAYS: Final = 0.85  # P(one more click)
_LONGEST: Final = 30
_STEP_MS: Final = _HOUR_MS // 6  # the weights within a cluster are recomputed this often


class ShopWorld:
    """About ``clicks`` clicks of ``users`` visitors on ``items`` items in ``hours``. Items have no fields;
    with ``categories`` they name their cluster."""

    def __init__(
        self,
        seed: int = 0,
        users: int = 4000,
        clicks: int = 100_000,
        *,
        hours: int = 24,
        items: int = 3000,
        clusters: int = 75,
        categories: bool = False,
        start_ms: int = 1_700_006_400_000,
    ) -> None:
        if min(users, clicks, hours, clusters) < 1 or items < clusters:
            raise ValueError(
                f"users is {users}, clicks {clicks}, hours {hours}, clusters {clusters}, items "
                f"{items}: expected positive numbers, and at least as many items as clusters"
            )
        self.seed, self.users, self.clicks, self.hours = seed, users, clicks, hours
        self.items, self.clusters, self.categories = items, clusters, categories
        self.start_ms = start_ms
        self._offers = self.hours * _HOUR_MS // _OFFER_EVERY_MS + 8  # some from before the start
        self._heat = np.exp(0.5 * normals(seed, self._offers, "heat"))
        self._offer_cluster = (draws(seed, self._offers, "offers") * clusters).astype(np.int64)
        self._cluster_weights = lru_cache(maxsize=1024)(self._weights_of)

    def events(self) -> list[Event]:
        """The log, sorted by time."""
        events: list[Event] = list(self._catalogue())
        visits = max(1, round(self.clicks * (1 - _STAYS) * 0.99))  # clicks a visit: 1 / (1 - _STAYS)
        for visit in range(visits):
            events += self._visit(f"s{visit}")
        return sorted(events, key=lambda event: event.time_ms)

    def _catalogue(self) -> Iterator[Item]:
        """Items of the clusters, then the offers as they begin."""
        for n in range(self.items):
            yield self._item(self.start_ms, f"p{n}", n % self.clusters)
        for n in range(self._offers):
            begins = max(self.start_ms, self._offer_ms(n))
            yield self._item(begins, f"offer{n}", int(self._offer_cluster[n]))

    def _item(self, time_ms: int, item_id: str, cluster: int) -> Item:
        fields = {"category": f"c{cluster}"} if self.categories else {}
        return Item(time_ms=time_ms, item_id=item_id, fields=fields)

    def _visit(self, visit: str) -> Iterator[Event]:
        """Clicks of one visit in one cluster; some end in a purchase."""
        seed = self.seed
        when, who, first, taste = draws(seed, 4, "visit", visit)
        user = f"u{int(who**2 * self.users)}"  # squared: few visitors come often
        span_ms = self.hours * _HOUR_MS
        time_ms = self.start_ms + int(span_ms * when)
        # Visitors have three favourite clusters.
        favourite = "any" if taste < 0.2 else f"{user}.{int(first * 3)}"
        own = visit if favourite == "any" else favourite
        cluster = int(draws(seed, 1, "cluster", own)[0] * self.clusters)
        seen: list[str] = []
        for at in range(_LONGEST):
            kind, pick, gap, stays, buys = draws(seed, 5, "click", visit, at)
            if time_ms >= self.start_ms + span_ms:
                return
            again = bool(seen) and kind < _AGAIN
            if again:
                # The latest items most of all.
                item = seen[-1 - chosen(0.6 ** np.arange(len(seen)), pick)]
            elif kind < _AGAIN + _OFFER:
                item = f"offer{self._offer(time_ms, cluster, pick)}"
            else:
                weights = self._cluster_weights(cluster, time_ms // _STEP_MS)
                item = f"p{cluster + self.clusters * chosen(weights, pick)}"
            seen.append(item)
            yield self._engagement(time_ms, visit, user, item, "click")
            if buys < (0.08 if again else 0.02):
                yield self._engagement(time_ms + 5_000, visit, user, item, "purchase")
            if stays > _STAYS:
                return
            time_ms += int(10_000 - 30_000 * math.log(1 - gap))

    def _engagement(self, time_ms: int, visit: str, user: str, item: str, kind: str) -> Engagement:
        return Engagement(
            time_ms=time_ms, request_id=visit, user_id=user, item_id=item, kind=kind, surface="shop"
        )

    def _weights_of(self, cluster: int, step: int) -> Floats:
        """Popularity of a cluster's items: a few much more than the rest, changing within hours."""
        size = len(range(cluster, self.items, self.clusters))
        fixed = normals(self.seed, size, "popular", cluster)
        moving = turning(self.seed, size, step * _STEP_MS, 6 * _HOUR_MS, "trend", cluster)
        return np.asarray(np.exp(1.2 * fixed + 0.8 * moving))

    def _offer_ms(self, n: int) -> int:
        return self.start_ms + (n - 8) * _OFFER_EVERY_MS

    def _offer(self, time_ms: int, cluster: int, draw: float) -> int:
        """A running offer; visitors of its cluster take it more."""
        newest = min(self._offers - 1, 8 + (time_ms - self.start_ms) // _OFFER_EVERY_MS)
        running = np.arange(max(0, newest - 15), newest + 1)
        age_ms = time_ms - np.array([self._offer_ms(int(n)) for n in running])
        same = np.where(self._offer_cluster[running] == cluster, 5.0, 1.0)
        weights = self._heat[running] * 0.5 ** (age_ms / _OFFER_FADES_MS) * same
        return int(running[chosen(weights, draw)])
