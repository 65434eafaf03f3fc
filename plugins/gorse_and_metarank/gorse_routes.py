"""Gorse's routes. ``gorse`` translates the values, ``unpersonalized`` computes the lists."""

import uuid
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from plugins.gorse_and_metarank import gorse
from plugins.gorse_and_metarank.gorse_reads import GorseReads, Routes, add_routes
from plugins.gorse_and_metarank.shared_handlers import (
    PROBLEMS,
    DialectRoute,
    Fields,
    SharedHandlers,
    add_unsupported,
    unsupported_response,
)
from plugins.gorse_and_metarank.unpersonalized import category_candidates, filters_of, latest, popular, scored
from plugins.gorse_and_metarank.values import MAX_EVENTS, at_most, list_of, seconds_of
from recsys.events.event_types import Engagement, Rejected, parse
from recsys.events.hashing import Id
from recsys.features.session import Session
from serving import request as values
from serving.access.access_layer import caller_of
from serving.access.caller import Caller
from serving.access.scopes import CATALOGUE, EVENTS, PUBLIC, READ, RECOMMEND, USERS
from serving.http.added_routes import AddedRoutes
from serving.http.strict_json import json_response
from serving.ingestion.event_validation import LOST
from serving.item_lists import Order
from serving.problem import Unavailable
from serving.sessions.session_store import StoreUnavailable

MAX_N: Final = 100  # of a list, together with the offset
MAX_WRITTEN: Final = 1000  # items or users of one body, as of POST /v1/items
Name = Annotated[str, Path(min_length=1, max_length=256)]
N = Annotated[int, Query(ge=1, le=MAX_N)]
Offset = Annotated[int, Query(ge=0, lt=MAX_N)]
UserId = Annotated[str, Query(alias="user-id", max_length=256)]
_UNSUPPORTED: Final = (
    ("GET", "/api/user/{user_id}/neighbors", "a search among users",
     "GET /api/item/{item_id}/neighbors searches among items"),
    ("DELETE", "/api/feedback/{rest:path}", "taking feedback back",
     "what was learned of one event stays; DELETE /api/user/{user_id} forgets a user whole"),
)  # fmt: skip


_SCOPES: Final = (
    (r"GET /api/health/(live|ready)$", PUBLIC),
    (r"GET /api/(recommend/|latest|popular)|POST /api/session/recommend", RECOMMEND),
    (r"GET /api/item/[^/]*/neighbors", RECOMMEND),
    (r"(POST|PUT) /api/feedback$", EVENTS),
    (r"[A-Z]+ /api/(users?|feedback|item/[^/]*/feedback)(/|$)", USERS),
    (r"GET /api/items?(/|$)", READ),
    (r"[A-Z]+ /api/items?(/|$)", CATALOGUE),
)


def admit(added: AddedRoutes) -> None:
    """Adds how calls of the routes are admitted."""
    added.scopes += _SCOPES
    added.lists += ["/api/recommend/", "/api/session/recommend"]
    added.events.append("/api/feedback")
    added.others.append("/api/")
    added.health += ["/api/health/live", "/api/health/ready"]


def routes_of(handlers: SharedHandlers) -> APIRouter:
    """Router for the app of one replica."""
    slashless = [Depends(_refuse_slashes)]
    router = APIRouter(route_class=DialectRoute, tags=["Gorse"], dependencies=slashless, responses=PROBLEMS)
    GorseReads(handlers).add_to(router)
    GorseRoutes(handlers).add_to(router)
    add_unsupported(router, _UNSUPPORTED)
    return router


def _refuse_slashes(request: Request) -> None:
    """Refuses %2F in paths: user ``a/b`` must not be answered as user ``a`` with category ``b``."""
    path = request.scope.get("raw_path") or b""
    if b"%2f" in path.lower():
        raise Rejected("path", path.decode("latin-1"), "names without a slash, which is %2F")


