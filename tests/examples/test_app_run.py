"""The example apps without a system: tables that their definitions read, pages, and the order of commands."""

import re
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
from recsys.config.system_config import ServeConfig
from recsys.events.event_types import Engagement, Impression, Item
from replay.datasets.open_dataset import open_dataset
from tests.support.paths import ROOT
from tests.support.serving.service_harness import World, run

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


@pytest.mark.parametrize("app", [NEWS, SHOP], ids=lambda app: app.name)
def test_the_page_and_its_files_are_served_to_everybody(tmp_path: Path, app: ExampleApp) -> None:
    async def scenario(w: World) -> None:
        page = await w.client.get(f"/{app.name}/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        for name in re.findall(r'(?:src|href)="([\w.]+)"', page.text):
            assert (await w.client.get(f"/{app.name}/{name}")).status_code == 200, name
        lost = await w.client.get(f"/{app.name}/nothing.js")
        assert lost.status_code == 404 and "nothing.js" in lost.json()["error"]
        assert (await w.client.get(f"/{app.name}/..%2Fapp.yaml")).status_code in (401, 404)

    run(World(tmp_path, serve=ServeConfig(routes=(app.routes,))), scenario)


def test_pages_need_no_other_host() -> None:
    for folder in ("page", "news/page", "shop/page"):
        for file in (ROOT / "examples" / folder).iterdir():
            assert not re.search(r"https?://", file.read_text()), file


def test_similar_products_are_a_list_whose_clicks_count(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        listed = (await w.client.get("/shop/similar/v3?user_id=u1")).json()
        ids = [item["item_id"] for item in listed["items"]]
        assert len(ids) == 8 and "v3" not in ids
        await w.written()
        (impression,) = (e for e in w.events() if isinstance(e, Impression))
        assert (impression.request_id, impression.surface) == (listed["request_id"], "similar")
        click = {
            "type": "engagement", "kind": "like", "user_id": "u1", "item_id": ids[0],
            "time_ms": w.now_ms, "request_id": listed["request_id"], "token": listed["token"],
        }  # fmt: skip
        receipt = (await w.client.post("/v1/events", json={"events": [click]})).json()
        assert (receipt["accepted"], receipt["unproven"]) == (1, 0)
        assert (await w.client.get("/shop/similar/nothing?user_id=u1")).status_code == 404
        long = await w.client.get(f"/shop/similar/v3?user_id={'u' * 257}")
        assert long.status_code == 422 and "user_id" in long.text

    run(World(tmp_path, serve=ServeConfig(routes=(SHOP.routes,))), scenario)


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
