"""The plug-in: adds the routes that ``compat.gorse`` and ``compat.metarank`` turn on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from plugins.gorse_and_metarank import gorse_routes, metarank_routes
from plugins.gorse_and_metarank.shared_handlers import SharedHandlers
from serving.http.added_routes import AddedRoutes
from serving.http.serving_metrics import ServingMetrics
from serving.service import Service


def add_routes(added: AddedRoutes, service: Service, metrics: ServingMetrics) -> None:
    """Adds the routes of one replica's app. Delayed write-backs are written before the service stops."""
    handlers, compat = SharedHandlers(service, metrics), service.config.compat

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await handlers.write_backs.close()

    router = APIRouter(lifespan=lifespan)
    for is_on, dialect in ((compat.gorse, gorse_routes), (compat.metarank, metarank_routes)):
        if is_on:
            router.include_router(dialect.routes_of(handlers))
            dialect.admit(added)
    added.router.include_router(router)