class GorseRoutes:
    """Endpoints that write, recommend and list."""

    def __init__(self, handlers: SharedHandlers) -> None:
        self._handlers, self._service = handlers, handlers.service
        self._config, self._replica = handlers.config, handlers.service.replica
        self._lists = handlers.service.lists

    def add_to(self, router: APIRouter) -> None:
        writes: Routes = (
            ("POST", "/api/item", self.insert_items),
            ("POST", "/api/items", self.insert_items),
            ("PATCH", "/api/item/{item_id}", self.modify_item),
            ("DELETE", "/api/item/{item_id}", self.delete_item),
            ("PUT", "/api/item/{item_id}/category/{category}", self.insert_category),
            ("DELETE", "/api/item/{item_id}/category/{category}", self.delete_category),
            ("POST", "/api/user", self.insert_users),
            ("POST", "/api/users", self.insert_users),
            ("PATCH", "/api/user/{user_id}", self.modify_user),
            ("DELETE", "/api/user/{user_id}", self.delete_user),
        )
        of_category: Routes = (
            ("GET", "/api/recommend/{user_id}", self.recommend),
            ("POST", "/api/session/recommend", self.recommend_session),
            ("GET", "/api/latest", self.latest),
            ("GET", "/api/popular", self.popular),
            ("GET", "/api/item/{item_id}/neighbors", self.neighbors),
        )
        others: Routes = (
            ("GET", "/api/item/{item_id}", self.get_item),
            ("GET", "/api/items", self.get_items),
            ("POST", "/api/feedback", self.insert_feedback),
            ("PUT", "/api/feedback", self.insert_feedback),
            ("GET", "/api/health/live", self.live),
            ("GET", "/api/health/ready", self.ready),
        )
        add_routes(router, writes)
        add_routes(router, of_category, "category")
        add_routes(router, others)

    # --- items and users ---

    async def _parsed(self, request: Request, parse: Callable[..., Fields]) -> list[Any]:
        """Items or users of a body: a list where the path is in the plural, else one."""
        body, now_ms = await self._handlers.body(request), self._service.now_ms()
        if not request.url.path.endswith("s"):
            return [parse(body, "", self._config, now_ms)]
        raws = list_of(body, "", MAX_WRITTEN)
        return [parse(raw, f"[{n}]", self._config, now_ms) for n, raw in enumerate(raws)]

    async def insert_items(self, request: Request) -> Response:
        """Publishes items, or replaces them whole: all, or none if one can't be parsed."""
        items = await self._parsed(request, gorse.parse_item)
        await self._handlers.put_items(items)
        return _rows(len(items))

    async def get_item(self, item_id: Name) -> Response:
        fields = self._handlers.living_fields(item_id)
        return json_response(gorse.format_item(item_id, fields, self._config))

    async def get_items(self, n: N = 10, cursor: str = "", q: str = "") -> Response:
        """Living items, oldest first. ``cursor``: end of the page before."""
        if q:
            alternative = "search elsewhere, and have POST /rank/{model} order it"
            return unsupported_response("a search by words", alternative)
        catalogue = self._replica.catalogue
        index, page = _start(cursor), list[dict[str, Any]]()
        while index < len(catalogue) and len(page) < n:
            if catalogue.alive[index]:
                fields = catalogue.fields[index]
                page.append(gorse.format_item(catalogue.ids[index], fields, self._config))
            index += 1
        next_cursor = str(index) if index < len(catalogue) else ""
        return json_response({"Cursor": next_cursor, "Items": page})

    async def _change(self, item_id: str, changed: Callable[[Fields], dict[str, Any]]) -> Response:
        """Publishes a living item anew; 404 for others."""
        fields_of = self._handlers.living_fields
        await self._handlers.change_items(lambda: [changed(fields_of(item_id))])
        return _rows(1)

    async def modify_item(self, item_id: Name, request: Request) -> Response:
        body, config = await self._handlers.body(request), self._config
        now_ms = self._service.now_ms
        return await self._change(
            item_id, lambda fields: gorse.patch_item(body, item_id, fields, config, now_ms())
        )

    async def delete_item(self, item_id: Name) -> Response:
        """Removes an item. What the model learned from it stays."""
        exists = self._handlers.fields_of(item_id) is not None
        if exists:
            await self._handlers.remove_item(item_id)
        return _rows(int(exists))

    async def insert_category(self, item_id: Name, category: Name) -> Response:
        changed = partial(gorse.set_category, item_id, category, True, self._config)
        return await self._change(item_id, changed)

    async def delete_category(self, item_id: Name, category: Name) -> Response:
        changed = partial(gorse.set_category, item_id, category, False, self._config)
        return await self._change(item_id, changed)

    async def insert_users(self, request: Request) -> Response:
        """Sets users' profiles: all, or none if one can't be parsed."""
        users = await self._parsed(request, gorse.parse_user)
        await self._handlers.put_users(users)
        return _rows(len(users))

    async def modify_user(self, user_id: Name, request: Request) -> Response:
        """Sets a profile; a patch without Labels is refused."""
        body = await self._handlers.body(request)
        await self._handlers.put_users([gorse.patch_user(body, user_id, self._service.now_ms())])
        return _rows(1)

    async def delete_user(self, user_id: Name) -> Response:
        """Erases a user, as DELETE /v1/users/{user_id} does."""
        await self._service.write_api.erase_user(user_id)
        return _rows(1)

    # --- feedback and recommendations ---

    async def insert_feedback(self, request: Request) -> Response:
        """Feedback of users: all, or none if one can't be parsed. Repeats count once."""
        raws = list_of(await self._handlers.body(request), "")
        with self._handlers.counting_rejected(len(raws)):
            events = self._feedback(raws)
        return _rows(await self._handlers.engage(events, caller_of(request.scope)))

    def _feedback(self, raws: list[Any]) -> list[dict[str, Any]]:
        at_most(len(raws), MAX_EVENTS, "body")
        config, now_ms = self._config, self._service.now_ms()
        return [gorse.parse_feedback(raw, f"[{n}]", config, now_ms) for n, raw in enumerate(raws)]

    async def recommend(
        self,
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
        delay_s = seconds_of(write_back_delay, "write-back-delay")
        kind = write_back_type and gorse.parse_kind(write_back_type, self._config, "write-back-type")
        caller = caller_of(request.scope)
        self._service.callers.check_list(caller, user_id)
        if kind:
            caller.check_scope(EVENTS, "a write-back")
        if kind and delay_s and self._handlers.write_backs.full():
            raise Unavailable("too many write-backs wait: ask without write-back-delay, or later")
        candidates = None
        if category:
            candidates = self._candidates(await self._service.sessions.of(user_id), category)
        wanted = values.Request(user_id, _until(offset, n), candidate_ids=candidates)
        answer = await self._service.recommend(wanted, caller=caller)
        self._handlers.metrics.count_degraded(answer.degraded)
        items = answer.items[offset:]
        if kind:
            ids = [item.item_id for item in items]
            await self._write_back(answer, ids, kind, delay_s, caller)
        if x_api_version == "2":
            return json_response(gorse.format_scores(scored(items)))
        return json_response([str(item.item_id) for item in items])

    async def recommend_session(
        self, request: Request, category: str = "", n: N = 10, offset: Offset = 0
    ) -> Response:
        """Items for an unknown user with this feedback. Nothing is logged."""
        service, catalogue = self._service, self._replica.catalogue
        feedback = self._feedback(list_of(await self._handlers.body(request), ""))
        seen = self._config.sessions.seen
        session = Session(f"session {uuid.uuid4().hex}", service.features, seen)
        for raw in feedback:
            event, index = parse(raw, unattributed=True), catalogue.index_of(raw["item_id"])
            if index is not None and isinstance(event, Engagement):
                session.fold_engagement(event, catalogue.keys[index])
        candidates = self._candidates(session, category) if category else None
        wanted = values.Request(session.user_id, _until(offset, n), candidate_ids=candidates)
        answer = await service.recommend_unlogged(wanted, session)
        self._handlers.metrics.count_degraded(answer.degraded)
        return json_response(gorse.format_scores(scored(answer.items[offset:])))

    def _candidates(self, session: Session, category: str) -> tuple[Id, ...]:
        """Items of a category that the user hasn't seen."""
        seen, most = self._indices_of(session), self._config.serve.candidates
        rules = self._config.policy.rules
        return tuple(category_candidates(self._replica, category, seen, most, rules))

    def _indices_of(self, session: Session) -> Collection[int]:
        """Catalogue indices of the items that a user hid, or saw where items don't repeat."""
        seen = () if self._config.sessions.repeats else session.seen
        keys = (*seen, *session.hidden)
        indices = map(self._replica.catalogue.index_of_key, keys)
        return {index for index in indices if index is not None}

    async def _write_back(
        self, answer: values.Answer, ids: Sequence[Id], kind: str, delay_s: float, caller: Caller
    ) -> None:
        request_id, user_id = answer.request_id, answer.impression.user_id

        async def write() -> None:
            now_ms = self._service.now_ms()
            events = gorse.write_back_events(request_id, user_id, ids, kind, now_ms)
            await self._handlers.engage(events, caller)

        if delay_s:
            lost = partial(self._handlers.metrics.count_events, LOST, len(ids))
            self._handlers.write_backs.schedule(delay_s, write, lost)
        else:
            await write()

    # --- lists without a user ---

    async def latest(
        self, category: str = "", n: N = 10, offset: Offset = 0, user_id: UserId = ""
    ) -> Response:
        """Newest items; with ``user-id``, without those that the user saw."""
        return await self._unpersonalized(latest, category, n, offset, user_id)

    async def popular(
        self, category: str = "", n: N = 10, offset: Offset = 0, user_id: UserId = ""
    ) -> Response:
        """Items with the most recent engagement; with ``user-id``, without those that the user saw."""
        return await self._unpersonalized(popular, category, n, offset, user_id)

    async def _unpersonalized(
        self, order: Order, category: str, n: int, offset: int, user_id: str
    ) -> Response:
        seen: list[Id] = []
        if user_id:
            indices = self._indices_of(await self._service.sessions.of(user_id))
            seen = [self._replica.catalogue.ids[index] for index in indices]
        filters = filters_of(self._replica, category)
        items = self._lists.ordered(order, _until(offset, n), filters, seen)
        return json_response(gorse.format_scores(scored(items[offset:])))

    async def neighbors(self, item_id: Name, category: str = "", n: N = 10, offset: Offset = 0) -> Response:
        """Items nearest to an item, by their vectors."""
        self._handlers.living_fields(item_id)
        filters = filters_of(self._replica, category)
        items, missing = await self._lists.similar(_until(offset, n), filters, item_id)
        self._handlers.metrics.count_degraded(["retrieval"] * missing)
        return json_response(gorse.format_scores(scored(items[offset:])))

    # --- health ---

    async def live(self) -> Response:
        """Whether the process answers. The cache store is the session store, the data store the log."""
        return json_response(await self._health())

    async def ready(self) -> Response:
        """Whether the replica has caught up with the log and follows it."""
        health = await self._health()
        return json_response(health, 200 if health["Ready"] else 503)

    async def _health(self) -> dict[str, Any]:
        store_error = ""
        try:
            await self._service.sessions.store.get("health")
        except StoreUnavailable as error:
            store_error = str(error)
        log_error = self._service.failure or self._service.live.thread.away
        return {
            "CacheStoreConnected": not store_error,
            "CacheStoreError": store_error,
            "DataStoreConnected": not log_error,
            "DataStoreError": log_error,
            "Ready": self._service.ready,
        }


def _rows(count: int) -> Response:
    return json_response({"RowAffected": count})


def _until(offset: int, n: int) -> int:
    if offset + n > MAX_N:
        raise Rejected("n", n, f"at most {MAX_N} together with offset, which is {offset}")
    return offset + n


def _start(cursor: str) -> int:
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 12):
        raise Rejected("cursor", cursor, "the Cursor of a page before")
    return int(cursor or 0)
