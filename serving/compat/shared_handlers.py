"""What the routes of both have in common: bodies, the key, and the ways into the log. One desk a replica."""

import asyncio
import hmac
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec
from fastapi import HTTPException, Request, Response

from recsys.events.dedupe import RecentIds
from recsys.events.event_types import Rejected
from recsys.events.hashing import Id
from recsys.events.records import ITEMS
from recsys.log.protocol import LogUnavailable
from serving import request as asked
from serving.compat.json_stream import values_in
from serving.compat.values import MOST_EVENTS
from serving.compat.write_backs import WriteBacks
from serving.ingestion.event_validation import ACCEPTED, DUPLICATE, REJECTED, Result
from serving.ingestion.write_api import Unavailable
from serving.service import Service

_APPLIED_S: Final = (
    2.0  # how long a change of an item is waited for, until this replica answers with it
)
_LOOK_S: Final = 0.005
_RANKINGS: Final = 100_000  # newest ids of rankings that are remembered, of about 100 bytes each
KEYS: Final = ("x-api-key", "x-admin-key")


class Tally(Protocol):
    """Where events and answers are counted."""

    def took(self, status: str, count: int) -> None: ...

    def left_out(self, stages: Sequence[str]) -> None: ...

    def ranked_again(self) -> None: ...


class SharedHandlers:
    """Reads bodies, lets writers in, and hands on what they say. ``admin_key``: as in build_app."""

    def __init__(self, service: Service, tally: Tally, admin_key: Callable[[], str]) -> None:
        self.service, self.tally, self._admin_key = service, tally, admin_key
        self.config = service.config
        self.write_backs = WriteBacks()
        self._rankings = RecentIds(_RANKINGS)
        self._items = asyncio.Lock()  # a change of an item reads what it has, and writes it whole

    def let_in(self, request: Request) -> None:
        """Raises 401 or 403 for who may not write items and users, and as ``refuse_strangers``."""
        refuse_strangers(request)
        given = next((request.headers[name] for name in KEYS if name in request.headers), None)
        if given is None:
            raise HTTPException(401, "the header X-API-Key is missing: see state/run/admin.key")
        expected = self._admin_key().encode()
        if not expected or not hmac.compare_digest(given.encode(), expected):
            raise HTTPException(403, "the header X-API-Key is wrong: see state/run/admin.key")

    async def body(self, request: Request) -> Any:
        """The decoded JSON, whatever type its sender gives it: curl calls it a form. Raises 403 as
        ``refuse_strangers``; 400, 408 and 413 as all routes."""
        refuse_strangers(request)
        return await request.json()

    async def events(self, request: Request) -> Any:
        """As ``body``, and a list where values follow one another. What isn't JSON counts as one event that
        was rejected."""
        refuse_strangers(request)
        body = await request.body()
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            with self.reading(1):
                return values_in(body, MOST_EVENTS)

    @contextmanager
    def reading(self, events: int) -> Iterator[None]:
        """Counts the events of a body, of which nothing is taken where one can't be."""
        try:
            yield
        except Rejected:
            self.tally.took(REJECTED, events)
            raise

    async def engage(self, raw_events: Sequence[Mapping[str, Any]]) -> int:
        """Takes engagements; how many were new. Raises Rejected for the first that can't be taken: the others
        are."""
        taken = await self.service.write_api.take(raw_events, foreign=True)
        for status in (ACCEPTED, DUPLICATE, REJECTED):
            self.tally.took(status, taken.count(status))
        _raise_first(taken.results)
        return taken.count(ACCEPTED)

    async def put_items(self, items: Sequence[dict[str, Any]]) -> None:
        """Publishes whole items. Returns once this replica answers with them: who asks next finds them."""
        async with self._items:
            await self._put_items(items)

    async def change_items(
        self, made: Callable[[Callable[[Id], Mapping[str, Any] | None]], Sequence[dict[str, Any]]]
    ) -> None:
        """As ``put_items``, with what ``made`` makes; it may ask for the fields that a living item has (None:
        there is none), and finds in them what stood on the log when it was asked, whoever wrote it. Raises
        Unavailable where this replica doesn't get so far."""
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
            await self._put_items(made(self.fields_of))

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

    async def rank(self, wanted: asked.Request, request_id: str) -> asked.Answer:
        """Answers under the id of a client's ranking, and where one of that id was answered here, under a new
        one: the joiner would drop its impression as a repeat."""
        if not self._rankings.add(request_id):
            self.tally.ranked_again()
            return await self.service.recommend(wanted)
        try:
            return await self.service.recommend(wanted, request_id)
        except BaseException:  # who hears nothing asks again, by the same id
            self._rankings.drop(request_id)
            raise

    def fields_of(self, item_id: Id) -> Mapping[str, Any] | None:
        """The fields of an item that may be recommended; None for others."""
        catalogue = self.service.replica.catalogue
        index = catalogue.index_of(item_id)
        return None if index is None or not catalogue.alive[index] else catalogue.fields[index]

    async def _applied(self, end: int) -> bool:
        """Waits until this replica answers with the items before an offset; whether it does."""
        until_s = time.monotonic() + _APPLIED_S
        while self.service.reader.items_applied < end and time.monotonic() < until_s:
            await asyncio.sleep(_LOOK_S)
        return self.service.reader.items_applied >= end


def refuse_strangers(request: Request) -> None:
    """Raises 403 where a browser says that a page of another origin asks: it may do so unasked. An image on
    a page of another port comes without an Origin, and from the same site: that isn't ours yet."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "")
    strange = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if strange or site not in ("", "same-origin", "none"):
        whose = f"of {origin}" if origin else "of another origin"
        raise HTTPException(403, f"a page {whose} asks, expected a client or a page of ours")


def _raise_first(results: Sequence[Result]) -> None:
    refused = [result for result in results if result.error is not None]
    if refused:
        field, value, expected = refused[0].error or ("", "", "")
        raise PartlyRejected(f"[{refused[0].index}].{field}", value, expected, len(refused), len(results))


class PartlyRejected(Exception):
    """Some of what was sent isn't taken; of the first, field, value and what was expected."""

    def __init__(self, field: str, value: str, expected: str, refused: int, of: int) -> None:
        self.detail = {"field": field, "value": value, "expected": expected}
        super().__init__(f"{refused} of {of} are refused, the others are taken")


def refusal(error: Rejected | PartlyRejected) -> Response:
    """400, as Gorse and Metarank answer what they can't read."""
    if isinstance(error, Rejected):
        detail = {"field": error.field, "value": error.value, "expected": error.expected}
        return json({"error": "nothing of it is taken", "details": [detail]}, 400)
    return json({"error": str(error), "details": [error.detail]}, 400)


def json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def instead(what: str, to_do: str) -> Response:
    """501, for what has no counterpart."""
    return json({"error": f"{what} has no counterpart here: {to_do}", "details": []}, 501)
