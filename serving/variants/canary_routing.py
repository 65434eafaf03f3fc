"""Chooses the model variant that answers a user: the variant of the user's arm, the canary, or live."""

from collections import Counter
from collections.abc import Collection

from experiments.promotion.lifecycle import CandidateState, is_in_canary
from recsys.events.hashing import Id
from serving.pipeline import Pipeline
from serving.variants.model_variants import ModelVariant, ModelVariants


class CanaryRouter:
    """Routes users to variants; belongs to the event loop that answers. ``update`` precedes each request."""

    def __init__(self, variants: ModelVariants) -> None:
        self.variants = variants
        self.state: CandidateState | None = None
        self.answered = Counter[str]()  # by line

    @property
    def variant(self) -> ModelVariant | None:
        """Variant of the canary."""
        return None if self.state is None else self.variants.get(self.state.line)

    def update(self, state: CandidateState | None, arms: Collection[str] = ()) -> None:
        """Sets the candidate that answers now, if any, and the lines of arms. Neither waits nor raises."""
        self.state = state
        self.variants.set_wanted([*arms] if state is None else [*arms, state.line])

    def pipeline(self, user_id: Id, line: str = "", counts: bool = True) -> Pipeline | None:
        """Pipeline for a user; None if live answers, also because the variant can't serve yet.

        ``line``: line of the user's arm. The canary never answers such a user: it would blur the arms.
        ``counts``: whether to count the list.
        """
        variant = self.variants.get(line) if line else self.variant
        if variant is None or not self.variants.is_servable(variant):
            return None
        if not line and not is_in_canary(self.state, user_id):
            return None
        if counts:
            self.answered[variant.line] += 1
        return variant.pipeline
