"""Writes a simulated log of a news page: ``python -m examples.news.make_log FOLDER``.

Beside ``events.jsonl.gz`` and ``app.yaml`` it writes ``truth.parquet``: the click probability of every shown
article, for an oracle.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from examples.log_folder import write_log
from examples.news.news_world import NewsWorld


def make_log(folder: Path, world: NewsWorld) -> None:
    """Writes the log of a world."""
    write_log(folder, world.events(), Path(__file__).with_name("app.yaml"))
    rows = [asdict(truth) for truth in world.truth]
    pq.write_table(pa.Table.from_pylist(rows), folder / "truth.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a simulated log of a news page.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--hours", type=int, default=96)
    parser.add_argument("--visits-per-h", type=float, default=48.0)
    args = parser.parse_args()
    world = NewsWorld(args.seed, args.users, args.hours, visits_per_h=args.visits_per_h)
    make_log(args.folder, world)


if __name__ == "__main__":
    main()
