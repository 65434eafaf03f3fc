"""What somebody would show who knows the simulated world's laws, but not the person: the study's ceiling.

They know each item's quality, length and tags, each cluster's taste, the fashion of the hour, and which
clusters people of an age are of. Of the person they know the age, and what came of each swipe until now:
a long view or none, and what followed it (a like says more than the view alone). From these they have the
person's taste as well as it can be known (``replay.simulation.taste_posterior``), and show what has the best mean
P(long view). Nobody who has seen these swipes, and no others, has a better list on average.

A taste holds still through a visit here. That is exact where no mood turns in it, so for visits that begin at
a full or half hour of the world and take less than half an hour.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.events.event_types import Engagement
from recsys.events.hashing import Id
from replay.simulation.taste_posterior import Floats, LogLikelihood, Taste, isotropic, learn
from replay.simulation.world import (
    AFTER,
    IMPATIENCE,
    OWN_VARIANCE,
    World,
    after_chance,
    hide_chance,
)


@dataclass(frozen=True)
class Swipe:
    """An item that was seen at a rank, and the kinds of what is known to have come of it."""

    item_id: Id
    rank: int
    end_ms: int
    kinds: frozenset[str]


class Ceiling:
    """Lists for strangers. The catalogue is that of ``now_ms``."""

    def __init__(self, world: World, now_ms: int) -> None:
        items = world.items(now_ms)
        self.world = world
        self.ids = [item.item_id for item in items]
        self._index = {item_id: n for n, item_id in enumerate(self.ids)}
        self._authors = [item.fields["author"] for item in items]
        traits = [world.traits(item_id) for item_id in self.ids]
        self._tags = sorted({tag for its in traits for tag, _ in its.tags})
        column = {tag: n for n, tag in enumerate(self._tags)}
        self._base_N = np.array([its.base for its in traits])
        self._x_NT = np.zeros((len(items), len(self._tags)))
        for its, x_T in zip(traits, self._x_NT, strict=True):
            for tag, weight in its.tags:
                x_T[column[tag]] = weight

    def prior(self, user_id: Id, now_ms: int) -> Taste:
        """What the age says of a taste."""
        clusters = self.world.clusters_of(self.world.user(user_id).fields["age_band"])
        means = [[self.world.shared_taste(c, tag, now_ms) for tag in self._tags] for c in clusters]
        return isotropic(np.array(means), OWN_VARIANCE)

    def rows(self, swipes: Sequence[Swipe]) -> tuple[Floats, Floats]:
        """The weights of tags (S, T) and the bases (S,) of what was swiped, each at its rank."""
        indices = [self._index[swipe.item_id] for swipe in swipes]
        ranks_S = np.array([swipe.rank for swipe in swipes], np.float64)
        return self._x_NT[indices], self._base_N[indices] - IMPATIENCE * ranks_S

    def chances(self, user_id: Id, swipes: Sequence[Swipe], now_ms: int) -> Floats:
        """The mean P(long view) of each item at the first rank, (N,)."""
        taste = learn(self.prior(user_id, now_ms), *self.rows(swipes), told(swipes, now_ms))
        return taste.chances(self._x_NT, self._base_N)

    def show(
        self,
        user_id: Id,
        swipes: Sequence[Swipe],
        now_ms: int,
        gone: Collection[Id],
        n: int,
        per_author: int,
    ) -> list[Id]:
        """The best ``n`` items by P(long view), ``gone`` left out, not too many of one author (0: any)."""
        found: list[Id] = []
        authors: dict[str, int] = {}
        for index in np.argsort(-self.chances(user_id, swipes, now_ms), kind="stable"):
            author = self._authors[index]
            if self.ids[index] in gone or (per_author and authors.get(author, 0) >= per_author):
                continue
            found.append(self.ids[index])
            authors[author] = authors.get(author, 0) + 1
            if len(found) == n:
                break
        return found


def swipes_of(events: Sequence[Engagement], ranks: Mapping[Id, int]) -> list[Swipe]:
    """What was seen, in order, with what came of it so far."""
    kinds: dict[Id, set[str]] = {}
    ends: dict[Id, int] = {}
    for event in events:
        kinds.setdefault(event.item_id, set()).add(event.kind)
        if event.kind == "view":
            ends[event.item_id] = event.time_ms
    return [
        Swipe(item, ranks[item], end_ms, frozenset(kinds[item])) for item, end_ms in ends.items()
    ]


def told(swipes: Sequence[Swipe], now_ms: int) -> LogLikelihood:
    """log P(what came of each swipe until now | its logit), by the laws of ``World.react``.

    What comes late may still come: that it isn't there says the less, the less time has passed. When it came,
    and for how long an item was watched beyond a long view or not, says nothing of the taste.
    """
    long_S, hid_S = (np.array([kind in s.kinds for s in swipes]) for kind in ("long_view", "hide"))
    passed_S = np.array([max(0, now_ms - swipe.end_ms) for swipe in swipes], np.float64)

    def log_likelihood(logits: Floats) -> Floats:
        liked = np.exp(-np.logaddexp(0.0, -logits))
        found = np.where(long_S, -np.logaddexp(0.0, -logits), -np.logaddexp(0.0, logits))
        for kind, (_, delay_ms) in AFTER.items():
            chance = after_chance(kind, liked)
            arrived_S = 1 - np.exp(-passed_S / delay_ms) if delay_ms else np.ones(len(swipes))
            did_S = np.array([kind in swipe.kinds for swipe in swipes])
            found += long_S * np.where(did_S, np.log(chance), np.log1p(-chance * arrived_S))
        chance = hide_chance(liked)
        found += ~long_S * np.where(hid_S, np.log(chance), np.log1p(-chance))
        return np.asarray(found)

    return log_likelihood
