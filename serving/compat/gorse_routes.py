"""Gorse's routes. ``gorse`` translates the values, ``unpersonalized`` computes the lists."""

import uuid
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from recsys.events.event_types import Engagement, Rejected, parse
from recsys.events.hashing import Id
from recsys.features.session import Session
from serving import request as values
from serving.compat import gorse
from serving.compat import unpersonalized as lists
from serving.compat.gorse_reads import add_reads, with_optional_part
from serving.compat.shared_handlers import (
    Fields,
    SharedHandlers,
    refuse_cross_origin,
    unsupported_response,
)
from serving.compat.times import seconds_of
from serving.compat.values import MAX_EVENTS, at_most, list_of
from serving.http.strict_json import StrictRoute, json_response
from serving.ingestion.event_validation import LOST
from serving.ingestion.write_api import Unavailable
from serving.sessions.session_store import StoreUnavailable

MAX_N: Final = 100  # of a list, together with the offset
MAX_WRITTEN: Final = 1000  # items or users of one body, as of POST /v1/items
Name = Annotated[str, Path(min_length=1, max_length=256)]
N = Annotated[int, Query(ge=1, le=MAX_N)]
Offset = Annotated[int, Query(ge=0, lt=MAX_N)]
UserId = Annotated[str, Query(alias="user-id", max_length=256)]
# (method, path, what has no counterpart, alternative)
_UNSUPPORTED: Final = (
    ("GET", "/api/user/{user_id}/neighbors", "a search among users",
     "GET /api/item/{item_id}/neighbors searches among items"),
    ("DELETE", "/api/feedback/{rest:path}", "taking feedback back",
     "what was learned of one event stays; DELETE /api/user/{user_id} forgets a user whole"),
)  # fmt: skip


def routes_of(handlers: SharedHandlers) -> APIRouter:
    """Router for the app of one replica."""
    router = APIRouter(
        route_class=StrictRoute, tags=["Gorse"], dependencies=[Depends(_refuse_slashes)]
    )
    _add_items(router, handlers)
    _add_changes(router, handlers)
    _add_users(router, handlers)
    _add_feedback(router, handlers)
    add_reads(router, handlers)
    _add_recommend(router, handlers)
    _add_session(router, handlers)
    _add_lists(router, handlers)
    _add_health(router, handlers)
    for method, path, what, alternative in _UNSUPPORTED:
        endpoint = partial(unsupported_response, what, alternative)
        router.add_api_route(path, endpoint, methods=[method], status_code=501, summary=what)
    return router


def _refuse_slashes(request: Request) -> None:
    """Refuses %2F in paths: user ``a/b`` must not be answered as user ``a`` with category ``b``."""
    path = request.scope.get("raw_path") or b""
    if b"%2f" in path.lower():
        raise Rejected("path", path.decode("latin-1"), "names without a slash, which is %2F")


def _rows(count: int) -> Response:
    return json_response({"RowAffected": count})


def _add_items(router: APIRouter, handlers: SharedHandlers) -> None:
    config, now_ms = handlers.config, handlers.service.now_ms
    write = [Depends(handlers.require_key)]

    @router.post("/api/item", dependencies=write)
    async def insert_item(request: Request) -> Response:
        """Publishes an item, or replaces it whole."""
        item = gorse.parse_item(await handlers.body(request), "", config, now_ms())
        await handlers.put_items([item])
        return _rows(1)

    @router.post("/api/items", dependencies=write)
    async def insert_items(request: Request) -> Response:
        """Publishes items: all, or none if one can't be parsed."""
        raws = list_of(await handlers.body(request), "", MAX_WRITTEN)
        items = [gorse.parse_item(raw, f"[{n}]", config, now_ms()) for n, raw in enumerate(raws)]
        await handlers.put_items(items)
        return _rows(len(items))

    @router.get("/api/item/{item_id}")
    async def get_item(item_id: Name) -> Response:
        return json_response(gorse.format_item(item_id, handlers.living_fields(item_id), config))

    @router.get("/api/items")
    async def get_items(n: N = 10, cursor: str = "", q: str = "") -> Response:
        """Living items, oldest first. ``cursor``: end of the page before."""
        if q:
            return unsupported_response(
                "a search by words", "search elsewhere, and have POST /rank/{model} order it"
            )
        catalogue = handlers.service.replica.catalogue
        index, page = _start(cursor), list[dict[str, Any]]()
        while index < len(catalogue) and len(page) < n:
            if catalogue.alive[index]:
                page.append(
                    gorse.format_item(catalogue.ids[index], catalogue.fields[index], config)
                )
            index += 1
        next_cursor = str(index) if index < len(catalogue) else ""
        return json_response({"Cursor": next_cursor, "Items": page})


