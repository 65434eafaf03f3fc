"""A replay player that also makes lists, so that a simulated world can answer them."""

from dataclasses import dataclass

from experiments.assignment.policy import Policies
from replay.player import Player
from serving.query import Query
from serving.request import Answer, Request


@dataclass
class AnsweringPlayer(Player):
    """Player that answers requests as a replica does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.policies = Policies(self.config.policy)
        self._requests = 0

    def recommend(self, request: Request, now_ms: int) -> Answer:
        """Answers a request as a replica does, and plays the impression."""
        self.advance(now_ms)
        self.sync_popularity()
        self._requests += 1
        answer = self.pipeline.recommend(
            Query(
                request,
                self.session(request.user_id),
                self.policies.resolve(request.user_id),
                now_ms,
                f"{request.user_id}-{now_ms}-{self._requests}",
            )
        )
        self._impression(answer.impression)
        return answer
