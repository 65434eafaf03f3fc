"""Lists of the simulated world, drawn by the serving draw and watched as its people watch, many times over.

For studies whose truth must be known: ``replay.simulation.world`` says with what probability each person watches each
item; a model is that with an error of its own, which stays. A policy is the real one (scores, temperature,
exploration, nearness, caps) on the real draw. Who comes and what they do is drawn by a generator, since
studies repeat themselves with other seeds; the world stands still at one moment.
"""

# U people, I items, C candidates, R ranks

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.policy_config import PolicyConfig
from replay.simulation.world import IMPATIENCE, World
from serving.ranking.selection import Ballot, Cap, Chance

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STAYS: Final = 0.95  # P(the next rank is looked at), as in the world
_AHEAD_MS: Final = 3_600_000  # the moment: an hour after the world began


@dataclass(frozen=True)
class Shown:
    """One list: whose, its candidates (C) and the positions among these, by rank."""

    user: int
    candidates_C: Ints
    positions_R: Ints


class ListWorld:
    """``error``: the standard deviation of the model's error, in logits; the world's own is about 1.7."""

    def __init__(
        self, seed: int = 0, users: int = 300, items: int = 200, candidates: int = 50, ranks: int = 5,
        error: float = 0.7,
    ) -> None:  # fmt: skip
        world = World(seed, users, items)
        self.users, self.items, self.candidates, self.ranks = users, items, candidates, ranks
        now_ms = world.start_ms + _AHEAD_MS
        chances_UI = np.array(
            [
                [world.true_long_view(f"u{u}", f"w{i}", now_ms) for i in range(items)]
                for u in range(users)
            ]
        )
        self.logits_UI: Floats = np.log(chances_UI / (1 - chances_UI))
        draw = np.random.default_rng(seed)
        self.said_UI: Floats = _sigmoid(self.logits_UI + draw.normal(0, error, (users, items)))
        fields = [world.item(i).fields for i in range(items)]
        names = sorted({tag for its in fields for tag in its["tags"]})
        self.vectors_IV: NDArray[np.float32] = np.array(
            [[tag in its["tags"] for tag in names] for its in fields], np.float32
        )
        authors = sorted({its["author"] for its in fields})
        self.authors_I: Ints = np.array([1 + authors.index(its["author"]) for its in fields])

    def worse_model(self, error: float, seed: int = 1) -> Floats:
        """What a model says (U, I) whose error has another standard deviation, and other draws."""
        draw = np.random.default_rng(seed)
        return _sigmoid(self.logits_UI + draw.normal(0, error, self.logits_UI.shape))

    def ballot(
        self, policy: PolicyConfig, user: int, candidates_C: Ints, said_UI: Floats | None = None
    ) -> Ballot:
        """What a policy draws by for somebody. ``weights.long_view`` alone counts of its weights.
        ``said_UI``: of another model."""
        said_UI = self.said_UI if said_UI is None else said_UI
        chance = Chance(policy.temperature, policy.explore, 0.0, policy.diversity)
        cap = Cap("per_author", self.authors_I[candidates_C], policy.per_author)
        return Ballot(
            policy.weights["long_view"] * said_UI[user, candidates_C],
            chance,
            (cap,) if policy.per_author else (),
            vectors_NV=self.vectors_IV[candidates_C] if policy.diversity else None,
        )

    def some_candidates(self, draw: np.random.Generator) -> Ints:
        """What retrieval may have found."""
        return draw.choice(self.items, self.candidates, replace=False).astype(np.int64)

    def liked_R(self, shown: Shown) -> Floats:
        """P(long view | looked at) by rank."""
        items = shown.candidates_C[shown.positions_R]
        logits = self.logits_UI[shown.user, items] - IMPATIENCE * np.arange(len(items))
        return _sigmoid(logits)

    def worth(self, shown: Shown) -> float:
        """The expected long views of a list: what is looked at, as much as it is liked."""
        liked_R = self.liked_R(shown)
        return float(liked_R @ STAYS ** np.arange(len(liked_R)))

    def watched_R(self, shown: Shown, draw: np.random.Generator) -> Floats:
        """Long views by rank, 0 or 1, once."""
        liked_R = self.liked_R(shown)
        stays = draw.random(len(liked_R)) < STAYS
        stays[0] = True
        seen = np.logical_and.accumulate(stays)
        return (seen & (draw.random(len(liked_R)) < liked_R)).astype(np.float64)


def _sigmoid(x: Floats) -> Floats:
    out: Floats = 1 / (1 + np.exp(-x))
    return out
