"""The service behind the API: one replica's state, its session store, its log; no HTTP, no Ray.

Everything but the log runs in one event loop. The log is written by a thread of its own, and read by another
that hands small batches over; they are applied between requests.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from recsys.blueprint import feature_set
from recsys.config import Config
from recsys.events import Engagement, Item, Rejected, User, encode, parse
from recsys.hashing import Id, partition_of
from recsys.log import Append, Log, LogUnavailable
from recsys.records import CONTROL, DELTAS, EVENTS, ITEMS, Erasure, pack
from recsys.session import Session
from serving.impression_writer import ImpressionWriter, Overloaded
from serving.ingest import ACCEPTED, REJECTED, Ingest, Result, Taken, check_storable
from serving.pipeline import Pipeline
from serving.replica import Replica
from serving.request import Answer, Request
from serving.session_store import SessionReader, StoreUnavailable
from serving.session_view import view_of
from serving.state_reader import Batch, StateReader

SESSION_WAIT_S: Final = 0.02
COMMIT_WAIT_S: Final = 5.0
_IDLE_S: Final = 0.02  # how long the reading thread waits for more
_SHUN_S: Final = 0.5  # how long a store that failed is left alone
_FAILURES: Final = 3


class Unavailable(RuntimeError):
    """Not now: try again after ``retry_after_s``."""

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Upserts:
    """Items or users of one call: what to append to a topic, and a result each."""

    topic: str
    records: tuple[Append, ...]
    results: tuple[Result, ...]


class Service:
    """One replica at work. ``start`` and ``stop`` belong to the event loop that the rest is called in."""

    def __init__(
        self,
        config: Config,
        log: Log,
        sessions: SessionReader,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.config, self.log, self.sessions, self.now_ms = config, log, sessions, now_ms
        self.features = feature_set(config)
        self.replica = Replica(self.features, config)
        self.pipeline = Pipeline(self.replica)
        self.reader = StateReader(log, self.replica, config, now_ms)
        self.writer = ImpressionWriter(log)
        self.ingest = Ingest(config, self._duration_ms_of)
        self.failure = ""  # why the reading thread ended, if it did
        self.session_misses = 0
        self._store_failures = 0
        self._shun_until = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="state-reader", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life ---

    async def start(self) -> None:
        """Begins to follow the log. The service is ready when it has caught up."""
        self._loop = asyncio.get_running_loop()
        self.writer.start()
        self._thread.start()

    async def stop(self) -> None:
        """Writes what waits, and ends the threads."""
        self._stopping.set()
        await asyncio.to_thread(self.writer.close)
        await asyncio.to_thread(self._thread.join, 5.0)
        await self.sessions.close()

    @property
    def ready(self) -> bool:
        return self.reader.ready and not self.failure

    def _follow(self) -> None:
        """The reading thread."""
        try:
            self._patiently(lambda: self.reader.catch_up(self._stopping.is_set))
            while not self._stopping.is_set():
                self._patiently(self._follow_once)
        except Exception as error:  # the replica answers on, and says that it is not ready
            self.failure = f"{type(error).__name__}: {error}"
            logging.getLogger(__name__).exception("the replica can't follow the log")

    def _follow_once(self) -> None:
        batch = self.reader.read()
        if batch:
            self._hand_over(batch)
        if not batch.full:
            self.log.wait(DELTAS, _IDLE_S)
            self._stopping.wait(0.002)  # a log in memory doesn't wait

    def _patiently(self, act: Callable[[], None]) -> None:
        """Tries again while the log is away."""
        while not self._stopping.is_set():
            try:
                return act()
            except LogUnavailable as error:
                logging.getLogger(__name__).warning("log is away", extra={"error": str(error)})
                self._stopping.wait(0.5)

    def _hand_over(self, batch: Batch) -> None:
        """Has the event loop apply a batch, and waits until it did: so no more than one waits."""
        assert self._loop is not None
        done: Future[None] = Future()

        def apply() -> None:
            try:
                self.reader.apply(batch)
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(apply)
        while not self._stopping.is_set():
            try:
                return done.result(timeout=0.5)
            except TimeoutError:
                if done.done():
                    raise

    # --- recommend ---

    async def recommend(self, request: Request) -> Answer:
        """Answers, and hands the impression to the writer. Raises Unavailable before it has caught up."""
        if not self.reader.ready:
            raise Unavailable("the replica is still reading the catalogue and the model")
        session, known = await self._session(request.user_id)
        policy = self.reader.policies.resolve(request.user_id)
        request_id = uuid.uuid4().hex
        answer = self.pipeline.recommend(request, session, policy, self.now_ms(), request_id)
        if not known:
            answer = _degraded(answer, "session")
        self._log_impression(answer)
        return answer

    async def session(self, user_id: Id) -> dict[str, Any]:
        """What is known of a user. Raises Unavailable without a store."""
        session, known = await self._session(user_id)
        if not known:
            raise Unavailable("the session store doesn't answer")
        policy = self.reader.policies.resolve(user_id)
        return view_of(session, self.replica.catalogue, policy.config.weights)

    async def _session(self, user_id: Id) -> tuple[Session, bool]:
        """The user's session, and whether the store said so: without it, it is that of a new user."""
        seen = self.config.sessions.seen
        try:
            blob = await self._read_session(user_id)
            if blob is None:
                return Session(user_id, self.features, seen), True
            session = Session.unpack(blob, self.features, seen)
        except (StoreUnavailable, msgspec.MsgspecError, ValueError):
            self.session_misses += 1
            return Session(user_id, self.features, seen), False
        self.reader.freshness.session_read(user_id, session.offset, self.now_ms())
        return session, True

    async def _read_session(self, user_id: Id) -> bytes | None:
        """The packed session, within the time that a request has for it. A store that failed several times
        in a row is left alone for a moment, so that not every request waits."""
        if time.monotonic() < self._shun_until:
            raise StoreUnavailable("it failed a moment ago")
        task = asyncio.ensure_future(self.sessions.get(user_id))
        await asyncio.wait({task}, timeout=SESSION_WAIT_S)
        for _ in range(4):  # the answer may be there, and only this loop was late to take it
            if task.done():
                break
            await asyncio.sleep(0)
        if not task.done():
            task.add_done_callback(lambda late: late.cancelled() or late.exception())
        elif task.exception() is None:
            self._store_failures = 0
            return task.result()
        self._store_failures += 1
        if self._store_failures >= _FAILURES:
            self._shun_until = time.monotonic() + _SHUN_S
        raise StoreUnavailable("no answer in time")

    def _log_impression(self, answer: Answer) -> None:
        impression = answer.impression
        partition = partition_of(impression.user_id, self.config.log.partitions)
        key = str(impression.user_id).encode()
        self.writer.impression(EVENTS, Append(partition, key, encode(impression)))

    def _duration_ms_of(self, item_id: Id) -> float | None:
        index = self.replica.catalogue.index_of(item_id)
        duration = (
            None if index is None else self.replica.catalogue.fields[index].get("duration_ms")
        )
        usable = isinstance(duration, int | float) and not isinstance(duration, bool)
        return float(duration) if usable and duration > 0 else None

    # --- what comes in ---

    async def take(self, raw_events: Sequence[object]) -> Taken:
        """Takes a batch of events; when it returns, what was accepted is committed. Raises Unavailable."""
        taken = self.ingest.take(raw_events, self.now_ms())
        offsets = await self._commit(EVENTS, taken.records)
        self.ingest.keep(taken)
        now_ms = self.now_ms()
        for event, offset in zip(taken.engagements, offsets, strict=True):
            if event.kind == "view":
                about = (event.user_id, event.request_id, event.item_id)
                self.reader.freshness.acknowledged(*about, offset, now_ms)
        return taken

    async def put_items(self, items: Sequence[Mapping[str, Any]]) -> tuple[Result, ...]:
        """Publishes or changes items; those that are refused don't keep back the others."""
        raws = [{"type": "item", "time_ms": self.now_ms()} | dict(item) for item in items]
        upserts = self._read_upserts(ITEMS, raws)
        await self._commit(upserts.topic, upserts.records)
        return upserts.results

    async def put_users(self, users: Sequence[Mapping[str, Any]]) -> tuple[Result, ...]:
        """Sets users' profiles."""
        raws = [{"type": "user", "time_ms": self.now_ms()} | dict(user) for user in users]
        upserts = self._read_upserts(EVENTS, raws)
        await self._commit(upserts.topic, upserts.records)
        return upserts.results

    async def remove_item(self, item_id: Id) -> None:
        item = Item(time_ms=self.now_ms(), item_id=item_id, removed=True)
        await self._commit(ITEMS, [self._record(item)])

    async def erase_user(self, user_id: Id) -> None:
        """Asks all folds to forget a user: a tombstone among the user's events, and an erasure."""
        now_ms = self.now_ms()
        tombstone = User(time_ms=now_ms, user_id=user_id, removed=True)
        await self._commit(EVENTS, [self._record(tombstone)])
        erasure = Erasure(user_id=user_id, time_ms=now_ms)
        await self._commit(CONTROL, [Append(0, b"", pack(erasure))])

    def _read_upserts(self, topic: str, raws: Sequence[Mapping[str, Any]]) -> Upserts:
        records, results = [], []
        for index, raw in enumerate(raws):
            try:
                event = parse(dict(raw), now_ms=self.now_ms())
                check_storable(event, raw)
            except Rejected as error:
                told = (error.field, error.value, error.expected)
                results.append(Result(index, REJECTED, told))
                continue
            assert isinstance(event, Item | User)
            records.append(self._record(event))
            results.append(Result(index, ACCEPTED))
        return Upserts(topic, tuple(records), tuple(results))

    def _record(self, event: Item | User | Engagement) -> Append:
        if isinstance(event, Item):
            return Append(0, str(event.item_id).encode(), encode(event))
        partition = partition_of(event.user_id, self.config.log.partitions)
        return Append(partition, str(event.user_id).encode(), encode(event))

    async def _commit(self, topic: str, records: Sequence[Append]) -> list[int]:
        if not records:
            return []
        try:
            done = asyncio.wrap_future(self.writer.commit(topic, records))
            return await asyncio.wait_for(done, COMMIT_WAIT_S)
        except (LogUnavailable, Overloaded) as error:
            raise Unavailable(str(error)) from error
        except TimeoutError as error:
            raise Unavailable(
                f"the log took none of it within {COMMIT_WAIT_S:g} s: send it again, repeats are dropped"
            ) from error

    # --- how it is ---

    def status(self) -> dict[str, Any]:
        """What the page and ``recsys status`` show."""
        reader, replica = self.reader, self.replica
        line, epoch, step = replica.version
        fresh = reader.freshness
        return {
            "version": {"line": line, "epoch": epoch, "step": step},
            "age_ms": self.now_ms() - replica.step_time_ms if replica.step_time_ms else None,
            "items": int(replica.catalogue.alive.sum()),
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
        }


def _degraded(answer: Answer, stage: str) -> Answer:
    """The answer, with a skipped stage named in it and in its impression."""
    stages = (*answer.degraded, stage)
    impression = msgspec.structs.replace(answer.impression, degraded=list(stages))
    return replace(answer, degraded=stages, impression=impression)


def admin_key_file(config: Config) -> Path:
    """Where ``recsys up`` puts the admin key."""
    return Path(config.state) / "run" / "admin.key"
