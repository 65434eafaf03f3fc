"""Metarank's routes: thin. What they say is translated in ``metarank``.

A model's name is the surface that the items are shown on: Metarank has a model for each such place, and here
the one model knows the surface.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response

from recsys.events.event_types import Rejected
from recsys.events.hashing import Id
from serving import request as asked
from serving.compat import metarank
from serving.compat import unpersonalized as lists
from serving.compat.shared_handlers import SharedHandlers, instead, json
from serving.compat.values import Raw, checked, list_of, object_of, optional_id
from serving.http.strict_json import StrictRoute

MOST: Final = 100  # of a list that is logged
Model = Annotated[str, Path(min_length=1, max_length=256)]
Scored = list[tuple[Id, float]]


def routes_of(desk: SharedHandlers) -> APIRouter:
    """All of them, for the app of one replica."""
    router = APIRouter(route_class=StrictRoute, tags=["Metarank"])
    _add_feedback(router, desk)
    _add_rank(router, desk)
    _add_recommend(router, desk)

    @router.post("/train/{model}", status_code=501)
    async def train(model: Model) -> Response:
        return instead("training on demand", "the model learns from every event, within a second")

    @router.post("/flush", status_code=501)
    async def flush() -> Response:
        return instead("a flush", "nothing is held back: each event is learned from as it comes")

    @router.post("/inference/{rest:path}", status_code=501)
    async def inference(rest: str) -> Response:
        return instead("inference with language models", "embed elsewhere, and publish the vectors")

    @router.get("/health")
    async def health() -> Response:
        """Whether the process answers."""
        return json({"status": "ok"})

    return router


def _add_feedback(router: APIRouter, desk: SharedHandlers) -> None:
    @router.post("/feedback")
    async def feedback(request: Request) -> Response:
        """One event, a list, or one in each line: all of it, or none where one can't be read. Items and users
        need the key."""
        began_s, now_ms = time.perf_counter(), desk.service.now_ms()
        body = await desk.events(request)
        with desk.reading(len(body) if isinstance(body, list) else 1):
            batch = metarank.batch_in(body, desk.config, now_ms)
            if (batch.items or batch.users) and not desk.config.compat.keyless:
                desk.let_in(request)
            await _write(desk, batch, now_ms)
        took_ms = round((time.perf_counter() - began_s) * 1000)
        told = {"accepted": batch.events, "status": "ok", "tookMillis": took_ms, "updated": 0}
        return json(told)


async def _write(desk: SharedHandlers, batch: metarank.Batch, now_ms: int) -> None:
    """Items first: laid over what they have they may be too large, and then nothing is written."""

    def made(fields_of: Callable[[Id], Mapping[str, Any] | None]) -> list[dict[str, Any]]:
        whole = zip(laid_over(batch.items, fields_of), batch.places, strict=True)
        return [checked(item, where, now_ms) for item, where in whole]

    if batch.items:
        await desk.change_items(made)
    if batch.users:
        await desk.put_users(batch.users)
    if batch.engagements:
        await desk.engage(batch.engagements)


def laid_over(
    items: Sequence[dict[str, Any]], fields_of: Callable[[Id], Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """Items whose events say some fields, with those that they had before."""
    had: dict[Id, dict[str, Any]] = {}
    found = []
    for item in items:
        item_id = item["item_id"]
        before = had[item_id] if item_id in had else fields_of(item_id) or {}
        had[item_id] = dict(before) | item["fields"]
        found.append(item | {"fields": had[item_id]})
    return found


def _add_rank(router: APIRouter, desk: SharedHandlers) -> None:
    @router.post("/rank/{model}")
    async def rank(
        model: Model, request: Request, explain: Annotated[bool, Query()] = False
    ) -> Response:
        """The items that are given, best first."""
        began_s = time.perf_counter()
        ranking = metarank.ranking_in(await desk.body(request), desk.service.now_ms())
        wanted = asked.Request(
            ranking.user_id, min(len(ranking.item_ids), MOST), model, ranking.context,
            candidate_ids=ranking.item_ids, explain=explain, by_score=True,
        )  # fmt: skip
        answer = await desk.rank(wanted, ranking.request_id)
        desk.tally.left_out(answer.degraded)
        features = {str(i.item_id): i.predictions or {} for i in answer.items}
        items = []
        for item_id, score in _in_order(desk, answer, ranking.item_ids):
            told: dict[str, Any] = {"item": str(item_id), "score": score}
            if explain:
                told["features"] = metarank.fields_out(features.get(str(item_id), {}))
            items.append(told)
        return json({"took": _took_ms(began_s), "items": items})


def _in_order(desk: SharedHandlers, answer: asked.Answer, given: Sequence[str]) -> Scored:
    """The list as it was logged, then what was ranked beyond it, then what isn't known: nothing that was
    given is missing but what was removed. What isn't known has the lowest score of all, or 0."""
    ranked, catalogue = answer.candidates, desk.service.replica.catalogue
    assert ranked is not None
    final_N = np.nan_to_num(ranked.final_N, nan=-1e9)
    scores = {str(catalogue.ids[i]): float(s) for i, s in zip(ranked.indices, final_N, strict=True)}
    logged = [str(item.item_id) for item in answer.items]
    beyond = sorted(scores.keys() - set(logged), key=lambda item_id: -scores[item_id])
    unknown = [item_id for item_id in given if catalogue.index_of(item_id) is None]
    least = min([0.0, *scores.values()])
    found: Scored = [(item_id, scores[item_id]) for item_id in (*logged, *beyond)]
    return found + [(item_id, least) for item_id in unknown]


def _add_recommend(router: APIRouter, desk: SharedHandlers) -> None:
    service = desk.service

    @router.post("/recommend/{model}")
    async def recommend(model: Model, request: Request) -> Response:
        """Near ``items`` where some are given; else for ``user``; else what is popular."""
        began_s = time.perf_counter()
        raw = object_of(await desk.body(request), "")
        count, user_id = _count(raw), optional_id(raw, "user", "")
        items = list_of(raw.get("items") or [], "items")
        if not all(isinstance(one, str) for one in items):
            raise Rejected("items", items, "a list of ids, as texts")
        if items:
            scored = lists.near(service.replica, items, count) or []
        elif user_id is None:
            scored = lists.popular(service.replica, count, (), "")
        else:
            answer = await service.recommend(asked.Request(user_id, count, model))
            desk.tally.left_out(answer.degraded)
            scored = [(item.item_id, item.score or 0.0) for item in answer.items]
        found = [{"item": str(item_id), "score": score} for item_id, score in scored]
        return json({"took": _took_ms(began_s), "items": found})


def _count(raw: Raw) -> int:
    count = raw.get("count", 10)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise Rejected("count", count, f"a whole number, 1 to {MOST}")
    return count


def _took_ms(began_s: float) -> int:
    return round((time.perf_counter() - began_s) * 1000)