def _add_changes(router: APIRouter, handlers: SharedHandlers) -> None:
    config, now_ms = handlers.config, handlers.service.now_ms
    write = [Depends(handlers.require_key)]

    async def change(item_id: str, changed: Callable[[Fields], dict[str, Any]]) -> Response:
        """Publishes a living item anew; 404 for others."""
        await handlers.change_items(lambda: [changed(handlers.living_fields(item_id))])
        return _rows(1)

    @router.patch("/api/item/{item_id}", dependencies=write)
    async def modify_item(item_id: Name, request: Request) -> Response:
        body = await handlers.body(request)
        return await change(
            item_id, lambda fields: gorse.patch_item(body, item_id, fields, config, now_ms())
        )

    @router.delete("/api/item/{item_id}", dependencies=write)
    async def delete_item(item_id: Name) -> Response:
        """Removes an item. What the model learned from it stays."""
        exists = handlers.fields_of(item_id) is not None
        if exists:
            await handlers.remove_item(item_id)
        return _rows(int(exists))

    @router.put("/api/item/{item_id}/category/{category}", dependencies=write)
    async def insert_category(item_id: Name, category: Name) -> Response:
        return await change(item_id, partial(gorse.set_category, item_id, category, True, config))

    @router.delete("/api/item/{item_id}/category/{category}", dependencies=write)
    async def delete_category(item_id: Name, category: Name) -> Response:
        return await change(item_id, partial(gorse.set_category, item_id, category, False, config))


def _add_users(router: APIRouter, handlers: SharedHandlers) -> None:
    write, now_ms = [Depends(handlers.require_key)], handlers.service.now_ms

    @router.post("/api/user", dependencies=write)
    async def insert_user(request: Request) -> Response:
        """Sets a user's profile."""
        await handlers.put_users([gorse.parse_user(await handlers.body(request), "", now_ms())])
        return _rows(1)

    @router.post("/api/users", dependencies=write)
    async def insert_users(request: Request) -> Response:
        """Sets profiles: all, or none if one can't be parsed."""
        raws = list_of(await handlers.body(request), "", MAX_WRITTEN)
        users = [gorse.parse_user(raw, f"[{n}]", now_ms()) for n, raw in enumerate(raws)]
        await handlers.put_users(users)
        return _rows(len(users))

    @router.patch("/api/user/{user_id}", dependencies=write)
    async def modify_user(user_id: Name, request: Request) -> Response:
        """Sets a profile; a patch without Labels is refused."""
        user = gorse.patch_user(await handlers.body(request), user_id, now_ms())
        await handlers.put_users([user])
        return _rows(1)

    @router.delete("/api/user/{user_id}", dependencies=write)
    async def delete_user(user_id: Name) -> Response:
        """Erases a user, as DELETE /v1/users/{user_id} does."""
        await handlers.service.write_api.erase_user(user_id)
        return _rows(1)


def _add_feedback(router: APIRouter, handlers: SharedHandlers) -> None:
    @router.post("/api/feedback")
    @router.put("/api/feedback")
    async def feedback(request: Request) -> Response:
        """Feedback of users: all, or none if one can't be parsed. Repeats count once."""
        raws, now_ms = list_of(await handlers.body(request), ""), handlers.service.now_ms()
        with handlers.counting_rejected(len(raws)):
            at_most(len(raws), MAX_EVENTS, "body")
            events = [
                gorse.parse_feedback(raw, f"[{n}]", handlers.config, now_ms)
                for n, raw in enumerate(raws)
            ]
        return _rows(await handlers.engage(events))


def _add_recommend(router: APIRouter, handlers: SharedHandlers) -> None:
    service, config = handlers.service, handlers.config

    @with_optional_part(router.get, "/api/recommend/{user_id}", "category")
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
        refuse_cross_origin(request)  # the list is an impression, whoever asks
        delay_s = seconds_of(write_back_delay, "write-back-delay")
        kind = write_back_type and gorse.parse_kind(write_back_type, config, "write-back-type")
        if kind and delay_s and handlers.write_backs.full():
            raise Unavailable("too many write-backs wait: ask without write-back-delay, or later")
        session = await service.session_of(user_id) if category else None
        candidates = None if session is None else _candidates(handlers, session, category)
        answer = await service.recommend(
            values.Request(user_id, _until(offset, n), candidate_ids=candidates)
        )
        handlers.metrics.count_degraded(answer.degraded)
        items = answer.items[offset:]
        if kind:
            ids = [item.item_id for item in items]
            await _write_back(handlers, answer.request_id, user_id, ids, kind, delay_s)
        if x_api_version == "2":
            return json_response(_scores_of(items))
        return json_response([str(item.item_id) for item in items])


