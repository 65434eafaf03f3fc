"""Routes that plug-ins add to the API: entry points of the group ``recsys.routes``, by ``serve.routes``.

A plug-in is a function ``(added, service, metrics)``, called once for the app of a replica, which fills
``added``. Its endpoints find their caller with ``serving.access.access_layer.caller_of``. A router with a
lifespan ends before the service stops.
"""

from dataclasses import dataclass, field

from fastapi import APIRouter

from recsys import plugins
from serving.http.serving_metrics import ServingMetrics
from serving.http.strict_json import StrictRoute
from serving.service import Service


@dataclass
class AddedRoutes:
    """Routes, and how calls of them are admitted.

    ``scopes``: patterns of "METHOD /path", each with the scope that it needs; the first match decides, after
    the system's own, and a route without one needs the admin key. Paths of ``lists``, ``events`` and
    ``others`` are limited as the system's own lists, events and other routes; a path in none has no limit.
    ``lists`` and ``others`` are beginnings. ``health``: probes, which have no limit and may name any host.

    The API's description gives each the refusals of the system's own routes; ``responses`` of a route adds
    others.
    """

    router: APIRouter = field(default_factory=lambda: APIRouter(route_class=StrictRoute))
    scopes: list[tuple[str, str]] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def load_routes(service: Service, metrics: ServingMetrics) -> AddedRoutes:
    """Routes of all plug-ins of the service's configuration. Raises ValueError."""
    added = AddedRoutes()
    for name in service.config.route_plugins:
        plugins.load(plugins.ROUTES, name)(added, service, metrics)
    return added
