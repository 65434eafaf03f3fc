"""Shared by the routes of Gorse and Metarank: bodies, and writes to the log."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, HTTPException, Request, Response

from plugins.gorse_and_metarank.unpersonalized import Unsupported
from plugins.gorse_and_metarank.values import MAX_EVENTS, parse_json_sequence
from recsys.events.dedupe import RecentIds
from recsys.events.event_types import Rejected
from recsys.events.hashing import Id
from recsys.events.records import ITEMS
from recsys.log.protocol import LogUnavailable
from serving import request as values
from serving.access.caller import Caller
from serving.http.api_models import ProblemOut
from serving.http.serving_metrics import ServingMetrics
from serving.http.strict_json import DECODE_ERRORS, StrictRoute, decode, json_response
from serving.ingestion.event_validation import ACCEPTED, REJECTED, FieldError, Result
from serving.ingestion.write_api import OverQuota
from serving.problem import Unavailable, problem
from serving.service import Service

_APPLIED_S: Final = 2.0  # wait until this replica answers with a changed item
_POLL_S: Final = 0.005
_RANKINGS: Final = 100_000  # newest ids of rankings that are remembered, of about 100 bytes each
_WRITE_BACKS: Final = 1_000  # pending at a time
_LOG: Final = logging.getLogger(__name__)
# Responses of a dialect's routes, besides those of all routes.
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ProblemOut, "description": "Not JSON, or a value is wrong"},
    404: {"model": ProblemOut, "description": "No such item or user"},
    501: {"model": ProblemOut, "description": "Has no counterpart here"},
}
Fields = Mapping[str, Any]
FieldsOf = Callable[[Id], Fields | None]


class SharedHandlers:
    """Reads bodies, and passes writes on; one per replica."""

    def __init__(self, service: Service, metrics: ServingMetrics) -> None:
        self.service, self.metrics = service, metrics
        self.config = service.config
        self.write_backs = WriteBacks()
        self._rankings = RecentIds(_RANKINGS)
        self._items = asyncio.Lock()  # a change of an item reads its fields and writes them whole

    async def body(self, request: Request) -> Any:
        """Decoded JSON of any content type: curl calls it a form."""
        return await request.json()

    async def events(self, request: Request) -> Any:
        """As ``body``; several values become a list. A body that isn't JSON is one rejected event."""
        body = await request.body()
        try:
            return decode(body)
        except DECODE_ERRORS:
            with self.counting_rejected(1):
                return parse_json_sequence(body, MAX_EVENTS)

    @contextmanager
    def counting_rejected(self, events: int) -> Iterator[None]:
        """Counts the events of a body that is rejected whole."""
        try:
            yield
        except Rejected:
            self.metrics.count_events(REJECTED, events)
            raise

    async def engage(self, raw_events: Sequence[Mapping[str, Any]], caller: Caller) -> int:
        """Commits engagements; returns how many were new. Raises PartlyRejected if any was rejected."""
        batch = await self.service.write_api.append_events(raw_events, caller, foreign=True)
        self.metrics.count_batch(batch)
        OverQuota.check(batch)
        _raise_first(batch.results)
        return batch.count(ACCEPTED)

    async def put_items(self, items: Sequence[dict[str, Any]]) -> None:
        """Publishes whole items; returns once this replica answers with them."""
        async with self._items:
            await self._put_items(items)

    async def change_items(self, change: Callable[[], Sequence[dict[str, Any]]]) -> None:
        """As ``put_items``, with items that ``change`` makes from all fields that are on the log now, whoever
        wrote them. Raises Unavailable if this replica doesn't catch up."""
        async with self._items:
            try:
                end = await asyncio.to_thread(self.service.log.end, ITEMS, 0)
            except LogUnavailable as error:
                raise Unavailable(str(error)) from error
            if not await self._applied(end):
                raise Unavailable(
                    f"this replica is behind the changes of items by more than {_APPLIED_S:g} s: nothing "
                    "is changed, send it again"
                )
            await self._put_items(change())

    async def _put_items(self, items: Sequence[dict[str, Any]]) -> None:
        results = await self.service.write_api.put_items(items)
        await self._applied(self.service.write_api.items_end)
        _raise_first(results)

    async def remove_item(self, item_id: Id) -> None:
        async with self._items:
            await self.service.write_api.remove_item(item_id)
            await self._applied(self.service.write_api.items_end)

    async def put_users(self, users: Sequence[Mapping[str, Any]]) -> None:
        _raise_first(await self.service.write_api.put_users(users))

    async def rank(self, request: values.Request, request_id: str, caller: Caller) -> values.Answer:
        """Answers with a client's ranking id as request id; with a new one if this replica answered that id
        before, because the joiner would drop the impression as a repeat."""
        if not self._rankings.add(request_id):
            self.metrics.repeated.inc()
            return await self.service.recommend(request, caller=caller)
        try:
            return await self.service.recommend(request, request_id, caller=caller)
        except BaseException:  # the client retries with the same id
            self._rankings.discard(request_id)
            raise

    def fields_of(self, item_id: Id) -> Fields | None:
        """Fields of an item that may be recommended; None for others."""
        catalogue = self.service.replica.catalogue
        index = catalogue.index_of(item_id)
        return None if index is None or not catalogue.alive[index] else catalogue.fields[index]

    def living_fields(self, item_id: Id) -> Fields:
        """As ``fields_of``; raises 404 instead of None."""
        fields = self.fields_of(item_id)
        if fields is None:
            raise HTTPException(404, f"there is no item {item_id!r} that may be recommended")
        return fields

    async def _applied(self, end: int) -> bool:
        """Waits until this replica answers with all items before an offset; returns whether it does."""
        until_s = time.monotonic() + _APPLIED_S
        while self.service.live.followers.items.applied < end and time.monotonic() < until_s:
            await asyncio.sleep(_POLL_S)
        return self.service.live.followers.items.applied >= end


