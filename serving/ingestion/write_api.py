"""What comes in: events of viewers, and changes of items and users; acknowledged once they are committed."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from recsys.config.system_config import Config
from recsys.events.control_records import Erasure
from recsys.events.event_types import Item, Rejected, User, encode, parse
from recsys.events.hashing import Id, partition_of
from recsys.events.records import CONTROL, EVENTS, ITEMS, pack
from recsys.log.protocol import Append, LogUnavailable
from serving.ingestion.event_validation import (
    ACCEPTED,
    REJECTED,
    EventValidator,
    Result,
    ValidatedBatch,
    check_storable,
)
from serving.ingestion.log_writer import LogWriter, Overloaded
from serving.sessions.session_store import SessionReader, StoreUnavailable
from serving.sessions.session_view import offset_of
from serving.tracing.freshness import Freshness
from serving.tracing.swipe_traces import SwipeTraces

COMMIT_WAIT_S: Final = 5.0
FOLLOW_S: Final = 10.0
_LOOK_S: Final = 0.004


class Unavailable(RuntimeError):
    """Not now: try again after ``retry_after_s``."""

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class WriteApi:
    """Appends what comes from outside, in the event loop. All methods raise Unavailable."""

    def __init__(
        self,
        config: Config,
        writer: LogWriter,
        sessions: SessionReader,
        freshness: Freshness,
        duration_ms_of: Callable[[Id], float | None],
        now_ms: Callable[[], int],
        traces: SwipeTraces | None = None,
    ) -> None:
        self._config, self._writer, self._sessions = config, writer, sessions
        self._traces = traces
        self._freshness, self._now_ms = freshness, now_ms
        self._ingest = EventValidator(config, duration_ms_of)
        self._following: asyncio.Task[None] | None = None
        self.items_end = 0  # the offset of ``items`` after the newest that was committed here

    def close(self) -> None:
        if self._following is not None:
            self._following.cancel()

    async def take(self, raw_events: Sequence[object], foreign: bool = False) -> ValidatedBatch:
        """Takes a batch of events; when it returns, what was accepted is committed. ``foreign``: as in
        EventValidator. Raises Unavailable."""
        began_ns = self._traces.now_ns() if self._traces else 0
        taken = self._ingest.take(raw_events, self._now_ms(), foreign)
        offsets = await self._commit(EVENTS, taken.records)
        self._ingest.keep(taken)
        if self._traces:
            self._traces.engaged(taken.engagements, taken.records, offsets, began_ns)
        now_ms = self._now_ms()
        for event in taken.engagements:
            if event.kind == "view":
                its = event.request_id, event.item_id
                self._freshness.acknowledged(*its, now_ms, event.time_ms)
        if taken.engagements and self._following is None:
            follow = self._follow_to_session(taken.engagements[-1].user_id, offsets[-1])
            self._following = asyncio.create_task(follow)
        return taken

    async def _follow_to_session(self, user_id: Id, offset: int) -> None:
        """Measures how long one event takes from its acknowledgement to its user's session."""
        started = time.perf_counter()
        try:
            while time.perf_counter() - started < FOLLOW_S:
                await asyncio.sleep(_LOOK_S)
                blob = await self._sessions.get(user_id)
                passed_ms = (time.perf_counter() - started) * 1000
                if blob is not None and offset_of(blob) > offset:
                    self._freshness.to_session.add(passed_ms)
                    return
        except (StoreUnavailable, msgspec.MsgspecError):
            pass  # nothing to measure: requests say that they are degraded
        finally:
            self._following = None

    async def put_items(self, items: Sequence[Mapping[str, Any]]) -> tuple[Result, ...]:
        """Publishes or changes items; those that are refused don't keep back the others."""
        raws = [{"type": "item", "time_ms": self._now_ms()} | dict(item) for item in items]
        records, results = self._read_upserts(raws)
        await self._commit_items(records)
        return results

    async def put_users(self, users: Sequence[Mapping[str, Any]]) -> tuple[Result, ...]:
        """Sets users' profiles."""
        raws = [{"type": "user", "time_ms": self._now_ms()} | dict(user) for user in users]
        records, results = self._read_upserts(raws)
        await self._commit(EVENTS, records)
        return results

    async def remove_item(self, item_id: Id) -> None:
        item = Item(time_ms=self._now_ms(), item_id=item_id, removed=True)
        await self._commit_items([self._record(item)])

    async def erase_user(self, user_id: Id) -> None:
        """Asks everybody to forget a user: a tombstone among the user's events, for who folds them, and an
        erasure that says where it stands, for what was written before it. docs/how-to/operations.md says who does
        what, and when."""
        now_ms = self._now_ms()
        tombstone = User(time_ms=now_ms, user_id=user_id, removed=True)
        (offset,) = await self._commit(EVENTS, [self._record(tombstone)])
        erasure = Erasure(user_id=user_id, time_ms=now_ms, offset=offset)
        await self._commit(CONTROL, [Append(0, b"", pack(erasure))])

    def _read_upserts(
        self, raws: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Append], tuple[Result, ...]]:
        """What to append, and a result for each."""
        records: list[Append] = []
        results: list[Result] = []
        for index, raw in enumerate(raws):
            try:
                event = parse(dict(raw), now_ms=self._now_ms())
                check_storable(event, raw)
            except Rejected as error:
                told = (error.field, error.value, error.expected)
                results.append(Result(index, REJECTED, told))
                continue
            assert isinstance(event, Item | User)
            records.append(self._record(event))
            results.append(Result(index, ACCEPTED))
        return records, tuple(results)

    def _record(self, event: Item | User) -> Append:
        if isinstance(event, Item):
            return Append(0, str(event.item_id).encode(), encode(event))
        partition = partition_of(event.user_id, self._config.log.partitions)
        return Append(partition, str(event.user_id).encode(), encode(event))

    async def _commit_items(self, records: Sequence[Append]) -> None:
        offsets = await self._commit(ITEMS, records)
        self.items_end = max([self.items_end, *(offset + 1 for offset in offsets)])

    async def _commit(self, topic: str, records: Sequence[Append]) -> list[int]:
        if not records:
            return []
        try:
            done = asyncio.wrap_future(self._writer.commit(topic, records))
            return await asyncio.wait_for(done, COMMIT_WAIT_S)
        except (LogUnavailable, Overloaded) as error:
            raise Unavailable(str(error)) from error
        except TimeoutError as error:
            raise Unavailable(
                f"the log took none of it within {COMMIT_WAIT_S:g} s: send it again, repeats are dropped"
            ) from error
