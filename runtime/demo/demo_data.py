"""What the demo is warmed up with: a data set that is at hand or can be fetched, else the simulated world."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import recsys
from replay.datasets.open_dataset import open_dataset
from replay.simulation import warmup_data as pasts
from replay.simulation.warmup_data import WarmupData
from runtime.cli import data

WORLD: Final = "world"  # RECSYS_DATA=world: no data set, also where one is at hand
LIMIT: Final = 40_000  # impressions: what two cores learn in a few minutes with all parts running
_BESIDE: Final = Path("..") / "shared" / "data" / "kuairand"  # of the repository

Fetch = Callable[[Path], object]


def choose(
    now_ms: int,
    limit: int = LIMIT,
    *,
    named: str | None = None,
    root: Path | None = None,
    fetch: Fetch = lambda folder: data.fetch_with_bar(data.KUAIRAND, folder),
) -> tuple[WarmupData, str]:
    """The past, and why it is this one. ``named`` is RECSYS_DATA, ``root`` the repository.

    Raises DataError where the folder that was named can't be read.
    """
    named = os.environ.get("RECSYS_DATA", "") if named is None else named
    if named == WORLD:
        return pasts.warmup_from_world(now_ms), "the simulated world, as RECSYS_DATA says"
    if named:
        return pasts.warmup_from_dataset(
            open_dataset(named), limit
        ), f"{named}, as RECSYS_DATA says"
    root = root or Path(recsys.__file__).resolve().parent.parent
    for folder in (root / _BESIDE, data.FOLDER):
        if folder.is_dir() and any(folder.iterdir()):
            past = pasts.warmup_from_dataset(open_dataset(folder), limit)
            return past, f"{past.name} in {os.path.relpath(folder)}"
    try:
        fetch(data.FOLDER)
    except data.NotFetched as error:
        return pasts.warmup_from_world(now_ms), f"the simulated world: {error}"
    past = pasts.warmup_from_dataset(open_dataset(data.FOLDER), limit)
    return past, f"{past.name}, fetched into {data.FOLDER}. {data.LICENCE}"