class WriteBacks:
    """Delayed engagements, for Gorse's ``write-back-delay``. In memory: a killed process loses them,
    ``close`` writes them early. Belongs to one event loop."""

    def __init__(self, most: int = _WRITE_BACKS) -> None:
        self._most = most
        self._closing = asyncio.Event()
        self._pending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._pending)

    def full(self) -> bool:
        return len(self._pending) >= self._most

    def schedule(
        self, delay_s: float, write: Callable[[], Awaitable[None]], on_lost: Callable[[], None]
    ) -> None:
        """Calls ``write`` after the delay, and ``on_lost`` if it raises Unavailable."""
        task = asyncio.get_running_loop().create_task(self._wait(delay_s, write, on_lost))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def close(self) -> None:
        """Writes everything pending now."""
        self._closing.set()
        await asyncio.gather(*self._pending)

    async def _wait(
        self, delay_s: float, write: Callable[[], Awaitable[None]], on_lost: Callable[[], None]
    ) -> None:
        with suppress(TimeoutError):  # it is due then
            await asyncio.wait_for(self._closing.wait(), delay_s)
        try:
            await write()
        except Unavailable as error:
            on_lost()
            _LOG.warning("a write-back is lost", extra={"error": str(error)})


class DialectRoute(StrictRoute):
    """Route that answers 400 for a body that can't be parsed, and 501 for what has no counterpart."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            try:
                return await handle(request)
            except Rejected as error:
                return problem("nothing of it is taken", 400, [FieldError.of(error)])
            except PartlyRejected as error:
                return problem(str(error), 400, [error.detail])
            except Unsupported as error:
                return problem(str(error), 501)

        return handle_errors


class PartlyRejected(Exception):
    """Some records of a body were rejected; ``detail``: of the first."""

    def __init__(self, detail: FieldError, rejected: int, total: int) -> None:
        self.detail = detail
        super().__init__(f"{rejected} of {total} are refused, the others are taken")


def _raise_first(results: Sequence[Result]) -> None:
    rejected = [(r.index, r.error) for r in results if r.error is not None]
    if rejected:
        index, error = rejected[0]
        first = FieldError(f"[{index}].{error.field}", error.value, error.expected)
        raise PartlyRejected(first, len(rejected), len(results))


def add_unsupported(router: APIRouter, routes: Iterable[tuple[str, str, str, str]]) -> None:
    """Adds routes that have no counterpart: (method, path, what has none, alternative)."""
    for method, path, what, alternative in routes:
        endpoint = partial(unsupported_response, what, alternative)
        router.add_api_route(path, endpoint, methods=[method], status_code=501, summary=what)


def unsupported_response(what: str, alternative: str) -> Response:
    """Response 501 for a route without a counterpart."""
    message = f"{what} has no counterpart here: {alternative}"
    return json_response({"error": message, "details": []}, 501)