def _add_session(router: APIRouter, handlers: SharedHandlers) -> None:
    service, config = handlers.service, handlers.config

    @with_optional_part(router.post, "/api/session/recommend", "category")
    async def of_session(
        request: Request, category: str = "", n: N = 10, offset: Offset = 0
    ) -> Response:
        """Items for an unknown user with this feedback. Nothing is logged."""
        raws, now_ms = list_of(await handlers.body(request), "", MAX_EVENTS), service.now_ms()
        session = Session(f"session {uuid.uuid4().hex}", service.features, config.sessions.seen)
        feedback = [
            gorse.parse_feedback(raw, f"[{i}]", config, now_ms) for i, raw in enumerate(raws)
        ]
        catalogue = service.replica.catalogue
        for raw in feedback:
            event, index = parse(raw, unattributed=True), catalogue.index_of(raw["item_id"])
            if index is not None and isinstance(event, Engagement):
                session.fold_engagement(event, catalogue.keys[index])
        candidates = _candidates(handlers, session, category) if category else None
        wanted = values.Request(session.user_id, _until(offset, n), candidate_ids=candidates)
        answer = await service.recommend_unlogged(wanted, session)
        handlers.metrics.count_degraded(answer.degraded)
        return json_response(_scores_of(answer.items[offset:]))


def _scores_of(items: Sequence[values.AnswerItem]) -> list[dict[str, Any]]:
    return gorse.format_scores([(item.item_id, item.score or 0.0) for item in items])


def _candidates(handlers: SharedHandlers, session: Session, category: str) -> tuple[Id, ...]:
    """Items of a category that the user hasn't seen."""
    seen, most = _indices_of(handlers, session), handlers.config.serve.candidates
    return tuple(lists.category_candidates(handlers.service.replica, category, seen, most))


async def _write_back(
    handlers: SharedHandlers, request_id: str, user_id: Id, ids: Sequence[Id], kind: str,
    delay_s: float,
) -> None:  # fmt: skip
    async def write() -> None:
        now_ms = handlers.service.now_ms()
        await handlers.engage(gorse.write_back_events(request_id, user_id, ids, kind, now_ms))

    if delay_s:
        lost = partial(handlers.metrics.count_events, LOST, len(ids))
        handlers.write_backs.schedule(delay_s, write, lost)
    else:
        await write()


def _add_lists(router: APIRouter, handlers: SharedHandlers) -> None:
    service = handlers.service

    async def seen(user_id: str) -> Collection[int]:
        return _indices_of(handlers, await service.session_of(user_id)) if user_id else ()

    @with_optional_part(router.get, "/api/latest", "category")
    async def latest(
        category: str = "", n: N = 10, offset: Offset = 0, user_id: UserId = ""
    ) -> Response:
        """Newest items; with ``user-id``, without those that the user saw."""
        excluded, most = await seen(user_id), _until(offset, n)
        scored = lists.latest(service.replica, most, excluded, category)
        return json_response(gorse.format_scores(scored[offset:]))

    @with_optional_part(router.get, "/api/popular", "category")
    async def popular(
        category: str = "", n: N = 10, offset: Offset = 0, user_id: UserId = ""
    ) -> Response:
        """Items with the most recent engagement; with ``user-id``, without those that the user saw."""
        excluded, most = await seen(user_id), _until(offset, n)
        scored = lists.popular(service.replica, most, excluded, category)
        return json_response(gorse.format_scores(scored[offset:]))

    @with_optional_part(router.get, "/api/item/{item_id}/neighbors", "category")
    async def neighbors(
        item_id: Name, category: str = "", n: N = 10, offset: Offset = 0
    ) -> Response:
        """Items nearest to an item, by their vectors."""
        handlers.living_fields(item_id)
        scored = lists.near(service.replica, [item_id], _until(offset, n), category) or []
        return json_response(gorse.format_scores(scored[offset:]))


def _add_health(router: APIRouter, handlers: SharedHandlers) -> None:
    service = handlers.service

    async def health() -> dict[str, Any]:
        store_error = ""
        try:
            await service.sessions.get("health")
        except StoreUnavailable as error:
            store_error = str(error)
        log_error = service.failure or service.follower.away
        return {
            "CacheStoreConnected": not store_error, "CacheStoreError": store_error,
            "DataStoreConnected": not log_error, "DataStoreError": log_error,
            "Ready": service.ready,
        }  # fmt: skip

    @router.get("/api/health/live")
    async def live() -> Response:
        """Whether the process answers. The cache store is the session store, the data store the log."""
        return json_response(await health())

    @router.get("/api/health/ready")
    async def ready() -> Response:
        """Whether the replica has caught up with the log and follows it."""
        state = await health()
        return json_response(state, 200 if state["Ready"] else 503)


def _until(offset: int, n: int) -> int:
    if offset + n > MAX_N:
        raise Rejected("n", n, f"at most {MAX_N} together with offset, which is {offset}")
    return offset + n


def _start(cursor: str) -> int:
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 12):
        raise Rejected("cursor", cursor, "the Cursor of a page before")
    return int(cursor or 0)


def _indices_of(handlers: SharedHandlers, session: Session) -> Collection[int]:
    """Catalogue indices of the items that a user saw or hid."""
    catalogue = handlers.service.replica.catalogue
    indices = (catalogue.index_of_key(key) for key in (*session.seen, *session.hidden))
    return {index for index in indices if index is not None}
