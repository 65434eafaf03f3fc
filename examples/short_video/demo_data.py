"""The demo's warm-up data: a data set at hand or downloaded, else a stretch of the simulated world."""

import heapq
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

import recsys
from examples.short_video.dataset_warmup import SURFACE, warmup_from_dataset
from examples.short_video.warmup import WarmupData
from examples.short_video.world import Request, World
from recsys import plugins
from recsys.events.event_types import Engagement, Event, Impression, Item, ServedItem
from recsys.events.hashing import uniforms
from recsys.features.feature_set_file import FEED_SCHEMA
from replay.datasets.open_dataset import open_dataset

CHOICE: Final = "RECSYS_DATA"  # environment variable
WORLD: Final = "world"  # RECSYS_DATA=world: the simulated world, even with a data set at hand
FOLDER: Final = Path("data/kuairand")
_LIST: Final = 8  # items of a list in the simulated world
_BESIDE: Final = Path(recsys.__file__).resolve().parents[2] / "shared" / "data" / "kuairand"


def choose(now_ms: int, limit: int = 0) -> tuple[WarmupData, str]:
    """Returns the data, of a data set the last ``limit`` impressions, and the reason for the choice. Raises
    DataError where RECSYS_DATA can't be read."""
    named = os.environ.get(CHOICE, "")
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
        plugins.load(plugins.DATASETS, "kuairand").fetch(FOLDER, notes.append)
        data = warmup_from_dataset(open_dataset(FOLDER), limit)
    except (RuntimeError, ValueError) as error:
        return warmup_from_world(now_ms), f"the simulated world: {error}"
    return data, f"{data.name}, fetched into {FOLDER}. {' '.join(notes)}"


def warmup_from_world(now_ms: int, requests: int = 3_000, items: int = 2_000, seed: int = 0) -> WarmupData:
    """``requests`` random lists of the simulated world that end now: no model is involved."""
    lists = requests * 1000  # one request a second, more or less: by the time of day
    world = World(seed, items=items, start_ms=now_ms - lists)
    asked = [
        request
        for request, _ in zip(world.next_requests(world.start_ms, now_ms), range(requests), strict=False)
    ]
    last_ms = max(event.time_ms for event in _happened(world, asked))
    return WarmupData(
        "world",
        FEED_SCHEMA,
        last_ms,
        len(asked),
        lambda: iter([*world.items(world.start_ms), *world.users(), *_happened(world, asked)]),
    )


def _happened(world: World, asked: list[Request]) -> Iterator[Event]:
    """Lists, their engagements and newly published items, in time order."""
    later: list[tuple[int, int, Item | Impression | Engagement]] = []
    before_ms, numbers = world.start_ms, 0
    for request in asked:
        for item in world.new_items(before_ms + 1, request.time_ms + 1):
            heapq.heappush(later, (item.time_ms, -1, item))
        before_ms = request.time_ms
        shown = _random_list(world, request)
        ids = [item.item_id for item in shown.items]
        done = world.react(request.user_id, ids, shown.request_id, request.time_ms)
        events: list[Impression | Engagement] = [shown, *done]
        for event in events:
            numbers += 1
            heapq.heappush(later, (event.time_ms, numbers, event))
        while later and later[0][0] <= request.time_ms:
            yield heapq.heappop(later)[2]
    while later:
        yield heapq.heappop(later)[2]


def _random_list(world: World, request: Request) -> Impression:
    """A list drawn without replacement from all items, with its propensities."""
    num_items = world.num_items + max(0, request.time_ms - world.start_ms) // world.publish_every_ms
    request_id = f"past-{request.user_id}-{request.time_ms}"
    draws = uniforms(world.seed, np.arange(num_items, dtype=np.int64) + request.time_ms * 1_000_003, 1)
    chosen = np.argsort(draws[:, 0], kind="stable")[:_LIST].tolist()
    return Impression(
        time_ms=request.time_ms,
        request_id=request_id,
        user_id=request.user_id,
        items=[
            ServedItem(item_id=f"w{index}", propensity=1 / (num_items - rank), sources=["random"])
            for rank, index in enumerate(chosen)
        ],
        surface=SURFACE,
    )
