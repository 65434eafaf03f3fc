"""Service behind the API: one replica's state, its session store and its log; no HTTP, no Ray.

Everything but the log runs in one event loop. One thread writes the log; another reads it and hands over
small batches, which are applied between requests.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Final

from recsys.app.set_loops import SetsInUse
from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from recsys.features.session import PLAIN_LIST, Session
from recsys.log.protocol import Log
from recsys.observability.catching_up import said
from recsys.observability.log_lines import LOG_CONTEXT
from serving.access.caller import ANONYMOUS, Caller
from serving.access.caller_checks import CallerChecks
from serving.admission.admission import Admission
from serving.admission.load_shedding import ARRIVED_S
from serving.answer_log import AnswerLog
from serving.answer_tokens import AnswerTokens
from serving.answering import Answering
from serving.ingestion.open_write_api import open_write_api
from serving.item_lists import ItemLists
from serving.live_clicks import LiveClicks
from serving.problem import Unavailable
from serving.request import CATCHING_UP, SESSION, STALE, Answer, Request, with_degraded
from serving.retrieval.retrieval_client import RetrievalClient
from serving.sessions.session_store import SessionReader
from serving.sessions.user_sessions import UserSessions
from serving.tracing import request_trace
from serving.tracing.swipe_traces import SwipeTraces
from serving.variants.model_variant import ModelVariant
from serving.variants.model_variants import CanaryRouter, ModelVariants

_WATCH_S: Final = 1.0
_STARTING: Final = "the replica is still reading the catalogue and the model"


class Service:
    """One replica. All methods belong to the event loop that called ``start``."""

    def __init__(
        self, config: Config, log: Log, sessions: SessionReader,
        now_ms: Callable[[], int], shards: RetrievalClient | None = None,
        traces: SwipeTraces | None = None,
    ) -> None:  # fmt: skip
        """``shards``: retrieval shards; with them the replica holds no vectors and no index. ``traces``:
        traces a sample of the requests."""
        self.config, self.log, self.now_ms, self.shards, self.traces = config, log, now_ms, shards, traces
        first = feature_set(config)
        in_use = SetsInUse.of(log, first)
        self.features = in_use.answers
        if name := in_use.name(self.features):
            sessions = sessions.of_set(name)
        self.sessions = UserSessions(sessions, self.features, config.sessions.seen)
        count = 0 if shards is None else len(shards)
        self.live = ModelVariant(config, log, self.features, now_ms, first, count, traces)
        self.replica = self.live.replica
        self.canary = CanaryRouter(ModelVariants(log, self.live, now_ms, first))
        serve = config.serve
        self.admission = Admission(serve.deadline_ms / 1000, serve.queue_ms / 1000, serve.max_ongoing)
        self._answering = Answering(self.live, self.canary, shards, self.admission, now_ms)
        self.clicks = LiveClicks(self.live, self.sessions, self._answering.lock, now_ms)
        self.lists = ItemLists(self.live.pipeline, shards, now_ms)
        self.callers = CallerChecks(config, now_ms)
        self.tokens = AnswerTokens(self.live, self.callers.proofs, now_ms)
        self.write_api = open_write_api(
            config, log, self.replica.catalogue, sessions, self.callers, self.live.progress.freshness,
            self.clicks.with_lists, now_ms, traces,
        )  # fmt: skip
        self.writer = self.write_api.writer
        self._answer_log = AnswerLog(self.writer, config.log.partitions)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the threads. The service is ready once it has caught up with the log."""
        self.callers.warn_without_secret()
        self.writer.start()
        self.canary.variants.start(asyncio.get_running_loop())
        self.live.thread.start(asyncio.get_running_loop())
        self._watching = asyncio.create_task(self._watch_sessions())

    async def caught_up(self, wait_s: float) -> None:
        """Waits until the service has caught up with the log, ``wait_s`` at the longest; then calls the
        retrieval shards once, which takes some seconds at most."""
        await self.live.thread.caught_up(wait_s)
        if self.shards is not None:
            await self.shards.connect()

    async def stop(self) -> None:
        """Writes pending records and ends the threads."""
        if self._watching is not None:
            self._watching.cancel()
        self.write_api.close()
        await asyncio.to_thread(self.live.thread.stop)
        await self.canary.variants.stop()
        await asyncio.to_thread(self.writer.close)
        await self.sessions.store.close()

    async def _watch_sessions(self) -> None:
        """Tells the replica how far the sessions are folded."""
        while True:
            partitions = self.config.log.partitions
            self.live.folds.sessions_at = await self.sessions.store.folded_to(partitions)
            await asyncio.sleep(_WATCH_S)

    @property
    def ready(self) -> bool:
        return not self.unready

    @property
    def unready(self) -> str:
        """Reason not to send requests here; empty if ready. The replica may answer all the same."""
        if reason := self.failure or self.live.thread.away:
            return reason
        if not self.live.followers.ready:
            return _STARTING
        folds = self.live.folds
        return "" if folds.has_caught_up else said(folds.catching_up)

    @property
    def stale(self) -> bool:
        """Whether examples have waited, or the log has been away, for ``serve.stale_s``."""
        away = self.live.thread.away_s > self.config.serve.stale_s
        return self.live.stale or (away and self.replica.step > 0)

    @property
    def failure(self) -> str:
        """Reason why the replica stopped following the log; empty while it follows."""
        return self.live.thread.failure

    async def recommend(
        self, request: Request, request_id: str = "", logged: bool = True, caller: Caller = ANONYMOUS
    ) -> Answer:
        """Answers a request and, if ``logged``, logs the impression. ``request_id``: a unique id of the
        caller's. Raises Unavailable before the replica has caught up."""
        if not self.live.followers.ready:
            raise Unavailable(_STARTING)
        began_s, arrived_s = time.monotonic(), _arrived_s()
        session, read = await self.sessions.read(request.user_id)
        waited_s, is_plain = time.monotonic() - began_s, request.plain or session.plain
        request_id = request_id or (PLAIN_LIST if is_plain else "") + uuid.uuid4().hex
        token = LOG_CONTEXT.set({"request_id": request_id})
        try:
            trace = None
            if self.traces:
                trace = self.traces.request(request_id, time.monotonic() - arrived_s)
            mark = trace.mark if trace else request_trace.unmarked
            mark(request_trace.SESSION)
            answer = await self._answering.answer(
                request, session, arrived_s, waited_s, request_id, mark, viewer_known=read
            )
            if not read:
                answer = with_degraded(answer, SESSION)
            if self.stale:
                answer = with_degraded(answer, STALE)
            if self.live.folds.lacks_events(request.user_id):
                answer = with_degraded(answer, CATCHING_UP)
            if trace:
                mark(request_trace.ANSWER)
                trace.answered(answer)
            if self.config.serve.rendered and caller.key_id and caller.user_id is None:
                answer.impression.shown, answer.impression.source = True, caller.source
            if logged:
                self._answer_log.append(answer, trace)
            self._answer_log.degraded(answer)
            return answer
        finally:
            LOG_CONTEXT.reset(token)

    async def recommend_unlogged(self, request: Request, session: Session, counts: bool = True) -> Answer:
        """Answers from a given session, without an impression. ``counts``: whether the list counts in metrics
        of lists and waiting times. Raises Unavailable before the replica has caught up."""
        if not self.live.followers.ready:
            raise Unavailable(_STARTING)
        return await self._answering.answer(request, session, _arrived_s(), 0.0, counts=counts)


def _arrived_s() -> float:
    """Arrival time of the current request."""
    arrived_s = ARRIVED_S.get()
    return time.monotonic() if arrived_s is None else arrived_s
