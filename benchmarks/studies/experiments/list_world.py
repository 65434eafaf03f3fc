"""Lists of the simulated world, drawn by the serving sampler and watched by the world's people, many times
over.

For studies with a known truth: ``examples.short_video.world`` gives the probability that each person watches
each item; a model is that plus a fixed error of its own. Policies are real ones (scores, temperature,
exploration, diversity, caps) with the real sampler. Arrivals and outcomes come from a random generator, since
studies repeat with other seeds; the world stays at one moment.
"""

# U people, I items, C candidates, R ranks

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from examples.short_video.world import IMPATIENCE, World
from recsys.config.policy_config import PolicyConfig
from serving.ranking.selection import Cap, SamplingInput, SamplingParams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STAYS: Final = 0.95  # P(the next rank is looked at), as in the world
_AHEAD_MS: Final = 3_600_000  # the moment: an hour after the world began


@dataclass(frozen=True)
class Shown:
    """One list: its user, its candidates (C) and their positions by rank."""

    user: int
    candidates_C: Ints
    positions_R: Ints


class ListWorld:
    """``error``: standard deviation of the model's error in logits; the world's own is about 1.7."""

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
        self.predicted_UI: Floats = _sigmoid(self.logits_UI + draw.normal(0, error, (users, items)))
        fields = [world.item(i).fields for i in range(items)]
        names = sorted({tag for item_fields in fields for tag in item_fields["tags"]})
        self.vectors_IV: NDArray[np.float32] = np.array(
            [[tag in item_fields["tags"] for tag in names] for item_fields in fields], np.float32
        )
        authors = sorted({item_fields["author"] for item_fields in fields})
        self.authors_I: Ints = np.array(
            [1 + authors.index(item_fields["author"]) for item_fields in fields]
        )

    def worse_model(self, error: float, seed: int = 1) -> Floats:
        """Predictions (U, I) of a model with another error and other draws."""
        draw = np.random.default_rng(seed)
        return _sigmoid(self.logits_UI + draw.normal(0, error, self.logits_UI.shape))

    def ballot(
        self,
        policy: PolicyConfig,
        user: int,
        candidates_C: Ints,
        predicted_UI: Floats | None = None,
    ) -> SamplingInput:
        """Sampling input of a policy for a user. Of its weights only ``weights.long_view`` counts.
        ``predicted_UI``: predictions of another model."""
        predicted_UI = self.predicted_UI if predicted_UI is None else predicted_UI
        chance = SamplingParams(policy.temperature, policy.explore, 0.0, policy.diversity)
        cap = Cap("per_author", self.authors_I[candidates_C], policy.per_author)
        return SamplingInput(
            policy.weights["long_view"] * predicted_UI[user, candidates_C],
            chance,
            (cap,) if policy.per_author else (),
            vectors_NV=self.vectors_IV[candidates_C] if policy.diversity else None,
        )

    def some_candidates(self, draw: np.random.Generator) -> Ints:
        """Random candidates, in place of retrieval."""
        return draw.choice(self.items, self.candidates, replace=False).astype(np.int64)

    def liked_R(self, shown: Shown) -> Floats:
        """P(long view | looked at) by rank."""
        items = shown.candidates_C[shown.positions_R]
        logits = self.logits_UI[shown.user, items] - IMPATIENCE * np.arange(len(items))
        return _sigmoid(logits)

    def worth(self, shown: Shown) -> float:
        """Expected long views of a list."""
        liked_R = self.liked_R(shown)
        return float(liked_R @ STAYS ** np.arange(len(liked_R)))

    def watched_R(self, shown: Shown, draw: np.random.Generator) -> Floats:
        """One draw of long views by rank, 0 or 1."""
        liked_R = self.liked_R(shown)
        stays = draw.random(len(liked_R)) < STAYS
        stays[0] = True
        seen = np.logical_and.accumulate(stays)
        return (seen & (draw.random(len(liked_R)) < liked_R)).astype(np.float64)


def _sigmoid(x: Floats) -> Floats:
    out: Floats = 1 / (1 + np.exp(-x))
    return out
