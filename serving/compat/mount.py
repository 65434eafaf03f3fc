"""Puts the routes of Gorse and Metarank into the app of a replica."""

from collections.abc import Callable

from fastapi import FastAPI, Request, Response

from recsys.events.event_types import Rejected
from serving.compat import gorse_routes, metarank_routes
from serving.compat.shared_handlers import SharedHandlers, PartlyRejected, Tally, json, refusal
from serving.compat.unpersonalized import Unsupported
from serving.service import Service


def mount(app: FastAPI, service: Service, tally: Tally, admin_key: Callable[[], str]) -> SharedHandlers:
    """Adds those that the configuration asks for. The desk is to be closed before the service stops."""
    desk = SharedHandlers(service, tally, admin_key)
    compat = service.config.compat
    if compat.gorse:
        app.include_router(gorse_routes.routes_of(desk))
    if compat.metarank:
        app.include_router(metarank_routes.routes_of(desk))

    @app.exception_handler(Rejected)
    async def unread(_: Request, error: Rejected) -> Response:
        return refusal(error)

    @app.exception_handler(PartlyRejected)
    async def refused(_: Request, error: PartlyRejected) -> Response:
        return refusal(error)

    @app.exception_handler(Unsupported)
    async def absent(_: Request, error: Unsupported) -> Response:
        return json({"error": str(error), "details": []}, 501)

    return desk
