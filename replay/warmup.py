"""Warm-up: appends past events to a new system's log, so that its parts have learned them before viewers
come.

The events are written as the server would have written them (``replay.feature_replay``), shifted so that the
last one happens now; the real parts fold, join and learn them like any others. ``state/warmup.json`` keeps
the progress, so that a warm-up that was killed goes on without duplicates.

It must finish before anybody is served: once event time has moved on, windows of the past close at once.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from recsys.config.system_config import Config
from recsys.events.event_types import Event, Impression, Item, encode
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS, ITEMS
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append, Log
from recsys.process.part_process import write_atomically
from replay.feature_replay import FeatureReplay
from replay.simulation.warmup_data import WarmupData

FILE: Final = "warmup.json"
BATCH: Final = 1_000  # records in one append


class Progress(msgspec.Struct):
    """Content of ``state/warmup.json``. ``items`` and ``events`` count the records on the log."""

    source: str
    now_ms: int  # time of the last event after the shift
    expected: int = 0  # impressions
    impressions: int = 0
    items: int = 0
    events: int = 0
    done: bool = False


class Warmup:
    """Appends warm-up data to a log in order, a thousand records at a time."""

    def __init__(self, log: Log, features: FeatureSet, config: Config) -> None:
        self._log, self._features, self._config = log, features, config
        self._state = Path(config.state)

    def run(
        self, data: WarmupData, tell: Callable[[Progress], None] = lambda progress: None
    ) -> Progress:
        """Appends the missing records; does nothing when done. Call ``begin`` before."""
        progress = read_progress(self._state)
        if progress is None or progress.source != data.name:
            raise ValueError(
                f"{self._state / FILE} is about {progress.source if progress else None!r}, expected "
                f"{data.name!r}: a folder is warmed up once, with one past; use another (--state)"
            )
        if not progress.done:
            self._append(data, progress, tell)
            progress.done = True
            write_progress(self._state, progress)
        return progress

    def _append(
        self, data: WarmupData, progress: Progress, tell: Callable[[Progress], None]
    ) -> None:
        shift_ms = progress.now_ms - data.last_ms
        served = FeatureReplay(self._features, self._config.sessions.seen, shift_ms)
        skip = {ITEMS: progress.items, EVENTS: progress.events}
        waiting: list[Event] = []
        topic = ITEMS

        def flush() -> None:
            if waiting:
                self._log.append(topic, [self._record(event) for event in waiting])
                progress.items += len(waiting) if topic == ITEMS else 0
                progress.events += len(waiting) if topic == EVENTS else 0
                progress.impressions += sum(isinstance(event, Impression) for event in waiting)
                write_progress(self._state, progress)
                tell(progress)
                waiting.clear()

        for past_event in data.events():
            for event in served.play(past_event):
                event_topic = ITEMS if isinstance(event, Item) else EVENTS
                if skip[event_topic] > 0:
                    skip[event_topic] -= 1
                    continue
                if event_topic != topic or len(waiting) >= BATCH:
                    flush()
                topic = event_topic
                waiting.append(event)
        flush()

    def _record(self, event: Event) -> Append:
        if isinstance(event, Item):
            return Append(0, str(event.item_id).encode(), encode(event))
        user_id = event.user_id  # type: ignore[union-attr]
        partition = partition_of(user_id, self._config.log.partitions)
        return Append(partition, str(user_id).encode(), encode(event))


def begin(state: Path, data: WarmupData, now_ms: int | None = None) -> Progress:
    """Marks a state folder for warm-up: simulated viewers wait until it is done."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
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
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(state / FILE, msgspec.json.encode(progress))


def pending(state: Path) -> bool:
    """Whether a warm-up was begun and isn't done."""
    progress = read_progress(state)
    return progress is not None and not progress.done
