"""The service behind the API: one replica's state, its session store, its log; no HTTP, no Ray.

Everything but the log runs in one event loop. The log is written by a thread of its own, and read by another
that hands small batches over; they are applied between requests.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from experiments.assignment.policy import Policy
from recsys.config.system_config import Config
from recsys.events.event_types import encode
from recsys.events.hashing import Id, partition_of
from recsys.events.records import EVENTS
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.log.protocol import Append, Log
from recsys.observability.log_lines import LOG_CONTEXT, LogThrottle
from serving.admission.admission import Admission
from serving.admission.deadline import POPULAR, SHORT, UNRANKED, ClockDeadline
from serving.admission.fair_lock import FairLock
from serving.admission.load_shedding import ARRIVED_S
from serving.ingestion.disk_spool import DiskSpool
from serving.ingestion.log_writer import LogWriter
from serving.ingestion.write_api import Unavailable, WriteApi
from serving.pipeline import Pipeline
from serving.replica.log_follower import Follower
from serving.replica.replica import Replica
from serving.replica.state_reader import StateReader
from serving.request import SESSION, STALE, Answer, Request, without
from serving.retrieval.retrieval_client import Shards
from serving.retrieval.retrieval_plan import Near
from serving.sessions.session_store import SessionReader, StoreUnavailable
from serving.sessions.session_timeout import LONGEST_S, SLICE_S, TimedSessionReader
from serving.sessions.session_view import view_of
from serving.tracing.request_trace import ANSWER, WAIT, Mark, RequestTrace, unmarked
from serving.tracing.request_trace import SESSION as SESSION_READ
from serving.tracing.swipe_traces import SwipeTraces
from serving.variants.canary_routing import CanaryRouter
from serving.variants.model_variants import ModelVariants

_log = logging.getLogger(__name__)
_SAY_EVERY_S: Final = 30.0
_TURNS: Final = 4  # of a request whose shards are asked: at the last it is answered without them
_STARTING: Final = "the replica is still reading the catalogue and the model"


class Service:
    """One replica at work. ``start`` and ``stop`` belong to the event loop that the rest is called in."""

    def __init__(
        self,
        config: Config,
        log: Log,
        sessions: SessionReader,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        shards: Shards | None = None,
        traces: SwipeTraces | None = None,
    ) -> None:
        """``shards``: of retrieval, where the replica is to hold no vectors and no index. ``traces``: where
        some requests are traced."""
        self.traces = traces
        self.config, self.log, self.now_ms, self.shards = config, log, now_ms, shards
        self.sessions = TimedSessionReader(sessions)
        self.features = feature_set(config)
        self.replica = Replica(self.features, config, 0 if shards is None else len(shards))
        self.pipeline = Pipeline(self.replica)
        self.reader = StateReader(log, self.replica, config, now_ms, traces=traces)
        kept = DiskSpool(Path(config.state) / "kept", log.id, int(config.serve.kept_disk_mb * 2**20))
        self.writer = LogWriter(log, keep_bytes=int(config.serve.kept_mb * 2**20), kept=kept)
        self.write_api = WriteApi(
            config,
            self.writer,
            sessions,
            self.reader.freshness,
            self._duration_ms_of,
            now_ms,
            traces,
        )
        self.follower = Follower(log, self.reader)
        self.sides = ModelVariants(config, log, self.features, now_ms)
        self.canary = CanaryRouter(self.sides)
        serve = config.serve
        self.admission = Admission(
            serve.deadline_ms / 1000, serve.queue_ms / 1000, serve.max_ongoing
        )
        self.turnstile = FairLock()
        self._needs_ms = {
            POPULAR: serve.retrieval_ms,
            SHORT: serve.rank_ms,
            UNRANKED: serve.short_rank_ms,
        }
        self.session_misses = 0
        self._degraded = LogThrottle(_SAY_EVERY_S)

    async def start(self) -> None:
        """Begins to follow the log. The service is ready when it has caught up."""
        self.writer.start()
        self.sides.start(asyncio.get_running_loop())
        self.follower.start(asyncio.get_running_loop())

    async def caught_up(self, wait_s: float) -> None:
        """Returns once the service has caught up with the log, or can't, or after ``wait_s``."""
        await self.follower.caught_up(wait_s)

    async def stop(self) -> None:
        """Writes what waits, and ends the threads."""
        self.write_api.close()
        await asyncio.to_thread(self.follower.stop)
        await self.sides.stop()
        await asyncio.to_thread(self.writer.close)
        await self.sessions.close()

    @property
    def ready(self) -> bool:
        return not self.unready

    @property
    def unready(self) -> str:
        """Why the replica shouldn't be asked now; empty where it is ready. It may answer all the same."""
        if self.failure or self.follower.away:
            return self.failure or self.follower.away
        return "" if self.reader.ready else _STARTING

    @property
    def stale(self) -> bool:
        """Whether the model is older than it should be: examples have waited, or the log has been away, for
        ``serve.stale_s``."""
        if self.reader.stale(self.now_ms()):
            return True
        return self.replica.step > 0 and self.follower.away_s > self.config.serve.stale_s

    @property
    def failure(self) -> str:
        """Why the replica doesn't follow the log any more; empty where it does."""
        return self.follower.failure

    async def recommend(self, request: Request, request_id: str = "") -> Answer:
        """Answers, and hands the impression to the writer. ``request_id``: where the caller has one that no
        other request has. Raises Unavailable before it has caught up."""
        if not self.reader.ready:
            raise Unavailable(_STARTING)
        asked_s, arrived_s = time.monotonic(), _arrived_s()
        request_id = request_id or uuid.uuid4().hex
        before = LOG_CONTEXT.set({"request_id": request_id})
        try:
            return await self._recommend(request, request_id, asked_s, arrived_s)
        finally:
            LOG_CONTEXT.reset(before)

    async def _recommend(
        self, request: Request, request_id: str, asked_s: float, arrived_s: float
    ) -> Answer:
        traced = None
        if self.traces:
            traced = self.traces.request(request_id, time.monotonic() - arrived_s)
        mark = traced.mark if traced else unmarked
        session, known = await self._session(request.user_id)
        mark(SESSION_READ)
        answer = await self._answer(
            request, session, arrived_s, time.monotonic() - asked_s, request_id, mark
        )
        if not known:
            answer = without(answer, SESSION)
        if self.stale:
            answer = without(answer, STALE)
        if traced:
            mark(ANSWER)
            traced.answered(answer)
        self._log_impression(answer, traced)
        if answer.degraded:
            self._say_degraded(answer)
        return answer

    async def recommend_unlogged(
        self, request: Request, session: Session, counts: bool = True
    ) -> Answer:
        """Answers from a session that the caller made. No impression is logged: its viewer is nobody whom a
        log knows. ``counts``: whether it is one of the lists whose number and waiting are told; False where
        somebody only looks. Raises Unavailable before it has caught up."""
        if not self.reader.ready:
            raise Unavailable(_STARTING)
        return await self._answer(request, session, _arrived_s(), 0.0, counts=counts)

    async def _answer(
        self,
        request: Request,
        session: Session,
        arrived_s: float,
        waited_s: float,
        request_id: str = "",
        mark: Mark = unmarked,
        counts: bool = True,
    ) -> Answer:
        """From the version of the moment in which it is made, in what is left of the request's time. Shards
        are asked before, and again where the version is another by then. ``waited_s``: what the request has
        waited for others, and kept no thread; admission hears of it once, with the shards' part."""
        deadline_ms = self.config.serve.deadline_ms

        def left_ms() -> float:
            return deadline_ms - 1000 * (time.monotonic() - arrived_s)

        deadline, request_id = ClockDeadline(left_ms, self._needs_ms), request_id or uuid.uuid4().hex
        asked: tuple[Request, Session, Policy, int] | None = None
        pipeline = self.pipeline
        near: Near | None = None
        for turns_left in range(_TURNS - 1, -1, -1):
            await self.turnstile.turn()
            try:
                if asked is None:  # once: the user side that is searched with is the one that ranks
                    self.canary.look(self.reader.canary, self.reader.arms)
                    policy = self.reader.policies.resolve(request.user_id)
                    its = self.canary.pipeline(request.user_id, policy.line, counts)
                    pipeline = its or self.pipeline
                    asked = request, session, policy, self.now_ms()
                plan = pipeline.plan(*asked, deadline, near) if turns_left else None
                if plan is None or self.shards is None:
                    if counts:
                        self.admission.read(waited_s, time.monotonic())
                    mark(WAIT)
                    return pipeline.recommend(*asked, request_id, deadline, near, mark)
            finally:
                self.turnstile.pass_on()
            began_s = time.monotonic()
            near = await self.shards.search(plan, (left_ms() - self.config.serve.rank_ms) / 1000)
            waited_s += time.monotonic() - began_s
        raise AssertionError("the last turn answers")

    async def session(self, user_id: Id) -> dict[str, Any]:
        """What is known of a user. Raises Unavailable without a store."""
        session = await self.session_of(user_id)
        policy = self.reader.policies.resolve(user_id)
        return view_of(session, self.replica.catalogue, policy.config.weights)

    async def session_of(self, user_id: Id) -> Session:
        """A user's session. Raises Unavailable without a store."""
        session, known = await self._session(user_id, LONGEST_S)
        if not known:
            raise Unavailable("the session store doesn't answer")
        return session

    async def _session(self, user_id: Id, patience_s: float = SLICE_S) -> tuple[Session, bool]:
        """The user's session, and whether the store said so: without it, it is that of a new user."""
        seen = self.config.sessions.seen
        try:
            blob = await self.sessions.get(user_id, patience_s)
            if blob is None:
                return Session(user_id, self.features, seen), True
            session = Session.unpack(blob, self.features, seen)
        except (StoreUnavailable, msgspec.MsgspecError, ValueError):
            self.session_misses += 1
            return Session(user_id, self.features, seen), False
        return session, True

    def _log_impression(self, answer: Answer, traced: RequestTrace | None = None) -> None:
        impression = answer.impression
        partition = partition_of(impression.user_id, self.config.log.partitions)
        key = str(impression.user_id).encode()
        told = partial(traced.appended, EVENTS, partition) if traced else None
        self.writer.impression(EVENTS, Append(partition, key, encode(impression)), told)

    def _say_degraded(self, answer: Answer) -> None:
        """Of each stage now and then: how often answers went without it, and one of them."""
        for stage in answer.degraded:
            if count := self._degraded.due(stage, time.monotonic()):
                level = logging.INFO if stage == "model" else logging.WARNING
                stamp = answer.stamp
                about = {"stage": stage, "answers": count, "line": stamp.line}
                about |= {"epoch": stamp.epoch, "step": stamp.step}
                _log.log(level, "answers go without a stage", extra=about)

    def _duration_ms_of(self, item_id: Id) -> float | None:
        catalogue = self.replica.catalogue
        index = catalogue.index_of(item_id)
        duration = None if index is None else catalogue.fields[index].get("duration_ms")
        if isinstance(duration, int | float) and not isinstance(duration, bool) and duration > 0:
            return float(duration)
        return None

    def status(self) -> dict[str, Any]:
        """What the page and ``recsys status`` show."""
        reader, replica = self.reader, self.replica
        line, epoch, step = replica.version
        fresh = reader.freshness
        return {
            "version": {"line": line, "epoch": epoch, "step": step},
            "age_ms": self.now_ms() - replica.step_time_ms if replica.step_time_ms else None,
            "items": replica.catalogue.living.count,
            "ready": self.ready,
            "events_per_s": round(reader.events.per_s(), 2),
            "examples_per_s": round(reader.examples.per_s(), 2),
            "click_to_session_ms": fresh.to_session.percentile(0.5),
            "click_to_session_p95_ms": fresh.to_session.percentile(0.95),
            "click_to_served_ms": fresh.to_served.percentile(0.5),
            "click_to_served_p95_ms": fresh.to_served.percentile(0.95),
            "lag": reader.lag,
            "gaps": reader.line.gaps,
            "impressions_dropped": self.writer.dropped,
            "canary": self._canary(),
            "arms": self._arms(),
        }

    def _canary(self) -> dict[str, Any] | None:
        """The candidate that answers a share of the users, if one does."""
        side, standing = self.canary.side, self.canary.standing
        if side is None or standing is None:
            return None
        return {
            "line": side.line,
            "share": standing.share,
            "step": side.pipeline.replica.step,
            "ready": side.reader.ready,
            "answered": self.canary.answered[side.line],
        }

    def _arms(self) -> dict[str, dict[str, Any]]:
        """The lines that answer arms of experiments, by their names."""
        sides = {line: self.sides.get(line) for line in self.reader.arms}
        return {
            line: {
                "step": 0 if side is None else side.pipeline.replica.step,
                "ready": side is not None and self.sides.fit(side),
                "answered": self.canary.answered[line],
            }
            for line, side in sides.items()
        }


def _arrived_s() -> float:
    """When the request at work came in."""
    arrived_s = ARRIVED_S.get()
    return time.monotonic() if arrived_s is None else arrived_s


def admin_key_file(config: Config) -> Path:
    """Where ``recsys up`` puts the admin key."""
    return Path(config.state) / "run" / "admin.key"
