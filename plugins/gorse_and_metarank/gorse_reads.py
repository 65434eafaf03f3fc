"""Gorse's routes that read users and feedback, from the newest records of the log, with the key."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, HTTPException, Path, Query, Response

from plugins.gorse_and_metarank import gorse
from plugins.gorse_and_metarank.newest_events import (
    MOST_RECORDS,
    EngagementPage,
    Matches,
    UserRecord,
    read_page,
    read_user,
    read_users,
)
from plugins.gorse_and_metarank.shared_handlers import SharedHandlers
from recsys.events.event_types import Rejected, User
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS
from recsys.log.protocol import LogUnavailable
from serving.http.strict_json import json_response
from serving.problem import Unavailable

MAX_PAGE: Final = 100
MAX_LIST: Final = 1_000  # of a list without pages
Name = Annotated[str, Path(min_length=1, max_length=256)]
N = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Routes = Iterable[tuple[str, str, Callable[..., Any]]]  # method, path, endpoint
T = TypeVar("T")


def add_routes(router: APIRouter, routes: Routes, part: str = "", **options: Any) -> None:
    """Adds routes. ``part``: an optional last part of the paths, which are also added
    with it, and with the slash alone, which clients send too."""
    ends = ("", "/", f"/{{{part}}}") if part else ("",)
    for method, path, endpoint in routes:
        for end in ends:
            options |= {"methods": [method], "include_in_schema": end != "/"}
            router.add_api_route(path + end, endpoint, **options)


class GorseReads:
    """Endpoints that read the log, in a thread, one read at a time: several would delay the lists."""

    def __init__(self, handlers: SharedHandlers) -> None:
        self._handlers, self._config, self._lock = handlers, handlers.config, asyncio.Lock()
        self._log = handlers.service.log

    def add_to(self, router: APIRouter) -> None:
        of_kind: Routes = (
            ("GET", "/api/user/{user_id}/feedback", self.of_user),
            ("GET", "/api/item/{item_id}/feedback", self.of_item),
            ("GET", "/api/feedback", self.of_all),
        )
        others: Routes = (
            ("GET", "/api/user/{user_id}", self.get_user),
            ("GET", "/api/users", self.get_users),
            ("GET", "/api/feedback/{user_id}/{item_id}", self.of_pair),
            ("GET", "/api/feedback/{kind}/{user_id}/{item_id}", self.newest),
        )
        add_routes(router, of_kind, "kind")
        add_routes(router, others)

    async def get_user(self, user_id: Name) -> Response:
        """Newest profile of a user, if it is among the newest records of the log."""
        place = self._place_of(user_id)
        record = await self._read(lambda: read_user(self._log, *place))
        user = await self._profile(user_id, record)
        if user is None:
            raise HTTPException(
                404,
                f"no profile of {user_id!r} is found: the user is unknown, or the profile is older than the "
                f"newest {MOST_RECORDS:,} records of its partition of the log; POST /api/user sets it anew",
            )
        return json_response(gorse.format_user(user_id, user.fields))

    async def get_users(self, n: N = 10, cursor: str = "") -> Response:
        """Users in the newest records of the log, by id. ``cursor``: the last id of the page before."""
        users = await self._read(lambda: read_users(self._log))
        after = sorted(user_id for user_id in users if user_id > cursor)
        profiles = [(user_id, await self._profile(user_id, users[user_id])) for user_id in after[:n]]
        page = [gorse.format_user(user_id, user.fields) for user_id, user in profiles if user]
        return json_response({"Cursor": after[n - 1] if len(after) > n else "", "Users": page})

    async def _profile(self, user_id: str, user: UserRecord | None) -> User | None:
        """Profile of a user, empty if only engagements are known. None if a profile was sent but isn't among
        the examined records, or the user is unknown."""
        if user is not None and user.gone:
            return None
        if user is None or not user.certain:
            session = await self._handlers.service.sessions.of(user_id)
            if session.profile or (user is None and not session.offset):
                return None
        return (user and user.profile) or User(time_ms=0, user_id=user_id)

    async def of_user(self, user_id: Name, kind: str | None = None) -> Response:
        """Feedback of a user, newest first."""
        return json_response(await self._feedback_of(user_id, kind))

    async def of_item(self, item_id: Name, kind: str | None = None) -> Response:
        """Feedback on an item, newest first."""
        matches = self._matching(kind, item_id)
        page = await self._read(lambda: read_page(self._log, MAX_LIST, matches))
        return json_response(self._format(page, kind))

    async def of_all(self, kind: str | None = None, n: N = 10, cursor: str = "") -> Response:
        """Feedback of all users, newest first. ``cursor``: end of the page before."""
        matches, before = self._matching(kind), _before(cursor, self._log.partitions(EVENTS))
        page = await self._read(lambda: read_page(self._log, n, matches, before))
        next_cursor = ".".join(map(str, page.before or ()))
        return json_response({"Cursor": next_cursor, "Feedback": self._format(page, kind)})

    async def of_pair(self, user_id: Name, item_id: Name) -> Response:
        """Feedback of a user on an item, newest first."""
        return json_response(await self._feedback_of(user_id, None, item_id))

    async def newest(self, kind: Name, user_id: Name, item_id: Name) -> Response:
        """Newest feedback of one type of a user on an item."""
        feedback = await self._feedback_of(user_id, kind, item_id)
        if not feedback:
            what = f"{user_id!r} did no {kind} with {item_id!r}"
            raise HTTPException(404, f"{what}, as far as the newest {MOST_RECORDS:,} records say")
        return json_response(feedback[0])

    async def _read(self, function: Callable[[], T]) -> T:
        async with self._lock:
            try:
                return await asyncio.to_thread(function)
            except LogUnavailable as error:
                raise Unavailable(str(error)) from error

    def _place_of(self, user_id: str) -> tuple[int, bytes]:
        """Partition and key of a user's events."""
        return partition_of(user_id, self._config.log.partitions), user_id.encode()

    async def _feedback_of(
        self, user_id: str, kind: str | None, item_id: str | None = None
    ) -> list[dict[str, Any]]:
        (partition, key), matches = self._place_of(user_id), self._matching(kind, item_id)
        page = await self._read(lambda: read_page(self._log, MAX_LIST, matches, partition=partition, key=key))
        return self._format(page, kind)

    def _format(self, page: EngagementPage, feedback_type: str | None) -> list[dict[str, Any]]:
        return [gorse.format_feedback(e, feedback_type, self._config) for e in page.engagements]

    def _matching(self, feedback_type: str | None, item_id: str | None = None) -> Matches:
        kind = feedback_type and gorse.parse_kind(feedback_type, self._config)
        return lambda engagement: (
            (kind is None or engagement.kind == kind)
            and (item_id is None or str(engagement.item_id) == item_id)
        )


def _before(cursor: str, partitions: int) -> tuple[int, ...] | None:
    if not cursor:
        return None
    parts = cursor.split(".")
    if len(parts) != partitions or not all(
        part.isascii() and part.isdigit() and len(part) < 20 for part in parts
    ):
        raise Rejected("cursor", cursor, "the Cursor of a page before")
    return tuple(map(int, parts))
