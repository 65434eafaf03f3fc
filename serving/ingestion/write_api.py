"""Accepts viewers' events and changes of items and users; acknowledges them once they are committed."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from recsys.clock import timer_of
from recsys.config.system_config import Config
from recsys.events.control_records import Erasure
from recsys.events.event_types import Engagement, Event, Item, Preference, Rejected, User, parse
from recsys.events.field_schema import Schema, check_fields, likely_misspelt
from recsys.events.hashing import Id
from recsys.events.records import CONTROL, EVENTS, ITEMS, pack, record_of
from recsys.log.protocol import Append, LogUnavailable
from serving.access.caller import Caller
from serving.access.quotas import BURST_S
from serving.ingestion import event_validation
from serving.ingestion.event_validation import EventValidator, FieldError, Result, ValidatedBatch
from serving.ingestion.log_writer import LogWriter, Overloaded
from serving.problem import Unavailable
from serving.sessions.session_store import SessionReader, StoreUnavailable
from serving.sessions.session_view import offset_of
from serving.tracing.freshness import Freshness
from serving.tracing.swipe_traces import SwipeTraces

COMMIT_WAIT_S: Final = 5.0
FOLLOW_S: Final = 10.0
_POLL_S: Final = 0.004
WithLists = Callable[[Sequence[Engagement], bool], Awaitable[Sequence[Event]]]
_NO_FIELDS: Final = Schema()
_NO_SPACE_RETRY_S: Final = 30
_ROUNDS: Final = 4  # validations of a batch: others with its events may fail to be committed


class NoSpace(Unavailable):
    """Events are refused until the disk has space again."""

    status = 507


class OverQuota(Unavailable):
    """Events of a batch are over the quota of their user, the others are committed: send the batch again."""

    status = 429

    @staticmethod
    def check(batch: ValidatedBatch) -> None:
        """Raises it for a batch with such events."""
        if over := batch.count(event_validation.RETRY):
            raise OverQuota(
                f"{over} of {len(batch.results)} events are over access.user_events, the others are "
                "committed: send all again, repeats are dropped",
                math.ceil(min(batch.wait_s, BURST_S)),
            )


class WriteApi:
    """Appends clients' writes to the log, in the event loop. All methods raise Unavailable."""

    def __init__(
        self, config: Config, writer: LogWriter, sessions: SessionReader, freshness: Freshness,
        validator: EventValidator, now_ms: Callable[[], int], traces: SwipeTraces | None = None,
        is_full: Callable[[], bool] = lambda: False, schema: Schema = _NO_FIELDS,
        with_lists: WithLists | None = None,
    ) -> None:  # fmt: skip
        """``is_full``: whether the disk has no space for events. ``schema``: of declared fields.
        ``with_lists``: as LiveClicks.with_lists."""
        self._schema, self._with_lists = schema, with_lists
        self._partitions, self.writer, self._sessions = config.log.partitions, writer, sessions
        self._traces, self._is_full = traces, is_full
        self._freshness, self._now_ms, self._timer_ms = freshness, now_ms, timer_of(now_ms)
        self._validator = validator
        self._committing: dict[str, asyncio.Future[None]] = {}  # by dedupe key: done once it ended
        self._following: asyncio.Task[None] | None = None
        self.items_end = 0  # offset of ``items`` after the newest committed here

    def close(self) -> None:
        if self._following is not None:
            self._following.cancel()

    async def append_events(
        self, raw_events: Sequence[object], caller: Caller, foreign: bool = False
    ) -> ValidatedBatch:
        """Validates a batch of events and commits the accepted ones. ``foreign``: as in EventValidator."""
        self._check_space()
        began_ns = self._traces.now_ns() if self._traces else 0
        batch = await self._validated(raw_events, caller, foreign)
        offsets = await self._commit_events(batch, foreign)
        if self._traces:
            self._traces.engaged(batch.engagements, batch.records, offsets, began_ns)
        now_ms, timer_ms = self._now_ms(), self._timer_ms()
        for event in batch.engagements:
            if event.kind == "view":
                view = event.request_id, event.item_id
                self._freshness.acknowledged(*view, timer_ms, timer_ms - now_ms + event.time_ms)
        if batch.engagements and self._following is None:
            follow = self._follow_to_session(batch.engagements[-1].user_id, offsets[-1])
            self._following = asyncio.create_task(follow)
        return batch

    def _check_space(self) -> None:
        if self._is_full():
            raise NoSpace(
                "the disk has no space for events: send them again later. Whoever runs this system makes "
                "room, or raises disk.budget_gb",
                _NO_SPACE_RETRY_S,
            )

    async def _validated(self, raw_events: Sequence[object], caller: Caller, foreign: bool) -> ValidatedBatch:
        """Validates a batch. While another with one of its events is being committed, the outcome is open: it
        waits, and validates again, some times."""
        with suppress(TimeoutError):
            async with asyncio.timeout(COMMIT_WAIT_S):
                for _ in range(_ROUNDS):
                    batch = self._validator.validate(
                        raw_events, self._now_ms(), foreign, caller, self._committing
                    )
                    others = {self._committing[id_] for id_ in batch.ids if id_ in self._committing}
                    if not others:
                        return batch
                    await asyncio.wait(others)
        raise Unavailable("the same events are still being committed: send them again")

    async def _commit_events(self, batch: ValidatedBatch, foreign: bool) -> list[int]:
        """Offsets of the engagements, in order."""
        ended = asyncio.get_running_loop().create_future()
        self._committing |= dict.fromkeys(batch.ids, ended)
        try:
            if self._with_lists is None:
                offsets = await self._commit(EVENTS, batch.records)
            else:
                events = await self._with_lists(batch.engagements, foreign)
                records = [record_of(event, self._partitions) for event in events]
                placed = zip(events, await self._commit(EVENTS, records), strict=True)
                offsets = [offset for event, offset in placed if isinstance(event, Engagement)]
            self._validator.remember(batch)
            return offsets
        finally:
            for id_ in batch.ids:
                del self._committing[id_]
            ended.set_result(None)

    async def _follow_to_session(self, user_id: Id, offset: int) -> None:
        """Measures the time of one event from its acknowledgement to its user's session."""
        began_s = time.perf_counter()
        try:
            while time.perf_counter() - began_s < FOLLOW_S:
                await asyncio.sleep(_POLL_S)
                blob = await self._sessions.get(user_id)
                passed_ms = (time.perf_counter() - began_s) * 1000
                if blob is not None and offset_of(blob) > offset:
                    self._freshness.to_session.add(passed_ms, self._timer_ms())
                    return
        except (StoreUnavailable, msgspec.MsgspecError):
            pass  # nothing to measure: answers list "session" in ``degraded``
        finally:
            self._following = None

    async def put_items(self, items: Sequence[Mapping[str, Any]]) -> tuple[Result, ...]:
        """Publishes or changes items; rejected ones don't hold back the others."""
        records, results = self._validate("item", items)
        await self._commit_items(records)
        return results

    async def put_users(self, users: Sequence[Mapping[str, Any]]) -> tuple[Result, ...]:
        """Sets users' profiles; rejected ones don't hold back the others."""
        records, results = self._validate("user", users)
        await self._commit(EVENTS, records)
        return results

    async def put_preferences(self, preferences: Sequence[Mapping[str, Any]]) -> tuple[Result, ...]:
        """Notes viewers' wishes: they hold from the session's next fold on."""
        self._check_space()
        records, results = self._validate("preference", preferences)
        await self._commit(EVENTS, records)
        return results

    async def remove_item(self, item_id: Id) -> None:
        item = Item(time_ms=self._now_ms(), item_id=item_id, removed=True)
        await self._commit_items([record_of(item, self._partitions)])

    async def erase_user(self, user_id: Id) -> None:
        """Requests the erasure of a user: a tombstone among the user's events, for the folds, and an erasure
        record with the tombstone's offset, for everything written before. See docs/how-to/operations.md."""
        now_ms = self._now_ms()
        tombstone = User(time_ms=now_ms, user_id=user_id, removed=True)
        (offset,) = await self._commit(EVENTS, [record_of(tombstone, self._partitions)])
        erasure = Erasure(user_id=user_id, time_ms=now_ms, offset=offset)
        await self._commit(CONTROL, [Append(0, b"", pack(erasure))])

    def _validate(
        self, kind: str, values: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Append], tuple[Result, ...]]:
        """Records to append, and a result per item or user."""
        records: list[Append] = []
        results: list[Result] = []
        now_ms = self._now_ms()
        for index, value in enumerate(values):
            raw = {"type": kind, "time_ms": now_ms} | dict(value)
            try:
                event = parse(raw, now_ms=now_ms)
                assert isinstance(event, Item | User | Preference)
                event_validation.check_storable(event, raw)
                if not isinstance(event, Preference):
                    check_fields(self._schema, kind, event.fields, "fields")
            except Rejected as error:
                results.append(Result(index, event_validation.REJECTED, FieldError.of(error)))
                continue
            records.append(record_of(event, self._partitions))
            warning = None if isinstance(event, Preference) else self._warning(kind, event.fields)
            results.append(Result(index, event_validation.ACCEPTED, warning=warning))
        return records, tuple(results)

    def _warning(self, kind: str, fields: Mapping[str, Any]) -> FieldError | None:
        """A warning where an undeclared field has nearly the name of a declared one that is missing."""
        declared = tuple(name for name, _ in getattr(self._schema, kind))
        if (names := likely_misspelt(declared, fields)) is None:
            return None
        expected = f"{names[1]}, as declared? A field of another name is content that isn't read"
        return FieldError(f"fields.{names[0]}", str(fields[names[0]])[:200], expected)

    async def _commit_items(self, records: Sequence[Append]) -> None:
        offsets = await self._commit(ITEMS, records)
        self.items_end = max([self.items_end, *(offset + 1 for offset in offsets)])

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
                f"the log committed nothing within {COMMIT_WAIT_S:g} s: send it again, repeats are dropped"
            ) from error
