"""One request together with everything else that its answer depends on, besides the replica."""

from dataclasses import dataclass

from experiments.assignment.policy import Policy
from recsys.features.session import Session
from serving.admission.deadline import UNHURRIED, Deadline
from serving.request import Request
from serving.retrieval.retrieval_plan import ShardResults
from serving.tracing.request_trace import Mark, unmarked


@dataclass(frozen=True)
class Query:
    """Input of every stage. Equal queries to equal replica versions have equal answers.

    ``deadline`` decides which stages are skipped; for a reconstruction it is ``AsServed``. ``shard_results``
    count only where they have the version that answers. ``mark`` is called at the end of each traced stage.
    """

    request: Request
    session: Session
    policy: Policy
    now_ms: int
    request_id: str = ""
    deadline: Deadline = UNHURRIED
    shard_results: ShardResults | None = None
    mark: Mark = unmarked
