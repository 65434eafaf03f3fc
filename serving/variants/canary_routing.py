"""Which side of a replica answers a user: that of their arm's line, the canary's, or live's."""

from collections import Counter
from collections.abc import Collection

from experiments.promotion.lifecycle import CandidateState, answers
from recsys.events.hashing import Id
from serving.pipeline import Pipeline
from serving.variants.model_variants import ModelVariants, ModelVariant


class CanaryRouter:
    """Belongs to the event loop that answers. ``look`` before each request."""

    def __init__(self, sides: ModelVariants) -> None:
        self.sides = sides
        self.standing: CandidateState | None = None
        self.answered = Counter[str]()  # by line

    @property
    def side(self) -> ModelVariant | None:
        """The canary's."""
        return None if self.standing is None else self.sides.get(self.standing.line)

    def look(self, standing: CandidateState | None, arms: Collection[str] = ()) -> None:
        """Takes note of the candidate that answers now, if any does, and of the lines that answer arms.
        Never waits, never raises."""
        self.standing = standing
        self.sides.want([*arms] if standing is None else [*arms, standing.line])

    def pipeline(self, user_id: Id, line: str = "", counts: bool = True) -> Pipeline | None:
        """That of the user's own line, or of the canary where it answers this user; None where live answers:
        also where the side isn't fit to. ``line``: that of the user's arm; such a user is never
        answered by the canary, which would mix what the arms are. ``counts``: whether it is a list."""
        side = self.sides.get(line) if line else self.side
        if side is None or not self.sides.fit(side):
            return None
        if not line and not answers(self.standing, user_id):
            return None
        if counts:
            self.answered[side.line] += 1
        return side.pipeline
