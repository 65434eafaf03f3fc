"""Gorse's routes that read users and feedback, from the newest records of the log, with the key."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Response

from recsys.events.event_types import Rejected, User
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS
from recsys.log.protocol import LogUnavailable
from serving.compat import gorse
from serving.compat.newest_events import (
    MOST_RECORDS,
    EngagementPage,
    Matches,
    UserRecord,
    read_page,
    read_user,
    read_users,
)
from serving.compat.shared_handlers import SharedHandlers
from serving.http.strict_json import json_response
from serving.ingestion.write_api import Unavailable

MAX_PAGE: Final = 100
MAX_LIST: Final = 1_000  # of a list without pages
Name = Annotated[str, Path(min_length=1, max_length=256)]
N = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
T = TypeVar("T")


def add_reads(router: APIRouter, handlers: SharedHandlers) -> None:
    """Adds the routes."""
    reads = _LogReads(handlers)
    _add_users(router, reads)
    _add_feedback(router, reads)
    _add_pairs(router, reads)


def with_optional_part(
    method: Callable[..., Callable[[Endpoint], Endpoint]], path: str, part: str, **options: Any
) -> Callable[[Endpoint], Endpoint]:
    """Registers a route with and without its last part, and with the slash alone, which clients send too."""

    def register(endpoint: Endpoint) -> Endpoint:
        method(path, **options)(endpoint)
        method(f"{path}/", include_in_schema=False, **options)(endpoint)
        return method(f"{path}/{{{part}}}", **options)(endpoint)

    return register


class _LogReads:
    """Reads the log in a thread, one read at a time: several at once would delay the lists."""

    def __init__(self, handlers: SharedHandlers) -> None:
        self.handlers, self._lock = handlers, asyncio.Lock()
        self.log = handlers.service.log
        self.dependencies = [Depends(handlers.require_key)]

    async def read(self, function: Callable[[], T]) -> T:
        async with self._lock:
            try:
                return await asyncio.to_thread(function)
            except LogUnavailable as error:
                raise Unavailable(str(error)) from error

    def place_of(self, user_id: str) -> tuple[int, bytes]:
        """Partition and key of a user's events."""
        return partition_of(user_id, self.handlers.config.log.partitions), user_id.encode()

    async def of_user(self, user_id: str, matches: Matches) -> EngagementPage:
        partition, key = self.place_of(user_id)
        return await self.read(
            lambda: read_page(self.log, MAX_LIST, matches, partition=partition, key=key)
        )

    def format(self, page: EngagementPage, feedback_type: str | None) -> list[dict[str, Any]]:
        config = self.handlers.config
        return [gorse.format_feedback(e, feedback_type, config) for e in page.engagements]

    def matching(self, feedback_type: str | None, item_id: str | None = None) -> Matches:
        kind = feedback_type and gorse.parse_kind(feedback_type, self.handlers.config)
        return lambda engagement: (
            (kind is None or engagement.kind == kind)
            and (item_id is None or str(engagement.item_id) == item_id)
        )


def _add_users(router: APIRouter, reads: _LogReads) -> None:
    log, service = reads.log, reads.handlers.service

    async def profile(user_id: str, user: UserRecord | None) -> User | None:
        """Profile of a user, empty if only engagements are known. None if a profile was sent but isn't among
        the examined records, or the user is unknown."""
        if user is not None and user.gone:
            return None
        if user is None or not user.certain:
            session = await service.session_of(user_id)
            if session.profile or (user is None and not session.offset):
                return None
        return (user and user.profile) or User(time_ms=0, user_id=user_id)

    @router.get("/api/user/{user_id}", dependencies=reads.dependencies)
    async def get_user(user_id: Name) -> Response:
        """Newest profile of a user, if it is among the newest records of the log."""
        place = reads.place_of(user_id)
        user = await profile(user_id, await reads.read(lambda: read_user(log, *place)))
        if user is None:
            raise HTTPException(
                404,
                f"no profile of {user_id!r} is found: the user is unknown, or the profile is older than the "
                f"newest {MOST_RECORDS:,} records of its partition of the log; POST /api/user sets it anew",
            )
        return json_response(gorse.format_user(user_id, user.fields))

    @router.get("/api/users", dependencies=reads.dependencies)
    async def get_users(n: N = 10, cursor: str = "") -> Response:
        """Users in the newest records of the log, by id. ``cursor``: the last id of the page before."""
        users = await reads.read(lambda: read_users(log))
        after = sorted(user_id for user_id in users if user_id > cursor)
        profiles = [(user_id, await profile(user_id, users[user_id])) for user_id in after[:n]]
        page = [gorse.format_user(user_id, user.fields) for user_id, user in profiles if user]
        return json_response({"Cursor": after[n - 1] if len(after) > n else "", "Users": page})


def _add_feedback(router: APIRouter, reads: _LogReads) -> None:
    log, secured = reads.log, {"dependencies": reads.dependencies}

    @with_optional_part(router.get, "/api/user/{user_id}/feedback", "kind", **secured)
    async def of_user(user_id: Name, kind: str | None = None) -> Response:
        """Feedback of a user, newest first."""
        page = await reads.of_user(user_id, reads.matching(kind))
        return json_response(reads.format(page, kind))

    @with_optional_part(router.get, "/api/item/{item_id}/feedback", "kind", **secured)
    async def of_item(item_id: Name, kind: str | None = None) -> Response:
        """Feedback on an item, newest first."""
        matches = reads.matching(kind, item_id)
        page = await reads.read(lambda: read_page(log, MAX_LIST, matches))
        return json_response(reads.format(page, kind))

    @with_optional_part(router.get, "/api/feedback", "kind", **secured)
    async def of_all(kind: str | None = None, n: N = 10, cursor: str = "") -> Response:
        """Feedback of all users, newest first. ``cursor``: end of the page before."""
        matches, before = reads.matching(kind), _before(cursor, log.partitions(EVENTS))
        page = await reads.read(lambda: read_page(log, n, matches, before))
        next_cursor = ".".join(map(str, page.before or ()))
        return json_response({"Cursor": next_cursor, "Feedback": reads.format(page, kind)})


def _add_pairs(router: APIRouter, reads: _LogReads) -> None:
    @router.get("/api/feedback/{user_id}/{item_id}", dependencies=reads.dependencies)
    async def of_pair(user_id: Name, item_id: Name) -> Response:
        """Feedback of a user on an item, newest first."""
        page = await reads.of_user(user_id, reads.matching(None, item_id))
        return json_response(reads.format(page, None))

    @router.get("/api/feedback/{kind}/{user_id}/{item_id}", dependencies=reads.dependencies)
    async def newest(kind: Name, user_id: Name, item_id: Name) -> Response:
        """Newest feedback of one type of a user on an item."""
        page = await reads.of_user(user_id, reads.matching(kind, item_id))
        if not page.engagements:
            what = f"{user_id!r} did no {kind} with {item_id!r}"
            raise HTTPException(404, f"{what}, as far as the newest {MOST_RECORDS:,} records say")
        return json_response(reads.format(page, kind)[0])


def _before(cursor: str, partitions: int) -> tuple[int, ...] | None:
    if not cursor:
        return None
    parts = cursor.split(".")
    if len(parts) != partitions or not all(
        part.isascii() and part.isdigit() and len(part) < 20 for part in parts
    ):
        raise Rejected("cursor", cursor, "the Cursor of a page before")
    return tuple(map(int, parts))
