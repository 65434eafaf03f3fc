"""Gorse's routes: thin. What they say is translated in ``gorse``, what they read stands in ``lists``."""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response

from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Rejected, parse
from recsys.events.hashing import Id
from recsys.features.session import Session
from serving import request as asked
from serving.compat import gorse
from serving.compat import unpersonalized as lists
from serving.compat.gorse_reads import add_reads
from serving.compat.shared_handlers import SharedHandlers, instead, json, refuse_strangers
from serving.compat.times import seconds_of
from serving.compat.values import MOST_EVENTS, at_most, list_of
from serving.http.strict_json import StrictRoute
from serving.ingestion.event_validation import LOST
from serving.ingestion.write_api import Unavailable
from serving.sessions.session_store import StoreUnavailable

MOST: Final = 100  # of a list, with what is passed over
MOST_WRITTEN: Final = 1000  # items or users of one body, as of POST /v1/items
Name = Annotated[str, Path(min_length=1, max_length=256)]
N = Annotated[int, Query(ge=1, le=MOST)]
Offset = Annotated[int, Query(ge=0, lt=MOST)]
Reader = Annotated[str, Query(alias="user-id", max_length=256)]
Fields = Mapping[str, Any]
# (method, path, what has no counterpart, what to do instead)
_ABSENT: Final = (
    ("GET", "/api/user/{user_id}/neighbors", "a search among users",
     "GET /api/item/{item_id}/neighbors searches among items"),
    ("DELETE", "/api/feedback/{rest:path}", "taking feedback back",
     "what was learned of one event stays; DELETE /api/user/{user_id} forgets a user whole"),
)  # fmt: skip


def routes_of(desk: SharedHandlers) -> APIRouter:
    """All of them, for the app of one replica."""
    router = APIRouter(
        route_class=StrictRoute, tags=["Gorse"], dependencies=[Depends(_refuse_slashes)]
    )
    _add_items(router, desk)
    _add_changes(router, desk)
    _add_users(router, desk)
    _add_feedback(router, desk)
    add_reads(router, desk)
    _add_recommend(router, desk)
    _add_session(router, desk)
    _add_lists(router, desk)
    _add_health(router, desk)
    for method, path, what, to_do in _ABSENT:
        answer = partial(_absent, what, to_do)
        router.add_api_route(path, answer, methods=[method], status_code=501, summary=what)
    return router


def _refuse_slashes(request: Request) -> None:
    """Who asks for user ``a/b`` must not be answered as user ``a`` who asks for category ``b``."""
    told = request.scope.get("raw_path") or b""
    if b"%2f" in told.lower():
        raise Rejected("path", told.decode("latin-1"), "names without a slash, which is %2F")


def _absent(what: str, to_do: str) -> Response:
    return instead(what, to_do)


def _rows(count: int) -> Response:
    return json({"RowAffected": count})


def _add_items(router: APIRouter, desk: SharedHandlers) -> None:
    writer, now_ms, config = [Depends(desk.let_in)], desk.service.now_ms, desk.config

    @router.post("/api/item", dependencies=writer)
    async def insert_item(request: Request) -> Response:
        """Publishes an item, or changes all of it."""
        item = gorse.item_in(await desk.body(request), "", config, now_ms())
        await desk.put_items([item])
        return _rows(1)

    @router.post("/api/items", dependencies=writer)
    async def insert_items(request: Request) -> Response:
        """Publishes items: all of them, or none where one can't be read."""
        raws = list_of(await desk.body(request), "", MOST_WRITTEN)
        items = [gorse.item_in(raw, f"[{n}]", config, now_ms()) for n, raw in enumerate(raws)]
        await desk.put_items(items)
        return _rows(len(items))

    @router.get("/api/item/{item_id}")
    async def get_item(item_id: Name) -> Response:
        return json(gorse.item_out(item_id, _known(item_id, desk.fields_of(item_id)), config))

    @router.get("/api/items")
    async def get_items(n: N = 10, cursor: str = "", q: str = "") -> Response:
        """The living, by their coming. ``cursor``: where the page before ended."""
        if q:
            return instead(
                "a search by words", "search elsewhere, and have POST /rank/{model} order it"
            )
        catalogue = desk.service.replica.catalogue
        index, page = _start(cursor), list[dict[str, Any]]()
        while index < len(catalogue) and len(page) < n:
            if catalogue.alive[index]:
                page.append(gorse.item_out(catalogue.ids[index], catalogue.fields[index], config))
            index += 1
        return json({"Cursor": str(index) if index < len(catalogue) else "", "Items": page})


