"""Writes a simulated log of a shop's clicks and purchases: ``python -m examples.shop.make_log FOLDER``."""

import argparse
from pathlib import Path

from examples.log_folder import write_log
from examples.shop.shop_world import ShopWorld


def make_log(folder: Path, world: ShopWorld) -> None:
    """Writes the log of a world."""
    write_log(folder, world.events(), Path(__file__).with_name("app.yaml"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a simulated log of a shop.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--clicks", type=int, default=100_000)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--categories", action="store_true", help="items name their cluster")
    args = parser.parse_args()
    world = ShopWorld(args.seed, args.users, args.clicks, hours=args.hours, categories=args.categories)
    make_log(args.folder, world)


if __name__ == "__main__":
    main()
