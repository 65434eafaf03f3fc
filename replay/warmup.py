"""Warm-up: a past is played into a system's own log, so that its parts have learned it when people come.

The events are written as the server would have written them (``replay.feature_replay``), shifted so that the last
of them happened just now; the real parts fold, join and learn them like any others. ``state/warmup.json``
says how far it has come, so that what a killed warm-up had written isn't written again.

It must come before anybody is served: once event time has moved on, windows of the past close at once.
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
from replay.feature_replay import AsServed
from replay.simulation.warmup_data import Past

FILE: Final = "warmup.json"
BATCH: Final = 1_000  # records in one append


class Progress(msgspec.Struct):
    """What ``state/warmup.json`` says. ``items`` and ``events`` are the records that stand on the log."""

    source: str
    now_ms: int  # the time that the past was shifted to
    expected: int = 0  # impressions
    impressions: int = 0
    items: int = 0
    events: int = 0
    done: bool = False


class Warmup:
    """Appends a past to a log, in order, a thousand records at a time."""

    def __init__(self, log: Log, features: FeatureSet, config: Config) -> None:
        self._log, self._features, self._config = log, features, config
        self._state = Path(config.state)

    def run(self, past: Past, tell: Callable[[Progress], None] = lambda progress: None) -> Progress:
        """Appends what isn't there yet; ``begin`` comes before. Nothing, where it is done."""
        progress = read_progress(self._state)
        if progress is None or progress.source != past.name:
            raise ValueError(
                f"{self._state / FILE} is about {progress.source if progress else None!r}, expected "
                f"{past.name!r}: a folder is warmed up once, with one past; use another (--state)"
            )
        if not progress.done:
            self._append(past, progress, tell)
            progress.done = True
            write_progress(self._state, progress)
        return progress

    def _append(self, past: Past, progress: Progress, tell: Callable[[Progress], None]) -> None:
        shift_ms = progress.now_ms - past.last_ms
        served = AsServed(self._features, self._config.sessions.seen, shift_ms)
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

        for past_event in past.events():
            for event in served.play(past_event):
                its = ITEMS if isinstance(event, Item) else EVENTS
                if skip[its] > 0:
                    skip[its] -= 1
                    continue
                if its != topic or len(waiting) >= BATCH:
                    flush()
                topic = its
                waiting.append(event)
        flush()

    def _record(self, event: Event) -> Append:
        if isinstance(event, Item):
            return Append(0, str(event.item_id).encode(), encode(event))
        user_id = event.user_id  # type: ignore[union-attr]
        partition = partition_of(user_id, self._config.log.partitions)
        return Append(partition, str(user_id).encode(), encode(event))


def begin(state: Path, past: Past, now_ms: int | None = None) -> Progress:
    """Notes that a state folder is to be warmed up: until it is, simulated viewers wait."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    progress = Progress(past.name, now_ms, past.impressions)
    write_progress(state, progress)
    return progress


def read_progress(state: Path) -> Progress | None:
    """How far a warm-up has come; None where none was begun."""
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