def _add_changes(router: APIRouter, desk: SharedHandlers) -> None:
    writer, now_ms, config = [Depends(desk.let_in)], desk.service.now_ms, desk.config

    async def changed(item_id: str, change: Callable[[Fields], dict[str, Any]]) -> Response:
        """Publishes a living item anew; 404 where there is none."""

        def made(fields_of: Callable[[Id], Fields | None]) -> Sequence[dict[str, Any]]:
            return [change(_known(item_id, fields_of(item_id)))]

        await desk.change_items(made)
        return _rows(1)

    @router.patch("/api/item/{item_id}", dependencies=writer)
    async def modify_item(item_id: Name, request: Request) -> Response:
        body = await desk.body(request)
        return await changed(
            item_id, lambda its: gorse.item_patched(body, item_id, its, config, now_ms())
        )

    @router.delete("/api/item/{item_id}", dependencies=writer)
    async def delete_item(item_id: Name) -> Response:
        """Takes an item away. What was learned of it stays."""
        there = desk.fields_of(item_id) is not None
        if there:
            await desk.remove_item(item_id)
        return _rows(int(there))

    @router.put("/api/item/{item_id}/category/{category}", dependencies=writer)
    async def insert_category(item_id: Name, category: Name) -> Response:
        return await changed(
            item_id, partial(gorse.item_in_category, item_id, category, True, config)
        )

    @router.delete("/api/item/{item_id}/category/{category}", dependencies=writer)
    async def delete_category(item_id: Name, category: Name) -> Response:
        return await changed(
            item_id, partial(gorse.item_in_category, item_id, category, False, config)
        )


def _add_users(router: APIRouter, desk: SharedHandlers) -> None:
    writer, now_ms = [Depends(desk.let_in)], desk.service.now_ms

    @router.post("/api/user", dependencies=writer)
    async def insert_user(request: Request) -> Response:
        """Sets a user's profile."""
        await desk.put_users([gorse.user_in(await desk.body(request), "", now_ms())])
        return _rows(1)

    @router.post("/api/users", dependencies=writer)
    async def insert_users(request: Request) -> Response:
        """Sets profiles: all of them, or none where one can't be read."""
        raws = list_of(await desk.body(request), "", MOST_WRITTEN)
        users = [gorse.user_in(raw, f"[{n}]", now_ms()) for n, raw in enumerate(raws)]
        await desk.put_users(users)
        return _rows(len(users))

    @router.patch("/api/user/{user_id}", dependencies=writer)
    async def modify_user(user_id: Name, request: Request) -> Response:
        """Sets a profile; a patch without Labels is refused."""
        await desk.put_users([gorse.user_patched(await desk.body(request), user_id, now_ms())])
        return _rows(1)

    @router.delete("/api/user/{user_id}", dependencies=writer)
    async def delete_user(user_id: Name) -> Response:
        """Forgets a user, as DELETE /v1/users/{user_id} does."""
        await desk.service.write_api.erase_user(user_id)
        return _rows(1)


