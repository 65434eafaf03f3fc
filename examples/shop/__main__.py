"""The shop as a running app: ``python -m examples.shop [FOLDER]``."""

from pathlib import Path
from typing import Final

from examples.app_run import ExampleApp, Rows, main
from examples.shop.shop_world import ShopWorld
from examples.shop.tables import FILES, HOUR_MS, tables
from recsys.clock import machine_ms

HOURS: Final = 24


def made() -> dict[str, Rows]:
    """The tables of a day that ends now."""
    start_ms = machine_ms() - HOURS * HOUR_MS
    return tables(
        ShopWorld(
            users=800, clicks=20_000, hours=HOURS, items=600, clusters=24, categories=True, start_ms=start_ms
        )
    )


APP: Final = ExampleApp(
    name="shop", definition=Path(__file__).with_name("app.yaml"), tables=made, files=FILES, learn=10_000
)

if __name__ == "__main__":
    main(APP)
