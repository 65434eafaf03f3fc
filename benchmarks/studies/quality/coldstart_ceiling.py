"""The ceiling of the coldstart study: lists by full knowledge of the simulated world's laws, but not of the
person.

Known are each item's quality, length and tags, each cluster's taste, the fashion of the hour, and the
clusters of each age band. Of the person only the age and the outcomes of swipes so far are known: a long view
or none, and the following engagements (a like is more informative than the view alone). From these follows
the posterior of the person's taste (``taste_posterior`` beside this module), and the list with the best mean
P(long view). No recommender that has seen only these swipes has a better list on average.

A taste is assumed constant during a visit. That is exact while no mood changes, so for visits that begin at a
full or half hour of the world and take less than half an hour.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.studies.quality.taste_posterior import (
    Floats,
    LogLikelihood,
    Taste,
    isotropic,
    learn,
)
from examples.short_video.world import (
    AFTER,
    AGES,
    AGES_OF_A_CLUSTER,
    CLUSTERS,
    IMPATIENCE,
    OWN_VARIANCE,
    World,
    after_chance,
    hide_chance,
)
from recsys.events.event_types import Engagement
from recsys.events.hashing import Id


def clusters_of(age_band: str) -> list[int]:
    """Clusters that people of an age band may belong to, equally likely."""
    age = AGES.index(age_band)
    return [(age - older) % CLUSTERS for older in range(AGES_OF_A_CLUSTER)]


@dataclass(frozen=True)
class Swipe:
    """An item seen at a rank, and the kinds of its known outcomes."""

    item_id: Id
    rank: int
    end_ms: int
    kinds: frozenset[str]


class Ceiling:
    """Lists for strangers, from the catalogue of ``now_ms``."""

    def __init__(self, world: World, now_ms: int) -> None:
        items = world.items(now_ms)
        self.world = world
        self.ids = [item.item_id for item in items]
        self._index = {item_id: n for n, item_id in enumerate(self.ids)}
        self._authors = [item.fields["author"] for item in items]
        traits = [world.traits(item_id) for item_id in self.ids]
        self._tags = sorted({tag for item_traits in traits for tag, _ in item_traits.tags})
        column = {tag: n for n, tag in enumerate(self._tags)}
        self._base_N = np.array([item_traits.base for item_traits in traits])
        self._x_NT = np.zeros((len(items), len(self._tags)))
        for item_traits, x_T in zip(traits, self._x_NT, strict=True):
            for tag, weight in item_traits.tags:
                x_T[column[tag]] = weight

    def prior(self, user_id: Id, now_ms: int) -> Taste:
        """Prior of a taste, given the age."""
        clusters = clusters_of(self.world.user(user_id).fields["age_band"])
        means = [[self.world.shared_taste(c, tag, now_ms) for tag in self._tags] for c in clusters]
        return isotropic(np.array(means), OWN_VARIANCE)

    def rows(self, swipes: Sequence[Swipe]) -> tuple[Floats, Floats]:
        """Tag weights (S, T) and bases (S,) of swiped items, each at its rank."""
        indices = [self._index[swipe.item_id] for swipe in swipes]
        ranks_S = np.array([swipe.rank for swipe in swipes], np.float64)
        return self._x_NT[indices], self._base_N[indices] - IMPATIENCE * ranks_S

    def chances(self, user_id: Id, swipes: Sequence[Swipe], now_ms: int) -> Floats:
        """Mean P(long view) of each item at the first rank, (N,)."""
        taste = learn(
            self.prior(user_id, now_ms), *self.rows(swipes), outcome_likelihood(swipes, now_ms)
        )
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
        """The best ``n`` items by P(long view), without ``gone`` and with at most ``per_author`` of one
        author (0: any)."""
        shown: list[Id] = []
        authors: dict[str, int] = {}
        for index in np.argsort(-self.chances(user_id, swipes, now_ms), kind="stable"):
            author = self._authors[index]
            if self.ids[index] in gone or (per_author and authors.get(author, 0) >= per_author):
                continue
            shown.append(self.ids[index])
            authors[author] = authors.get(author, 0) + 1
            if len(shown) == n:
                break
        return shown


def swipes_of(events: Sequence[Engagement], ranks: Mapping[Id, int]) -> list[Swipe]:
    """Seen items in order, with their outcomes so far."""
    kinds: dict[Id, set[str]] = {}
    ends: dict[Id, int] = {}
    for event in events:
        kinds.setdefault(event.item_id, set()).add(event.kind)
        if event.kind == "view":
            ends[event.item_id] = event.time_ms
    return [
        Swipe(item, ranks[item], end_ms, frozenset(kinds[item])) for item, end_ms in ends.items()
    ]


def outcome_likelihood(swipes: Sequence[Swipe], now_ms: int) -> LogLikelihood:
    """log P(outcomes of each swipe until now | its logit), by the laws of ``World.react``.

    Late outcomes may still come: their absence is the less informative, the less time has passed. Their
    delays, and the watch time beyond long view or not, are independent of the taste.
    """
    long_S, hid_S = (np.array([kind in s.kinds for s in swipes]) for kind in ("long_view", "hide"))
    passed_S = np.array([max(0, now_ms - swipe.end_ms) for swipe in swipes], np.float64)

    def log_likelihood(logits: Floats) -> Floats:
        liked = np.exp(-np.logaddexp(0.0, -logits))
        log_likelihoods = np.where(long_S, -np.logaddexp(0.0, -logits), -np.logaddexp(0.0, logits))
        for kind, (_, delay_ms) in AFTER.items():
            chance = after_chance(kind, liked)
            arrived_S = 1 - np.exp(-passed_S / delay_ms) if delay_ms else np.ones(len(swipes))
            did_S = np.array([kind in swipe.kinds for swipe in swipes])
            log_likelihoods += long_S * np.where(
                did_S, np.log(chance), np.log1p(-chance * arrived_S)
            )
        chance = hide_chance(liked)
        log_likelihoods += ~long_S * np.where(hid_S, np.log(chance), np.log1p(-chance))
        return np.asarray(log_likelihoods)

    return log_likelihood
