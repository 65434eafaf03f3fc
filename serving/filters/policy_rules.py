"""Items that rules of the policy close: ``require``, and ``limit`` to none."""

from serving.filters.filter import Filter
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Closed


class ClosedByRules(Filter):
    """Items that the policy's rules close. In the catalogue, of two policies those that both close: each
    closes its own in its list."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Closed | None:
        rivals = () if candidates.allowed is None else query.policy.rivals
        policies = [policy for _, policy in rivals] or [query.policy]
        if not all(policy.config.rules for policy in policies):
            return None
        closed, *others = (replica.values.closed_by(policy.config.rules) for policy in policies)
        for other in others:
            closed.intersect(other)
        return closed
