"""The news page as a running app: ``python -m examples.news [FOLDER]``."""

from pathlib import Path
from typing import Final

from examples.app_run import ExampleApp, Rows, main
from examples.news.news_world import NewsWorld
from examples.news.tables import FILES, HOUR_MS, remove_old, tables
from recsys.clock import machine_ms

HOURS: Final = 48


def made() -> dict[str, Rows]:
    """The tables of two days that end now."""
    start_ms = machine_ms() - HOURS * HOUR_MS
    return tables(NewsWorld(hours=HOURS, start_ms=start_ms))


APP: Final = ExampleApp(
    name="news",
    definition=Path(__file__).with_name("app.yaml"),
    tables=made,
    files=FILES,
    learn=10_000,
    prepare=remove_old,
)

if __name__ == "__main__":
    main(APP)
