"""Tables of a simulated news page whose newest articles are of this hour: slates, articles and readers."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from examples.app_run import Rows
from examples.hashed_draws import draws
from examples.news.news_world import NewsWorld
from recsys.client import Client
from recsys.events.event_types import Engagement, Impression, Item, User

HOUR_MS: Final = 3_600_000
LIFE_MS: Final = 24 * HOUR_MS
FILES: Final[Mapping[str, Any]] = {
    "interactions": {
        "files": ["slates.csv"], "user": "user_id", "item": "item_id", "time": "time_ms", "unit": "ms",
        "request": "request_id", "labels": {"click": "click"},
    },
    "items": {
        "files": ["articles.csv"], "id": "item_id", "time": "published", "unit": "ms",
        "fields": {name: name for name in ("category", "author", "title", "published")},
    },
    "users": {"files": ["readers.csv"], "id": "user_id", "fields": {"region": "region"}},
}  # fmt: skip
_OPENINGS: Final = ("New plan for", "Doubts about", "A year of", "What follows", "Dispute over", "Record for")
_TOPICS: Final = {
    "politics": ("the budget", "the vote", "the coalition"),
    "world": ("the summit", "the border", "the treaty"),
    "business": ("the harbour", "interest rates", "the merger"),
    "sports": ("the cup", "the derby", "the relay"),
    "culture": ("the opera", "the festival", "the museum"),
    "science": ("the probe", "the reef", "the vaccine"),
    "local": ("the tram", "the market hall", "the bridge"),
    "technology": ("the chip", "the network", "the robot"),
}


def tables(world: NewsWorld) -> dict[str, Rows]:
    """Rows by file. Articles of the days before are among them: their clicks are learned from."""
    events = world.events()
    clicked = {(e.request_id, e.item_id) for e in events if isinstance(e, Engagement)}
    slates = [
        {"user_id": e.user_id, "item_id": item.item_id, "time_ms": e.time_ms, "request_id": e.request_id,
         "click": int((e.request_id, item.item_id) in clicked)}
        for e in events if isinstance(e, Impression) for item in e.items
    ]  # fmt: skip
    articles = [
        {"item_id": e.item_id, "published": e.time_ms, **e.fields, "title": title(e)}
        for e in events
        if isinstance(e, Item) and not e.removed
    ]
    readers = [{"user_id": e.user_id, **e.fields} for e in events if isinstance(e, User)]
    return {"slates.csv": slates, "articles.csv": articles, "readers.csv": readers}


def title(article: Item) -> str:
    """A headline of the article's category."""
    opening, topic = draws(0, 2, "title", article.item_id)
    topics = _TOPICS[article.fields["category"]]
    return f"{_OPENINGS[int(opening * len(_OPENINGS))]} {topics[int(topic * len(topics))]}"


def remove_old(client: Client, folder: Path) -> None:
    """Removes articles a day older than the newest, as the page's editors do; on a later day the same."""
    with (folder / "articles.csv").open(encoding="utf-8", newline="") as file:
        published = {row["item_id"]: int(row["published"]) for row in csv.DictReader(file)}
    oldest_ms = max(published.values()) - LIFE_MS
    for item_id, published_ms in published.items():
        if published_ms < oldest_ms:
            client.delete_item(item_id)
