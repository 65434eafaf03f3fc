"""Service behind the API: one replica's state, its session store and its log; no HTTP, no Ray.

Everything but the log runs in one event loop. One thread writes the log; another reads it and hands over
small batches, which are applied between requests.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from experiments.assignment.policy import LENGTH
from recsys.app.set_loops import SetsInUse
from recsys.clock import timer_of
from recsys.config.system_config import Config
from recsys.events.event_types import ENGAGEMENT_KINDS, SEEN, Engagement, Event
from recsys.events.hashing import Id
from recsys.events.records import EVENTS, record_of
from recsys.features.feature_set_file import feature_set
from recsys.features.session import PLAIN_LIST, Session
from recsys.log.protocol import Log
from recsys.observability.log_lines import LOG_CONTEXT, LogThrottle
from recsys.process.space_file import SpaceReader
from serving.access.access_control import AccessControl
from serving.access.caller import ANONYMOUS, Caller, Denied
from serving.access.key_files import DOOR_KEY, SOURCE_KEY, TOKEN_KEYS, SecretFile
from serving.access.proofs import Proofs
from serving.access.quotas import Quotas
from serving.admission.admission import Admission
from serving.admission.deadline import POPULAR, SHORT, UNRANKED, TimeLeftDeadline
from serving.admission.fair_lock import FairLock
from serving.admission.load_shedding import ARRIVED_S
from serving.click_lists import AWAY, BUSY, FAILED, ClickLists
from serving.ingestion.disk_spool import DiskSpool
from serving.ingestion.event_validation import EventValidator
from serving.ingestion.log_writer import LogWriter
from serving.ingestion.write_api import Unavailable, WriteApi
from serving.item_lists import ItemLists
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import SESSION, STALE, Answer, Request, with_degraded
from serving.retrieval.filters import CHOSEN, EXCLUDED
from serving.retrieval.retrieval_client import RetrievalClient
from serving.sessions.session_store import SessionReader, StoreUnavailable
from serving.sessions.session_timeout import MAX_WAIT_S, SLICE_S, TimedSessionReader
from serving.sessions.session_view import view_of
from serving.tracing.request_trace import ANSWER, WAIT, Mark, RequestTrace, unmarked
from serving.tracing.request_trace import SESSION as SESSION_READ
from serving.tracing.swipe_traces import SwipeTraces
from serving.variants.model_variant import ModelVariant
from serving.variants.model_variants import CanaryRouter, ModelVariants

_LOG: Final = logging.getLogger(__name__)
_CLICKS_S: Final = 2.0  # in which clicks of a batch get lists; later ones are counted only
_ATTEMPTS: Final = 4  # of a request that asks retrieval shards: the last answers without them
_OF_EACH: Final = 10  # items to choose from, for each one of a long list
_READ_ON: Final = 10  # lists whose items a page that is read on excludes
_PAGE: Final = 1_000  # items of one category, which are enough to choose from
# In milliseconds before the deadline; SHORT's are serve.rank_ms.
_NEEDS_MS: Final = {POPULAR: 10.0, UNRANKED: 8.0}
_KEPT_ON_DISK: Final = 1 << 30  # bytes of impressions that wait while the log is unavailable
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
        self.traces = traces
        self.config, self.log, self.now_ms, self.shards = config, log, now_ms, shards
        self.timer_ms = timer_of(now_ms)
        first = feature_set(config)
        in_use = SetsInUse.of(log, first)
        self.features = in_use.answers
        if name := in_use.name(self.features):
            sessions = sessions.of_set(name)
        self.sessions = TimedSessionReader(sessions)
        replica = Replica(self.features, config, 0 if shards is None else len(shards))
        self.live = ModelVariant(log, replica, now_ms, first, traces)
        serve = config.serve
        spool = DiskSpool(Path(config.state) / "kept", log.id, _KEPT_ON_DISK)
        is_full = SpaceReader(config.state).is_full
        self.writer = LogWriter(log, spool=spool, is_full=is_full)
        self.run_folder = Path(config.state) / "run"
        self.quotas = Quotas(config)
        self._proofs = Proofs(config, SecretFile(self.run_folder / TOKEN_KEYS))
        prove, wait_s = self._proofs.prove, self.quotas.event
        kinds = self.features.schema.kinds or ENGAGEMENT_KINDS
        if self.features.schema.shown_by == "impression":
            kinds = (*kinds, SEEN)
        has_lists = self.features.schema.shown_by != "click"
        validator = EventValidator(
            config, self._duration_ms, prove=prove, wait_s=wait_s, kinds=kinds, has_lists=has_lists
        )
        self.click_lists = ClickLists(self.pipeline)
        self.lists = ItemLists(self.pipeline, shards, now_ms)
        self.write_api = WriteApi(
            config, self.writer, sessions, self.live.progress.freshness, validator, now_ms, traces, is_full,
            self.features.schema, None if has_lists else self.with_lists,
        )  # fmt: skip
        self.variants = ModelVariants(log, self.live, now_ms, first)
        self.canary = CanaryRouter(self.variants)
        deadline_s, queue_s = serve.deadline_ms / 1000, serve.queue_ms / 1000
        self.admission = Admission(deadline_s, queue_s, serve.max_ongoing)
        self._lock = FairLock()  # of the thread's computations
        self._click_list_lock = asyncio.Lock()  # so that requests wait for one click's list at most
        self._needs_ms = _NEEDS_MS | {SHORT: serve.rank_ms}
        self.session_misses = 0
        self._degraded = LogThrottle()

    async def start(self) -> None:
        """Starts the threads. The service is ready once it has caught up with the log."""
        if not self._proofs.can_sign:
            file = self.run_folder / TOKEN_KEYS
            _LOG.warning("answers have no tokens: engagements can't be proven", extra={"no": file})
        self.writer.start()
        self.variants.start(asyncio.get_running_loop())
        self.live.thread.start(asyncio.get_running_loop())

    async def caught_up(self, wait_s: float) -> None:
        """Waits until the service has caught up with the log, ``wait_s`` at the longest; then calls the
        retrieval shards once, which takes some seconds at most."""
        await self.live.thread.caught_up(wait_s)
        if self.shards is not None:
            await self.shards.connect()

    async def stop(self) -> None:
        """Writes pending records and ends the threads."""
        self.write_api.close()
        await asyncio.to_thread(self.live.thread.stop)
        await self.variants.stop()
        await asyncio.to_thread(self.writer.close)
        await self.sessions.close()

    @property
    def replica(self) -> Replica:
        """State of the live variant."""
        return self.live.replica

    @property
    def pipeline(self) -> Pipeline:
        """Pipeline of the live variant."""
        return self.live.pipeline

    @property
    def ready(self) -> bool:
        return not self.unready

    @property
    def unready(self) -> str:
        """Reason not to send requests here; empty if ready. The replica may answer all the same."""
        if reason := self.failure or self.live.thread.away:
            return reason
        return "" if self.live.followers.ready else _STARTING

    @property
    def stale(self) -> bool:
        """Whether examples have waited, or the log has been away, for ``serve.stale_s``."""
        away = self.live.thread.away_s > self.config.serve.stale_s
        return self.live.stale or (away and self.replica.step > 0)

    @property
    def failure(self) -> str:
        """Reason why the replica stopped following the log; empty while it follows."""
        return self.live.thread.failure

    def access_control(
        self,
        admin_key: Callable[[], str],
        scopes: Iterable[tuple[str, str]] = (),
        health: Collection[str] = (),
    ) -> AccessControl:
        """Control of the callers of this replica's API, with the keys that it has read. ``scopes``,
        ``health``: of routes that plug-ins add."""
        source_key, door_key = (SecretFile(self.run_folder / n) for n in (SOURCE_KEY, DOOR_KEY))
        keyring, quotas = self.live.control.keyring, self.quotas
        return AccessControl(
            self.config, keyring, quotas, admin_key, source_key, door_key, self.now_ms, scopes, health
        )

    def check_list(self, caller: Caller, user_id: Id) -> None:
        """Raises Denied where the caller may not have a list of the user, or not now."""
        caller.check_user(user_id)
        if wait_s := self.quotas.list(caller, user_id, self.now_ms() / 1000):
            message = "the user asks for more lists than access.user_lists allows"
            raise Denied(429, "quota", message, wait_s)

    def check_preference(self, caller: Caller, user_id: Id) -> None:
        """Raises Denied where the caller may not set a preference of the user, or not now."""
        caller.check_user(user_id)
        if wait_s := self.quotas.event(caller, user_id, self.now_ms() / 1000):
            message = "the user sends more events than access.user_events allows"
            raise Denied(429, "quota", message, wait_s)

    def token_of(self, answer: Answer, request: Request, caller: Caller = ANONYMOUS) -> str:
        """Impression token of an answer to a caller's request."""
        is_server = bool(caller.key_id) and caller.user_id is None  # whose filters no viewer chooses
        narrowed = not is_server and self._is_narrow(answer, request)
        shown, user_id = [item.item_id for item in answer.items], answer.impression.user_id
        policy, now_ms = answer.stamp.policy, self.now_ms()
        return self._proofs.mint(answer.request_id, user_id, shown, policy, now_ms, narrowed)

    def _is_narrow(self, answer: Answer, request: Request) -> bool:
        """Whether the viewer's side chose what its list holds: it gave candidates, excluded more items than a
        page that is read on, left few to choose from, or asked for many of them."""
        removed = answer.removed
        length = self.live.control.policies.lengths.get(request.surface, LENGTH)
        excluded = removed.get(EXCLUDED, 0) + removed.get("hidden", 0)
        share = self.config.bounds.free_share
        if request.candidate_ids is not None or (share and excluded > _READ_ON * length):
            return True
        living = self.replica.catalogue.living.count
        left, least = living - sum(removed.get(name, 0) for name in CHOSEN), share * living
        conditions = list((request.filters or {}).values())
        if len(conditions) == 1 and isinstance(conditions[0], str | int):  # a page of the app's
            least = min(least, _PAGE)
        return left < least or request.n > max(length, left / _OF_EACH)

    async def recommend(
        self, request: Request, request_id: str = "", logged: bool = True, caller: Caller = ANONYMOUS
    ) -> Answer:
        """Answers a request and, if ``logged``, logs the impression. ``request_id``: a unique id of the
        caller's. Raises Unavailable before the replica has caught up."""
        if not self.live.followers.ready:
            raise Unavailable(_STARTING)
        began_s, arrived_s = time.monotonic(), _arrived_s()
        session, read = await self._read_session(request.user_id)
        waited_s, is_plain = time.monotonic() - began_s, request.plain or session.plain
        request_id = request_id or (PLAIN_LIST if is_plain else "") + uuid.uuid4().hex
        token = LOG_CONTEXT.set({"request_id": request_id})
        try:
            trace = None
            if self.traces:
                trace = self.traces.request(request_id, time.monotonic() - arrived_s)
            mark = trace.mark if trace else unmarked
            mark(SESSION_READ)
            answer = await self._answer(
                request, session, arrived_s, waited_s, request_id, mark, viewer_known=read
            )
            if not read:
                answer = with_degraded(answer, SESSION)
            if self.stale:
                answer = with_degraded(answer, STALE)
            if trace:
                mark(ANSWER)
                trace.answered(answer)
            if self.config.serve.rendered and caller.key_id and caller.user_id is None:
                answer.impression.shown, answer.impression.source = True, caller.source
            if logged:
                self._log_impression(answer, trace)
            if answer.degraded:
                self._log_degraded(answer)
            return answer
        finally:
            LOG_CONTEXT.reset(token)

    async def recommend_unlogged(self, request: Request, session: Session, counts: bool = True) -> Answer:
        """Answers from a given session, without an impression. ``counts``: whether the list counts in metrics
        of lists and waiting times. Raises Unavailable before the replica has caught up."""
        if not self.live.followers.ready:
            raise Unavailable(_STARTING)
        return await self._answer(request, session, _arrived_s(), 0.0, counts=counts)

    async def _answer(
        self, request: Request, session: Session, arrived_s: float, waited_s: float,
        request_id: str = "", mark: Mark = unmarked, counts: bool = True, viewer_known: bool = True,
    ) -> Answer:  # fmt: skip
        """Answers from the version current at the time of ranking, within the rest of the request's time.

        Retrieval shards are asked before, and again if the version changed meanwhile. ``waited_s``: I/O wait
        so far, which occupied no thread; admission gets it once, with the wait for shards added.
        """
        deadline_ms = self.config.serve.deadline_ms

        def left_ms() -> float:
            return deadline_ms - 1000 * (time.monotonic() - arrived_s)

        deadline = TimeLeftDeadline(left_ms, self._needs_ms)
        request_id = request_id or uuid.uuid4().hex
        query: Query | None = None
        pipeline = self.pipeline
        for attempts_left in range(_ATTEMPTS - 1, -1, -1):
            await self._lock.acquire()
            try:
                if query is None:  # once: retrieval and ranking use the same user features
                    self.canary.update(self.live.control.canary, self.live.control.arms)
                    policy = self.live.control.policies.resolve(request.user_id, request.surface)
                    variant = self.canary.pipeline(request.user_id, policy.line, counts)
                    pipeline = variant or self.pipeline
                    query = Query(
                        request, session, policy, self.now_ms(), request_id, deadline,
                        viewer_known=viewer_known, mark=mark,
                    )  # fmt: skip
                plan = pipeline.plan(query) if attempts_left else None
                if plan is None or self.shards is None:
                    if counts:
                        self.admission.observe_io_wait(waited_s, time.monotonic())
                    mark(WAIT)
                    return pipeline.recommend(query)
            finally:
                self._lock.release_later()
            began_s = time.monotonic()
            timeout_s = (left_ms() - self.config.serve.rank_ms) / 1000
            query = replace(query, shard_results=await self.shards.search(plan, timeout_s))
            waited_s += time.monotonic() - began_s
        raise AssertionError("the last attempt answers")

    async def session_view(self, user_id: Id) -> dict[str, Any]:
        """Session of a user, for display. Raises Unavailable without a store."""
        session = await self.session_of(user_id)
        policy = self.live.control.policies.resolve(user_id)
        learned = self.live.progress.freshness.learned_views
        return view_of(session, self.replica.catalogue, policy.config.weights, learned)

    async def session_of(self, user_id: Id) -> Session:
        """Session of a user. Raises Unavailable without a store."""
        session, read = await self._read_session(user_id, MAX_WAIT_S)
        if not read:
            raise Unavailable("the session store doesn't answer")
        return session

    async def _read_session(self, user_id: Id, slice_s: float = SLICE_S) -> tuple[Session, bool]:
        """Session of a user, and whether the store was read; a new user's session if it wasn't."""
        seen = self.config.sessions.seen
        try:
            blob = await self.sessions.get(user_id, slice_s)
            if blob is not None:
                return Session.unpack(blob, self.features, seen), True
        except (StoreUnavailable, msgspec.MsgspecError, ValueError):
            self.session_misses += 1
            return Session(user_id, self.features, seen), False
        return Session(user_id, self.features, seen), True

    async def with_lists(self, engagements: Sequence[Engagement], guessed: bool) -> list[Event]:
        """Engagements of an app without lists, those that can be learned after a list that they chose from
        (serving/click_lists.py, also on ``guessed``)."""
        until_s, events = time.monotonic() + _CLICKS_S, list[Event]()
        for event in engagements:
            events += await self._listed(event, guessed, until_s)
        return events

    async def _listed(self, click: Engagement, guessed: bool, until_s: float) -> tuple[Event, ...]:
        if not self.click_lists.needs_list(click):
            return (click,)
        if time.monotonic() >= until_s:
            return self.click_lists.leave_out(click, BUSY)
        session, read = await self._read_session(click.user_id)
        if not (read and self.live.followers.ready):
            return self.click_lists.leave_out(click, AWAY)
        async with self._click_list_lock:
            await self._lock.acquire()
            try:
                return self.click_lists.listed(click, session, self.now_ms(), guessed)
            except Exception:  # the click counts all the same
                self._degraded.exception(_LOG, "no list can be made of a click", time.monotonic())
                return self.click_lists.leave_out(click, FAILED)
            finally:
                self._lock.release_later()

    def _log_impression(self, answer: Answer, trace: RequestTrace | None) -> None:
        record = record_of(answer.impression, self.config.log.partitions)
        on_commit = partial(trace.appended, EVENTS, record.partition) if trace else None
        self.writer.impression(EVENTS, record, on_commit)

    def _log_degraded(self, answer: Answer) -> None:
        """Logs each skipped stage at intervals, with the number of answers and one of them."""
        for stage in answer.degraded:
            if count := self._degraded.due(stage, time.monotonic()):
                level = logging.INFO if stage == "model" else logging.WARNING
                stamp = answer.stamp
                extra = {"stage": stage, "answers": count, "line": stamp.line}
                extra |= {"epoch": stamp.epoch, "step": stamp.step}
                _LOG.log(level, "answers skip a stage", extra=extra)

    def _duration_ms(self, item_id: Id) -> float | None:
        catalogue = self.replica.catalogue
        index = catalogue.index_of(item_id)
        duration = None if index is None else catalogue.fields[index].get("duration_ms")
        if isinstance(duration, int | float) and not isinstance(duration, bool) and duration > 0:
            return float(duration)
        return None

    def status(self) -> dict[str, Any]:
        """State shown by the page and by ``recsys status``."""
        live, replica, progress = self.live, self.replica, self.live.progress
        line, epoch, step = replica.version
        return {
            "version": {"line": line, "epoch": epoch, "step": step},
            "features": {"logged": self.features.digest, "read": replica.model.features.digest},
            "time_ms": self.now_ms(),
            "age_ms": self.now_ms() - replica.step_time_ms if replica.step_time_ms else None,
            "items": replica.catalogue.living.count, "ready": self.ready,
            "events_per_s": round(progress.events.per_s(), 2),
            "examples_per_s": round(progress.examples.per_s(), 2),
            **progress.freshness.percentiles(self.timer_ms()), "lag": live.followers.lag,
            "gaps": live.followers.weights.line.gaps, "impressions_dropped": self.writer.dropped,
            "canary": self._canary_status(), "arms": self._arms_status(),
        }  # fmt: skip

    def _canary_status(self) -> dict[str, Any] | None:
        """Candidate that answers a share of the users, if there is one."""
        variant, state = self.canary.variant, self.canary.state
        if variant is None or state is None:
            return None
        return {
            "line": variant.line,
            "share": state.share,
            "step": variant.pipeline.replica.step,
            "ready": variant.followers.ready,
            "answered": self.canary.answered[variant.line],
        }

    def _arms_status(self) -> dict[str, dict[str, Any]]:
        """Model lines that answer arms of experiments, by name."""
        variants = {line: self.variants.get(line) for line in self.live.control.arms}
        return {
            line: {
                "step": 0 if variant is None else variant.pipeline.replica.step,
                "ready": variant is not None and variant.servable,
                "answered": self.canary.answered[line],
            }
            for line, variant in variants.items()
        }


def _arrived_s() -> float:
    """Arrival time of the current request."""
    arrived_s = ARRIVED_S.get()
    return time.monotonic() if arrived_s is None else arrived_s