def _add_feedback(router: APIRouter, desk: SharedHandlers) -> None:
    @router.post("/api/feedback")
    @router.put("/api/feedback")
    async def feedback(request: Request) -> Response:
        """What users did: all of it, or none where one can't be read. The same again counts once."""
        raws, now_ms = list_of(await desk.body(request), ""), desk.service.now_ms()
        with desk.reading(len(raws)):
            at_most(len(raws), MOST_EVENTS, "body")
            events = [
                gorse.feedback_in(raw, f"[{n}]", desk.config, now_ms) for n, raw in enumerate(raws)
            ]
        return _rows(await desk.engage(events))


def _add_recommend(router: APIRouter, desk: SharedHandlers) -> None:
    service, config = desk.service, desk.config

    @router.get("/api/recommend/{user_id}/{category}")
    @router.get("/api/recommend/{user_id}/", include_in_schema=False)
    @router.get("/api/recommend/{user_id}")
    async def recommend(
        request: Request,
        user_id: Name,
        category: str = "",
        n: N = 10,
        offset: Offset = 0,
        write_back_type: Annotated[str, Query(alias="write-back-type")] = "",
        write_back_delay: Annotated[str, Query(alias="write-back-delay")] = "0",
        x_api_version: Annotated[str, Header()] = "1",
    ) -> Response:
        """Items for a user; with the header X-API-Version: 2, with their scores."""
        refuse_strangers(request)  # the list is an impression, whoever asks
        delay_s = seconds_of(write_back_delay, "write-back-delay")
        kind = _kind(write_back_type, config)
        if kind and delay_s and desk.write_backs.full():
            raise Unavailable("too many write-backs wait: ask without write-back-delay, or later")
        session = await service.session_of(user_id) if category else None
        candidates = None if session is None else _candidates(desk, session, category)
        wanted = asked.Request(user_id, _until(offset, n), candidate_ids=candidates)
        answer = await service.recommend(wanted)
        desk.tally.left_out(answer.degraded)
        items = answer.items[offset:]
        if kind:
            ids = [item.item_id for item in items]
            await _write_back(desk, answer.request_id, user_id, ids, kind, delay_s)
        if x_api_version == "2":
            return json(gorse.scores_out([(i.item_id, i.score or 0.0) for i in items]))
        return json([str(item.item_id) for item in items])


def _add_session(router: APIRouter, desk: SharedHandlers) -> None:
    service, config = desk.service, desk.config

    @router.post("/api/session/recommend/{category}")
    @router.post("/api/session/recommend/", include_in_schema=False)
    @router.post("/api/session/recommend")
    async def of_session(
        request: Request, category: str = "", n: N = 10, offset: Offset = 0
    ) -> Response:
        """Items for somebody of whom nothing but this feedback is known. Nothing of it is logged."""
        raws, now_ms = list_of(await desk.body(request), "", MOST_EVENTS), service.now_ms()
        session = Session(f"session {uuid.uuid4().hex}", service.features, config.sessions.seen)
        done = [gorse.feedback_in(raw, f"[{i}]", config, now_ms) for i, raw in enumerate(raws)]
        catalogue = service.replica.catalogue
        for raw in done:
            event, index = parse(raw, unattributed=True), catalogue.index_of(raw["item_id"])
            if index is not None and isinstance(event, Engagement):
                session.fold_engagement(event, catalogue.keys[index])
        candidates = _candidates(desk, session, category) if category else None
        wanted = asked.Request(session.user_id, _until(offset, n), candidate_ids=candidates)
        answer = await service.recommend_unlogged(wanted, session)
        desk.tally.left_out(answer.degraded)
        return json(gorse.scores_out([(i.item_id, i.score or 0.0) for i in answer.items[offset:]]))


def _candidates(desk: SharedHandlers, session: Session, category: str) -> tuple[Id, ...]:
    """What there is of a category that a user hasn't seen."""
    seen, most = _indices_of(desk, session), desk.config.serve.candidates
    return tuple(lists.of_category(desk.service.replica, category, seen, most))


def _kind(feedback_type: str, config: Config) -> str:
    return gorse.kind_named(feedback_type, config, "write-back-type") if feedback_type else ""


