"""One request together with everything else that its answer depends on, besides the replica."""

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys.features.session import Session
from serving.admission.deadline import NO_DEADLINE, Deadline
from serving.request import Request
from serving.tracing.request_trace import Mark, unmarked


class VectorVersion(msgspec.Struct, frozen=True):
    """Version of the item vectors: the weights, and the next offset of ``items``."""

    line: str
    epoch: int
    step: int
    catalogue_offset: int


@dataclass(frozen=True)
class ShardResults:
    """Item keys that the retrieval shards returned at a version, by source, best first. ``index``: the name
    of the searched indexes in a stamp; ``missing``: whether a shard gave no answer."""

    version: VectorVersion
    index: str
    keys: dict[str, NDArray[np.int64]]
    missing: bool


@dataclass(frozen=True)
class Query:
    """Input of every stage. Equal queries to equal replica versions have equal answers.

    ``deadline`` decides which stages are skipped; for a reconstruction it is ``RecordedDeadline``.
    ``shard_results`` count only where they have the version that answers. ``viewer_known``: the session was
    read; without it safety rules assume the worst. ``mark`` is called at the end of each traced stage.
    """

    request: Request
    session: Session
    policy: Policy
    now_ms: int
    request_id: str = ""
    deadline: Deadline = NO_DEADLINE
    shard_results: ShardResults | None = None
    viewer_known: bool = True
    mark: Mark = unmarked
