"""Simulated logs that the league makes: a grocery, a news page and a shop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.studies.league import basket_world
from benchmarks.studies.league.basket_world import BasketWorld
from examples.news.make_log import make_log as make_news
from examples.news.news_world import NewsWorld
from examples.shop.make_log import make_log as make_shop
from examples.shop.shop_world import ShopWorld
from runtime.cli.data.import_files import init


def _baskets(folder: Path, seed: int) -> None:
    """Tables, with the definition that ``recsys init`` guesses."""
    BasketWorld(seed).write(folder)
    init([folder / name for name in basket_world.FILES], folder / "app.yaml")


LOGS: Final[Mapping[str, Callable[[Path, int], None]]] = {
    "baskets": _baskets,
    "news": lambda folder, seed: make_news(folder, NewsWorld(seed, 300, 96, visits_per_h=48.0)),
    "shop": lambda folder, seed: make_shop(folder, ShopWorld(seed, 1600, 40_000)),
}
