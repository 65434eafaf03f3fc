"""Warm-up: appends past events to a new system's log, so that its parts have learned them before viewers
come.

The events are written as the server would have written them (feature_replay.py), shifted so that the
last one happens now; the real parts fold, join and learn them like any others. ``state/warmup.json`` keeps
the progress, so that a warm-up that was killed goes on without duplicates.

It must finish before anybody is served: once event time has moved on, windows of the past close at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Final

import msgspec

from examples.short_video.feature_replay import FeatureReplay
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.event_types import Event, Impression, Item
from recsys.events.field_schema import Schema
from recsys.events.records import EVENTS, ITEMS, record_of
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from recsys.process.part_process import owned_folder, write_atomically

FILE: Final = "warmup.json"
BATCH: Final = 1_000  # records in one append


@dataclass(frozen=True)
class WarmupData:
    """Events to warm a system up with. ``events`` may be called again and returns the same events.

    ``last_ms``: time of the last event, on the data's own clock.
    """

    name: str
    schema: Schema
    last_ms: int
    impressions: int
    events: Callable[[], Iterator[Event]]


class Progress(msgspec.Struct):
    """Content of ``state/warmup.json``. ``items`` and ``events`` count the records on the log."""

    source: str
    now_ms: int  # time of the last event after the shift
    expected: int = 0  # impressions
    impressions: int = 0
    items: int = 0
    events: int = 0
    done: bool = False


def warm_up(
    log: Log,
    features: FeatureSet,
    config: Config,
    data: WarmupData,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Appends the missing records, a thousand at a time; does nothing when done. Call ``begin`` before."""
    state = Path(config.state)
    progress = read_progress(state)
    if progress is None or progress.source != data.name:
        raise ValueError(
            f"{state / FILE} is about {progress.source if progress else None!r}, expected "
            f"{data.name!r}: a folder is warmed up once, with one past; use another (--state)"
        )
    if progress.done:
        return progress
    served = FeatureReplay(features, config.sessions.seen, progress.now_ms - data.last_ms)
    skip = {ITEMS: progress.items, EVENTS: progress.events}
    events = (event for past_event in data.events() for event in served.play(past_event))
    for topic, run in groupby(events, lambda event: ITEMS if isinstance(event, Item) else EVENTS):
        skipped = sum(1 for _ in islice(run, skip[topic]))
        skip[topic] -= skipped
        while batch := list(islice(run, BATCH)):
            log.append(topic, [record_of(event, config.log.partitions) for event in batch])
            progress.items += len(batch) if topic == ITEMS else 0
            progress.events += len(batch) if topic == EVENTS else 0
            progress.impressions += sum(isinstance(event, Impression) for event in batch)
            write_progress(state, progress)
            report(progress)
    progress.done = True
    write_progress(state, progress)
    return progress


def begin(state: Path, data: WarmupData, now_ms: int | None = None) -> Progress:
    """Marks a state folder for warm-up: simulated viewers wait until it is done."""
    now_ms = machine_ms() if now_ms is None else now_ms
    progress = Progress(data.name, now_ms, data.impressions)
    write_progress(state, progress)
    return progress


def read_progress(state: Path) -> Progress | None:
    """Progress of a warm-up; None when none was begun."""
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=Progress)
    except FileNotFoundError:
        return None


def write_progress(state: Path, progress: Progress) -> None:
    owned_folder(state)
    write_atomically(state / FILE, msgspec.json.encode(progress))


def pending(state: Path) -> bool:
    """Whether a warm-up was begun and isn't done."""
    progress = read_progress(state)
    return progress is not None and not progress.done
