"""Chooses the demo's warm-up data: a data set at hand or downloaded, else the simulated world."""

import os
from importlib import import_module
from pathlib import Path
from typing import Final

import recsys
from replay.datasets.dataset import DataError
from replay.datasets.open_dataset import open_dataset
from replay.simulation.warmup_data import WarmupData, warmup_from_dataset, warmup_from_world

WORLD: Final = "world"  # RECSYS_DATA=world: the simulated world, even with a data set at hand
LIMIT: Final = 40_000  # impressions that two cores learn in a few minutes with all parts running
FOLDER: Final = Path("data/kuairand")
_DOWNLOAD: Final = "examples.kuairand.download"
_BESIDE: Final = Path(recsys.__file__).resolve().parents[2] / "shared" / "data" / "kuairand"


def choose(now_ms: int, limit: int = LIMIT) -> tuple[WarmupData, str]:
    """Returns the data and the reason for the choice. Raises DataError where RECSYS_DATA can't be read."""
    named = os.environ.get("RECSYS_DATA", "")
    if named == WORLD:
        return warmup_from_world(now_ms), "the simulated world, as RECSYS_DATA says"
    if named:
        data = warmup_from_dataset(open_dataset(named), limit)
        return data, f"{named}, as RECSYS_DATA says"
    for folder in (_BESIDE, FOLDER):
        if folder.is_dir() and any(folder.iterdir()):
            data = warmup_from_dataset(open_dataset(folder), limit)
            return data, f"{data.name} in {os.path.relpath(folder)}"
    notes: list[str] = []
    try:
        import_module(_DOWNLOAD).fetch_kuairand(FOLDER, notes.append)
        data = warmup_from_dataset(open_dataset(FOLDER), limit)
    except ModuleNotFoundError as error:
        why = f"KuaiRand's reader needs a checkout and polars: there is no {error.name}"
        return warmup_from_world(now_ms), f"the simulated world: {why}"
    except (RuntimeError, DataError) as error:
        return warmup_from_world(now_ms), f"the simulated world: {error}"
    return data, f"{data.name}, fetched into {FOLDER}. {' '.join(notes)}"
