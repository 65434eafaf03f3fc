"""Chooses the demo's warm-up data: a data set at hand or downloaded, else the simulated world."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import recsys
from replay.datasets.open_dataset import open_dataset
from replay.simulation.warmup_data import WarmupData, warmup_from_dataset, warmup_from_world
from runtime.jobs.dataset_download import FOLDER, KUAIRAND, LICENCE, NotFetched, fetch_with_bar

WORLD: Final = "world"  # RECSYS_DATA=world: the simulated world, even with a data set at hand
LIMIT: Final = 40_000  # impressions that two cores learn in a few minutes with all parts running
_BESIDE: Final = Path("..") / "shared" / "data" / "kuairand"  # relative to the repository

Fetch = Callable[[Path], object]


def choose(
    now_ms: int,
    limit: int = LIMIT,
    *,
    named: str | None = None,
    root: Path | None = None,
    fetch: Fetch = lambda folder: fetch_with_bar(KUAIRAND, folder),
) -> tuple[WarmupData, str]:
    """Returns the data and the reason for the choice.

    ``named`` is RECSYS_DATA, ``root`` the repository. Raises DataError where a named folder can't be read.
    """
    named = os.environ.get("RECSYS_DATA", "") if named is None else named
    if named == WORLD:
        return warmup_from_world(now_ms), "the simulated world, as RECSYS_DATA says"
    if named:
        data = warmup_from_dataset(open_dataset(named), limit)
        return data, f"{named}, as RECSYS_DATA says"
    root = root or Path(recsys.__file__).resolve().parent.parent
    for folder in (root / _BESIDE, FOLDER):
        if folder.is_dir() and any(folder.iterdir()):
            data = warmup_from_dataset(open_dataset(folder), limit)
            return data, f"{data.name} in {os.path.relpath(folder)}"
    try:
        fetch(FOLDER)
    except NotFetched as error:
        return warmup_from_world(now_ms), f"the simulated world: {error}"
    data = warmup_from_dataset(open_dataset(FOLDER), limit)
    return data, f"{data.name}, fetched into {FOLDER}. {LICENCE}"
