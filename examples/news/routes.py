"""Plug-in of the group ``recsys.routes``: the news page under ``/news/``."""

from pathlib import Path
from typing import Final

from examples.page_routes import add_page
from serving.http.added_routes import AddedRoutes
from serving.http.serving_metrics import ServingMetrics
from serving.service import Service

PAGE: Final = Path(__file__).with_name("page")


def add_routes(added: AddedRoutes, service: Service, metrics: ServingMetrics) -> None:
    """Adds the page."""
    add_page(added, "news", PAGE)
