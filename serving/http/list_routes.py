"""Routes of lists: ranked for a user, and the same for all viewers."""

import time
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response

from experiments.assignment.policy import LENGTH
from recsys.events.field_schema import check_fields
from serving import request as values
from serving.access.access_layer import caller_of
from serving.access.caller import Caller
from serving.filters.conditions import check_filters
from serving.http import api_models as models
from serving.http.problems import PROBLEMS, UNKNOWN_ITEM
from serving.http.results import checked_id
from serving.http.serving_metrics import ServingMetrics
from serving.http.strict_json import json_response
from serving.item_lists import Order, latest, popular, trending
from serving.problem import Unavailable
from serving.service import Service


def add_ranking_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    """Adds lists for one user."""

    @app.post("/v1/recommend", response_model=models.RecommendOut, responses=PROBLEMS)
    async def recommend(request: Request, body: models.RecommendIn) -> Response:
        """Items for a user, ranked by the freshest model."""
        n = body.n or service.live.control.policies.lengths.get(body.surface, LENGTH)
        return await answered(caller_of(request.scope), _request_of(body, n))

    @app.post("/v1/rank", response_model=models.RecommendOut, responses=PROBLEMS)
    async def rank(request: Request, body: models.RankIn) -> Response:
        """The caller's candidates for a user, best first. `warnings` names those that aren't in the list."""
        return await answered(caller_of(request.scope), _request_of(body, body.n), body.log)

    async def answered(caller: Caller, request: values.Request, logged: bool = True) -> Response:
        began_s = time.perf_counter()
        check_fields(service.features.schema, "context", request.context, "context")
        check_filters(service.features, request.filters)
        service.callers.check_list(caller, request.user_id)
        if caller.user_id is not None:  # a browser may not claim another age or country
            for name in service.config.safety.viewer_fields:
                request.context.pop(name, None)
        answer = await service.recommend(request, logged=logged, caller=caller)
        metrics.count_degraded(answer.degraded)
        # A list of the caller's own items proves nothing, unless the caller needs no proof.
        has_token = logged and (request.candidate_ids is None or caller.attributes)
        return json_response(
            _answer_out(answer, service.tokens.of(answer, request, caller) if has_token else "", began_s)
        )


def add_list_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    """Adds lists that are the same for all viewers."""
    lists = service.lists

    async def checked(request: Request, query: Annotated[models.ListQuery, Query()]) -> models.ListQuery:
        if not service.live.followers.ready:
            raise Unavailable(service.unready)
        caller = caller_of(request.scope)
        if caller.user_id is not None:
            service.callers.check_list(caller, caller.user_id)
        check_filters(service.features, query.filters)
        return query

    Checked = Annotated[models.ListQuery, Depends(checked)]

    def answered(items: list[values.AnswerItem], degraded: list[str]) -> Response:
        metrics.count_degraded(degraded)
        return json_response({"items": items, "degraded": degraded})

    def add(order: Order) -> None:
        async def listed(query: Checked) -> Response:
            return answered(lists.ordered(order, query.n, query.filters), [])

        app.add_api_route(
            f"/v1/{order.__name__}", listed, name=order.__name__, description=order.__doc__,
            response_model=models.ItemListOut, responses=PROBLEMS,
        )  # fmt: skip

    for order in (popular, latest, trending):
        add(order)

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=models.ItemListOut,
        responses=PROBLEMS | UNKNOWN_ITEM,
    )
    async def similar(item_id: str, query: Checked) -> Response:
        """Items nearest to one, by the cosine of their vectors."""
        try:
            items, missing = await lists.similar(query.n, query.filters, checked_id(item_id, "item_id"))
        except KeyError:
            raise HTTPException(404, f"item_id is {item_id!r}, and there is no such item") from None
        return answered(items, ["retrieval"] * missing)


def _request_of(body: models.RecommendIn | models.RankIn, n: int) -> values.Request:
    given = None if body.candidate_ids is None else tuple(body.candidate_ids)
    fields = dict(body) | {"exclude_ids": tuple(body.exclude_ids), "candidate_ids": given, "n": n}
    plain, by_score = not fields.pop("profiling"), not fields.pop("explore", True)
    fields.pop("log", None)
    return values.Request(**fields, plain=plain, by_score=by_score)


def _answer_out(answer: values.Answer, token: str, began_s: float) -> dict[str, Any]:
    return {
        "request_id": answer.request_id, "token": token, "items": answer.items, "stamp": answer.stamp,
        "took_ms": round((time.perf_counter() - began_s) * 1000, 3), "degraded": answer.degraded,
        "warnings": [{"item_id": item_id, "why": why} for item_id, why in answer.left_out.items()],
    }  # fmt: skip
