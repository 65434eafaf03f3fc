"""Metarank's routes. ``metarank`` translates the values.

A model's name is the surface: Metarank has a model for each place where items are shown, and here one model
knows the surface.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response

from plugins.gorse_and_metarank import metarank
from plugins.gorse_and_metarank.shared_handlers import (
    PROBLEMS,
    DialectRoute,
    FieldsOf,
    SharedHandlers,
    add_unsupported,
)
from plugins.gorse_and_metarank.unpersonalized import Scored, popular, scored
from plugins.gorse_and_metarank.values import Raw, checked, is_texts, list_of, object_of, optional_id
from recsys.config.policy_config import MAX_LIST_LENGTH
from recsys.events.event_types import Rejected
from recsys.events.hashing import Id
from serving import request as values
from serving.access.access_layer import caller_of
from serving.access.caller import Caller
from serving.access.scopes import CATALOGUE, CONTROL, EVENTS, PUBLIC, RECOMMEND, USERS
from serving.http.added_routes import AddedRoutes
from serving.http.strict_json import json_response

Model = Annotated[str, Path(min_length=1, max_length=256)]
_UNSUPPORTED: Final = (
    ("POST", "/train/{model}", "training on demand", "the model learns from every event, within a second"),
    ("POST", "/flush", "a flush", "nothing is held back: each event is learned from as it comes"),
    (
        "POST",
        "/inference/{rest:path}",
        "inference with language models",
        "embed elsewhere, and publish the vectors",
    ),
)


_SCOPES: Final = (
    (r"GET /health$", PUBLIC),
    (r"POST /feedback$", EVENTS),
    (r"POST /(rank|recommend)/", RECOMMEND),
    (r"POST /(train/|inference/|flush$)", CONTROL),
)


def admit(added: AddedRoutes) -> None:
    """Adds how calls of the routes are admitted."""
    added.scopes += _SCOPES
    added.lists += ["/rank/", "/recommend/"]
    added.events.append("/feedback")
    added.others += ["/train/", "/inference/", "/flush"]
    added.health.append("/health")


def routes_of(handlers: SharedHandlers) -> APIRouter:
    """Router for the app of one replica."""
    router = APIRouter(route_class=DialectRoute, tags=["Metarank"], responses=PROBLEMS)
    _add_feedback(router, handlers)
    _add_rank(router, handlers)
    _add_recommend(router, handlers)

    add_unsupported(router, _UNSUPPORTED)

    @router.get("/health")
    async def health() -> Response:
        """Whether the process answers."""
        return json_response({"status": "ok"})

    return router


def _add_feedback(router: APIRouter, handlers: SharedHandlers) -> None:
    @router.post("/feedback")
    async def feedback(request: Request) -> Response:
        """One event, a list, or one a line: all or none. Items and users need the key."""
        began_s, now_ms = time.perf_counter(), handlers.service.now_ms()
        body, caller = await handlers.events(request), caller_of(request.scope)
        with handlers.counting_rejected(len(body) if isinstance(body, list) else 1):
            batch = metarank.parse_batch(body, handlers.config, now_ms)
            if not handlers.config.compat.keyless:
                for scope, changes in ((CATALOGUE, batch.items), (USERS, batch.users)):
                    if changes:
                        caller.check_scope(scope, f"POST /feedback with {scope}")
            await _write(handlers, batch, caller, now_ms)
        took_ms = _took_ms(began_s)
        return json_response({"accepted": batch.events, "status": "ok", "tookMillis": took_ms, "updated": 0})


async def _write(handlers: SharedHandlers, batch: metarank.Batch, caller: Caller, now_ms: int) -> None:
    """Writes items first: merged with their fields they may be too large, and nothing is written."""

    def merged() -> list[dict[str, Any]]:
        items = zip(merge_fields(batch.items, handlers.fields_of), batch.places, strict=True)
        return [checked(item, where, now_ms) for item, where in items]

    if batch.items:
        await handlers.change_items(merged)
    if batch.users:
        await handlers.put_users(batch.users)
    if batch.engagements:
        await handlers.engage(batch.engagements, caller)


def merge_fields(items: Sequence[dict[str, Any]], fields_of: FieldsOf) -> list[dict[str, Any]]:
    """Merges the fields of item events into the current fields of the items."""
    current: dict[Id, dict[str, Any]] = {}
    merged = []
    for item in items:
        item_id = item["item_id"]
        before: Mapping[str, Any] = current.get(item_id) or fields_of(item_id) or {}
        current[item_id] = dict(before) | item["fields"]
        merged.append(item | {"fields": current[item_id]})
    return merged


def _add_rank(router: APIRouter, handlers: SharedHandlers) -> None:
    @router.post("/rank/{model}")
    async def rank(model: Model, request: Request, explain: Annotated[bool, Query()] = False) -> Response:
        """Given items, best first."""
        began_s = time.perf_counter()
        body = await handlers.body(request)
        ranking = metarank.parse_ranking(body, handlers.service.now_ms())
        wanted = values.Request(
            ranking.user_id, min(len(ranking.item_ids), MAX_LIST_LENGTH), model, ranking.context,
            candidate_ids=ranking.item_ids, explain=explain, by_score=True,
        )  # fmt: skip
        caller = caller_of(request.scope)
        handlers.service.callers.check_list(caller, ranking.user_id)
        answer = await handlers.rank(wanted, ranking.request_id, caller)
        handlers.metrics.count_degraded(answer.degraded)
        features = {str(i.item_id): i.predictions or {} for i in answer.items}
        items = []
        for item_id, score in _in_order(handlers, answer, ranking.item_ids):
            entry: dict[str, Any] = {"item": str(item_id), "score": score}
            if explain:
                entry["features"] = metarank.format_fields(features.get(str(item_id), {}))
            items.append(entry)
        return json_response({"took": _took_ms(began_s), "items": items})


def _in_order(handlers: SharedHandlers, answer: values.Answer, given: Sequence[str]) -> Scored:
    """The logged list, then the ranked rest, then unknown items: of the given items only removed ones are
    missing, and those that a safety rule or a wish of the viewer closes. An unknown item gets the lowest
    score, or 0."""
    candidates, catalogue = answer.candidates, handlers.service.replica.catalogue
    assert candidates is not None
    ids = [str(catalogue.ids[index]) for index in candidates.indices_N[candidates.limits_N]]
    final_N = np.nan_to_num(candidates.final_N[candidates.limits_N], nan=-1e9)
    scores = dict(zip(ids, final_N.tolist(), strict=True))
    logged = [str(item.item_id) for item in answer.items]
    rest = sorted(scores.keys() - set(logged), key=lambda item_id: -scores[item_id])
    unknown = [item_id for item_id in given if catalogue.index_of(item_id) is None]
    lowest = min([0.0, *scores.values()])
    ordered: Scored = [(item_id, scores[item_id]) for item_id in (*logged, *rest)]
    return ordered + [(item_id, lowest) for item_id in unknown]


def _add_recommend(router: APIRouter, handlers: SharedHandlers) -> None:
    service = handlers.service
    lists = service.lists

    @router.post("/recommend/{model}")
    async def recommend(model: Model, request: Request) -> Response:
        """Items near ``items`` if given; else for ``user``; else popular ones."""
        began_s = time.perf_counter()
        raw = object_of(await handlers.body(request), "")
        count, user_id = _count(raw), optional_id(raw, "user", "")
        items = list_of(raw.get("items") or [], "items")
        if not is_texts(items):
            raise Rejected("items", items, "a list of ids, as texts")
        listed = list[values.AnswerItem]()
        if items:
            with suppress(KeyError):  # none of them exists
                listed, missing = await lists.similar(count, {}, *items)
                handlers.metrics.count_degraded(["retrieval"] * missing)
        elif user_id is None:
            listed = lists.ordered(popular, count, {})
        else:
            caller = caller_of(request.scope)
            service.callers.check_list(caller, user_id)
            asked = values.Request(user_id, count, model)
            answer = await service.recommend(asked, caller=caller)
            handlers.metrics.count_degraded(answer.degraded)
            listed = list(answer.items)
        entries = [{"item": str(item_id), "score": score} for item_id, score in scored(listed)]
        return json_response({"took": _took_ms(began_s), "items": entries})


def _count(raw: Raw) -> int:
    count = raw.get("count", 10)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_LIST_LENGTH:
        raise Rejected("count", count, f"a whole number, 1 to {MAX_LIST_LENGTH}")
    return count


def _took_ms(began_s: float) -> int:
    return round((time.perf_counter() - began_s) * 1000)
