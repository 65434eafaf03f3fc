"""Answers requests: chooses the variant, asks retrieval shards, ranks in what is left of the deadline."""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from recsys.features.session import Session
from serving.admission.admission import Admission
from serving.admission.deadline import POPULAR, SHORT, UNRANKED, TimeLeftDeadline
from serving.admission.fair_lock import FairLock
from serving.query import Query
from serving.request import Answer, Request
from serving.retrieval.retrieval_client import RetrievalClient
from serving.tracing.request_trace import WAIT, Mark, unmarked
from serving.variants.model_variant import ModelVariant
from serving.variants.model_variants import CanaryRouter

_ATTEMPTS: Final = 4  # of a request that asks retrieval shards: the last answers without them
# In milliseconds before the deadline; SHORT's are serve.rank_ms.
_NEEDS_MS: Final = {POPULAR: 10.0, UNRANKED: 8.0}


class Answering:
    """Answers of one replica, one at a time. ``lock``: of the thread's computations."""

    def __init__(
        self, live: ModelVariant, canary: CanaryRouter, shards: RetrievalClient | None,
        admission: Admission, now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self._live, self._canary, self._shards = live, canary, shards
        self._admission, self._now_ms = admission, now_ms
        self._serve = live.replica.config.serve
        self._needs_ms = _NEEDS_MS | {SHORT: self._serve.rank_ms}
        self.lock = FairLock()

    async def answer(
        self, request: Request, session: Session, arrived_s: float, waited_s: float,
        request_id: str = "", mark: Mark = unmarked, counts: bool = True, viewer_known: bool = True,
    ) -> Answer:  # fmt: skip
        """Answers from the version current at the time of ranking, within the rest of the request's time.

        Retrieval shards are asked before, and again if the version changed meanwhile. ``waited_s``: I/O wait
        so far, which occupied no thread; admission gets it once, with the wait for shards added. ``counts``:
        whether the list counts in metrics of lists and waiting times.
        """
        deadline_ms = self._serve.deadline_ms

        def left_ms() -> float:
            return deadline_ms - 1000 * (time.monotonic() - arrived_s)

        deadline, control = TimeLeftDeadline(left_ms, self._needs_ms), self._live.control
        request_id = request_id or uuid.uuid4().hex
        query: Query | None = None
        pipeline = self._live.pipeline
        for attempts_left in range(_ATTEMPTS - 1, -1, -1):
            await self.lock.acquire()
            try:
                if query is None:  # once: retrieval and ranking use the same user features
                    self._canary.update(control.canary, control.arms)
                    policy = control.policies.resolve(request.user_id, request.surface)
                    variant = self._canary.pipeline(request.user_id, policy.line, counts)
                    pipeline = variant or pipeline
                    query = Query(
                        request, session, policy, self._now_ms(), request_id, deadline,
                        viewer_known=viewer_known, mark=mark,
                    )  # fmt: skip
                plan = pipeline.plan(query) if attempts_left else None
                if plan is None or self._shards is None:
                    if counts:
                        self._admission.observe_io_wait(waited_s, time.monotonic())
                    mark(WAIT)
                    return pipeline.recommend(query)
            finally:
                self.lock.release_later()
            began_s = time.monotonic()
            timeout_s = (left_ms() - self._serve.rank_ms) / 1000
            query = replace(query, shard_results=await self._shards.search(plan, timeout_s))
            waited_s += time.monotonic() - began_s
        raise AssertionError("the last attempt answers")
