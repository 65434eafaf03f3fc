"""Plug-in of the group ``recsys.routes``: the shop's page, and a route of similar products."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException, Request, Response

from examples.page_routes import add_page
from serving import request as values
from serving.access.access_layer import caller_of
from serving.access.scopes import RECOMMEND
from serving.http.added_routes import AddedRoutes
from serving.http.api_models import ProblemOut, Text
from serving.http.serving_metrics import ServingMetrics
from serving.http.strict_json import json_response
from serving.service import Service

PAGE: Final = Path(__file__).with_name("page")
SURFACE: Final = "similar"
SHOWN: Final = 8


def add_routes(added: AddedRoutes, service: Service, metrics: ServingMetrics) -> None:
    """Adds the page and its route of similar products."""
    add_page(added, "shop", PAGE)
    router, lists = APIRouter(), service.lists

    @router.get(
        "/shop/similar/{item_id}", responses={404: {"model": ProblemOut, "description": "No such product"}}
    )
    async def similar(request: Request, item_id: Text, user_id: Text) -> Response:
        """The products nearest to one, ranked for a visitor. Unlike a list of ``/v1/items/…/similar`` it is
        an impression and has a token, so that clicks in it count; of a new account they don't, since it
        chose the list's items by the product."""
        caller = caller_of(request.scope)
        service.callers.check_list(caller, user_id)
        try:
            near, _ = await lists.similar(SHOWN, {}, item_id)
        except KeyError:
            raise HTTPException(404, f"item_id is {item_id!r}, and there is no such item") from None
        ids = tuple(item.item_id for item in near)
        asked = values.Request(user_id, SHOWN, SURFACE, candidate_ids=ids, by_score=True)
        answer = await service.recommend(asked, caller=caller)
        body = {"request_id": answer.request_id, "token": service.tokens.of(answer, asked, caller)}
        return json_response(body | {"items": answer.items})

    added.router.include_router(router)
    added.scopes.append((r"GET /shop/similar/", RECOMMEND))
    added.lists.append("/shop/similar/")
