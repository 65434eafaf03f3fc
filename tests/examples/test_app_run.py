"""The example apps without a system: tables that their definitions read, and the order of commands."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples import app_run
from examples.app_run import ExampleApp, write_folder
from examples.news import __main__ as news
from examples.news import tables as news_tables
from examples.news.news_world import NewsWorld
from examples.shop import __main__ as shop
from examples.shop import tables as shop_tables
from examples.shop.shop_world import ShopWorld
from recsys.app.app_file import read_app
from recsys.events.event_types import Engagement, Impression, Item
from replay.datasets.open_dataset import open_dataset

START_MS = 1_790_000_000_000
NEWS = replace(news.APP, tables=lambda: news_tables.tables(NewsWorld(users=20, hours=3, start_ms=START_MS)))
SHOP_WORLD = ShopWorld(
    users=40, clicks=600, hours=4, items=100, clusters=10, categories=True, start_ms=START_MS
)
SHOP = replace(shop.APP, tables=lambda: shop_tables.tables(SHOP_WORLD))


def events_of(app: ExampleApp, folder: Path) -> list[Any]:
    write_folder(app, folder)
    definition = folder / "app.yaml"
    dataset = open_dataset(folder, read_app(definition), definition)
    events = list(dataset.events())
    assert not dataset.dead_letters
    return events


def test_tables_of_news_are_slates_with_clicks(tmp_path: Path) -> None:
    events = events_of(NEWS, tmp_path)
    slates = [event for event in events if isinstance(event, Impression)]
    clicks = [event for event in events if isinstance(event, Engagement)]
    assert max(len(slate.items) for slate in slates) == 12 and clicks
    shown = {(slate.request_id, item.item_id) for slate in slates for item in slate.items}
    assert {(click.request_id, click.item_id) for click in clicks} <= shown
    articles = [event for event in events if isinstance(event, Item)]
    assert all(set(a.fields) == {"category", "author", "title", "published"} for a in articles)


def test_tables_of_the_shop_are_clicks_and_purchases(tmp_path: Path) -> None:
    events = events_of(SHOP, tmp_path)
    kinds = {event.kind for event in events if isinstance(event, Engagement)}
    assert kinds == {"click", "purchase"}
    assert not [event for event in events if isinstance(event, Impression)]
    products = [event for event in events if isinstance(event, Item)]
    assert all(set(p.fields) == {"category", "title", "price"} for p in products)


def test_articles_a_day_older_than_the_newest_are_removed(tmp_path: Path) -> None:
    write_folder(NEWS, tmp_path)
    removed: list[str] = []

    class Editor:
        delete_item = staticmethod(removed.append)

    news_tables.remove_old(Editor(), tmp_path)  # type: ignore[arg-type]
    articles = {row["item_id"]: row["published"] for row in NEWS.tables()["articles.csv"]}
    old = {n for n, ms in articles.items() if ms < max(articles.values()) - news_tables.LIFE_MS}
    assert set(removed) == old < set(articles)


def test_data_are_imported_once_and_the_system_always_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def record(self: object, *arguments: str) -> None:
        ran.append(arguments[0])
        if arguments[0] == "import":
            (tmp_path / "state/run").mkdir(parents=True)
            (tmp_path / "report.json").touch()
            (tmp_path / "state/run/admin.key").write_text("key")

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app_run._Commands, "__call__", record)
    monkeypatch.setattr("examples.app_run.signal.pause", interrupt)
    for _ in range(2):
        app_run.run(SHOP, tmp_path, 1)
    assert ran == ["import", "up", "down", "up", "down"]


def test_an_import_that_was_stopped_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def record(self: object, *arguments: str) -> None:
        ran.append(arguments[0])
        if arguments[0] == "import":
            (tmp_path / "state").mkdir()  # fails if it is there still
            (tmp_path / "state/app.yaml").touch()
            raise KeyboardInterrupt if len(ran) == 1 else subprocess.CalledProcessError(3, "recsys")

    monkeypatch.setattr(app_run._Commands, "__call__", record)
    app_run.run(SHOP, tmp_path, 1)
    with pytest.raises(SystemExit, match="3"):
        app_run.run(SHOP, tmp_path, 1)
    assert ran == ["import", "down", "import", "down"]