async def _write_back(
    desk: SharedHandlers, request_id: str, user_id: Id, ids: Sequence[Id], kind: str, delay_s: float
) -> None:
    async def write() -> None:
        now_ms = desk.service.now_ms()
        await desk.engage(gorse.written_back(request_id, user_id, ids, kind, now_ms))

    if delay_s:
        desk.write_backs.later(delay_s, write, lambda: desk.tally.took(LOST, len(ids)))
    else:
        await write()


def _add_lists(router: APIRouter, desk: SharedHandlers) -> None:
    service = desk.service

    async def unwanted(user_id: str) -> Collection[int]:
        return _indices_of(desk, await service.session_of(user_id)) if user_id else ()

    @router.get("/api/latest/{category}")
    @router.get("/api/latest/", include_in_schema=False)
    @router.get("/api/latest")
    async def latest(
        category: str = "", n: N = 10, offset: Offset = 0, user_id: Reader = ""
    ) -> Response:
        """The newest items; with ``user-id``, without those that the user saw."""
        its, most = await unwanted(user_id), _until(offset, n)
        found = lists.latest(service.replica, most, its, category)
        return json(gorse.scores_out(found[offset:]))

    @router.get("/api/popular/{category}")
    @router.get("/api/popular/", include_in_schema=False)
    @router.get("/api/popular")
    async def popular(
        category: str = "", n: N = 10, offset: Offset = 0, user_id: Reader = ""
    ) -> Response:
        """What engages most lately; with ``user-id``, without what the user saw."""
        its, most = await unwanted(user_id), _until(offset, n)
        found = lists.popular(service.replica, most, its, category)
        return json(gorse.scores_out(found[offset:]))

    @router.get("/api/item/{item_id}/neighbors/{category}")
    @router.get("/api/item/{item_id}/neighbors/", include_in_schema=False)
    @router.get("/api/item/{item_id}/neighbors")
    async def neighbors(
        item_id: Name, category: str = "", n: N = 10, offset: Offset = 0
    ) -> Response:
        """The items nearest to an item, by their vectors."""
        _known(item_id, desk.fields_of(item_id))
        found = lists.near(service.replica, [item_id], _until(offset, n), category) or []
        return json(gorse.scores_out(found[offset:]))


def _add_health(router: APIRouter, desk: SharedHandlers) -> None:
    service = desk.service

    async def health() -> dict[str, Any]:
        sessions = ""
        try:
            await service.sessions.get("health")
        except StoreUnavailable as error:
            sessions = str(error)
        away = service.failure or service.follower.away
        return {
            "CacheStoreConnected": not sessions, "CacheStoreError": sessions,
            "DataStoreConnected": not away, "DataStoreError": away, "Ready": service.ready,
        }  # fmt: skip

    @router.get("/api/health/live")
    async def live() -> Response:
        """Whether the process answers. The cache store is that of sessions, the data store the log."""
        return json(await health())

    @router.get("/api/health/ready")
    async def ready() -> Response:
        """Whether the replica has caught up with the log and follows it."""
        its = await health()
        return json(its, 200 if its["Ready"] else 503)


def _known(item_id: str, fields: Fields | None) -> Fields:
    if fields is None:
        raise HTTPException(404, f"there is no item {item_id!r} that may be recommended")
    return fields


def _until(offset: int, n: int) -> int:
    if offset + n > MOST:
        raise Rejected("n", n, f"at most {MOST} together with offset, which is {offset}")
    return offset + n


def _start(cursor: str) -> int:
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 12):
        raise Rejected("cursor", cursor, "the Cursor of a page before")
    return int(cursor or 0)


def _indices_of(desk: SharedHandlers, session: Session) -> Collection[int]:
    """The catalogue indices of what a user saw or hid."""
    catalogue = desk.service.replica.catalogue
    found = (catalogue.index_of_key(key) for key in (*session.seen, *session.hidden))
    return {index for index in found if index is not None}
