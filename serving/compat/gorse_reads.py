"""Gorse's routes that read users and feedback: from the newest records of the log, with the key. Thin."""

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
    Known,
    Page,
    Wanted,
    known_of,
    page_of,
    users_of,
)
from serving.compat.shared_handlers import SharedHandlers, json
from serving.ingestion.write_api import Unavailable

MOST: Final = 100  # of a page
ALL: Final = 1_000  # of a list that has no pages
Name = Annotated[str, Path(min_length=1, max_length=256)]
N = Annotated[int, Query(ge=1, le=MOST)]
T = TypeVar("T")


def add_reads(router: APIRouter, desk: SharedHandlers) -> None:
    """Adds them all."""
    look = _Looks(desk)
    _add_users(router, look)
    _add_feedback(router, look)
    _add_pairs(router, look)


class _Looks:
    """One look into the log at a time, in a thread: many at once would hold up the lists."""

    def __init__(self, desk: SharedHandlers) -> None:
        self.desk, self._turn = desk, asyncio.Lock()
        self.reader = [Depends(desk.let_in)]

    async def look(self, at: Callable[[], T]) -> T:
        async with self._turn:
            try:
                return await asyncio.to_thread(at)
            except LogUnavailable as error:
                raise Unavailable(str(error)) from error

    def place_of(self, user_id: str) -> tuple[int, bytes]:
        """Where on the log a user's events stand: partition and key."""
        return partition_of(user_id, self.desk.config.log.partitions), user_id.encode()

    async def of_user(self, user_id: str, wanted: Wanted) -> Page:
        partition, key = self.place_of(user_id)
        log = self.desk.service.log
        return await self.look(lambda: page_of(log, ALL, wanted, partition=partition, key=key))

    def told(self, page: Page, feedback_type: str | None) -> list[dict[str, Any]]:
        return [
            gorse.feedback_out(one, feedback_type, self.desk.config) for one in page.engagements
        ]

    def wanted(self, feedback_type: str | None, item_id: str | None = None) -> Wanted:
        kind = feedback_type and gorse.kind_named(feedback_type, self.desk.config)
        return lambda its: (
            (kind is None or its.kind == kind) and (item_id is None or str(its.item_id) == item_id)
        )


def _add_users(router: APIRouter, looks: _Looks) -> None:
    log, service = looks.desk.service.log, looks.desk.service

    async def profile(user_id: str, known: Known | None) -> User | None:
        """An empty one for who is known by what they did alone. None where one was sent that isn't found any
        more, or nothing is known at all."""
        if known is not None and known.gone:
            return None
        if known is None or not known.sure:
            session = await service.session_of(user_id)
            if session.profile or (known is None and not session.offset):
                return None
        found = None if known is None else known.profile
        return found or User(time_ms=0, user_id=user_id)

    @router.get("/api/user/{user_id}", dependencies=looks.reader)
    async def get_user(user_id: Name) -> Response:
        """The profile as it was sent last, where it is among the newest records of the log."""
        place = looks.place_of(user_id)
        found = await profile(user_id, await looks.look(lambda: known_of(log, *place)))
        if found is None:
            raise HTTPException(404, _no_profile(user_id))
        return json(gorse.user_out(user_id, found.fields))

    @router.get("/api/users", dependencies=looks.reader)
    async def get_users(n: N = 10, cursor: str = "") -> Response:
        """Whom the newest records of the log name, by id. ``cursor``: the last id of the page before."""
        users = await looks.look(lambda: users_of(log))
        after = sorted(user_id for user_id in users if user_id > cursor)
        told = [(user_id, await profile(user_id, users[user_id])) for user_id in after[:n]]
        page = [gorse.user_out(user_id, its.fields) for user_id, its in told if its is not None]
        return json({"Cursor": after[n - 1] if len(after) > n else "", "Users": page})


def _add_feedback(router: APIRouter, looks: _Looks) -> None:
    @router.get("/api/user/{user_id}/feedback/{kind}", dependencies=looks.reader)
    @router.get("/api/user/{user_id}/feedback/", include_in_schema=False, dependencies=looks.reader)
    @router.get("/api/user/{user_id}/feedback", dependencies=looks.reader)
    async def of_user(user_id: Name, kind: str | None = None) -> Response:
        """What a user did, newest first."""
        page = await looks.of_user(user_id, looks.wanted(kind))
        return json(looks.told(page, kind))

    @router.get("/api/item/{item_id}/feedback/{kind}", dependencies=looks.reader)
    @router.get("/api/item/{item_id}/feedback/", include_in_schema=False, dependencies=looks.reader)
    @router.get("/api/item/{item_id}/feedback", dependencies=looks.reader)
    async def of_item(item_id: Name, kind: str | None = None) -> Response:
        """What was done with an item, newest first."""
        log, wanted = looks.desk.service.log, looks.wanted(kind, item_id)
        return json(looks.told(await looks.look(lambda: page_of(log, ALL, wanted)), kind))

    @router.get("/api/feedback/{kind}", dependencies=looks.reader)
    @router.get("/api/feedback/", include_in_schema=False, dependencies=looks.reader)
    @router.get("/api/feedback", dependencies=looks.reader)
    async def of_all(kind: str | None = None, n: N = 10, cursor: str = "") -> Response:
        """What everybody did, newest first. ``cursor``: where the page before ended."""
        log, wanted = looks.desk.service.log, looks.wanted(kind)
        before = _before(cursor, log.partitions(EVENTS))
        page = await looks.look(lambda: page_of(log, n, wanted, before))
        told = ".".join(map(str, page.before or ()))
        return json({"Cursor": told, "Feedback": looks.told(page, kind)})


def _add_pairs(router: APIRouter, looks: _Looks) -> None:
    @router.get("/api/feedback/{user_id}/{item_id}", dependencies=looks.reader)
    async def of_pair(user_id: Name, item_id: Name) -> Response:
        """What a user did with an item, newest first."""
        return json(looks.told(await looks.of_user(user_id, looks.wanted(None, item_id)), None))

    @router.get("/api/feedback/{kind}/{user_id}/{item_id}", dependencies=looks.reader)
    async def newest(kind: Name, user_id: Name, item_id: Name) -> Response:
        """The newest of it, of one type."""
        page = await looks.of_user(user_id, looks.wanted(kind, item_id))
        if not page.engagements:
            what = f"{user_id!r} did no {kind} with {item_id!r}"
            raise HTTPException(404, f"{what}, as far as the newest {MOST_RECORDS:,} records say")
        return json(looks.told(page, kind)[0])


def _no_profile(user_id: str) -> str:
    return (
        f"no profile of {user_id!r} is found: nothing is known of them, or it was sent before the newest "
        f"{MOST_RECORDS:,} records of their partition of the log; POST /api/user sets it anew"
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
