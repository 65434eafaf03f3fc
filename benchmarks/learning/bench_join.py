"""``recsys bench join``: events per second through the joiner, alone and as the loop over a log in memory.

Impressions of ten items with features of the feed's size, views, likes; some are late, so that corrections
read their impression again, and some are repeated. Also the bytes of a list's impression and examples on the
log, and before they were compressed. The comparator is a join of the whole log at once in
Polars, without event time, repeats or corrections, as in a nightly job. The labels of both must be equal.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.system_config import Config, JoinConfig
from recsys.events.event_types import (
    Engagement,
    Event,
    FeatureBlock,
    Impression,
    ServedItem,
    Tick,
    decode,
    encode,
)
from recsys.events.records import EVENTS, EXAMPLES, Example, record_of, topics, unpack
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.log.compression import plain
from recsys.log.protocol import Append, MemoryLog
from recsys.process.latency_tuning import freeze_gc
from training.joining.joiner import Joiner, Recall
from training.joining.joiner_loop import JoinerLoop

ITEMS: Final = 10  # of an impression
START_MS: Final = 1_700_000_000_000
FEATURES: Final = FeatureSet(FEED_SCHEMA)
CONFIG: Final = Config(join=JoinConfig(window_s=60.0, horizon_s=600.0))
_GAP_MS: Final = 10  # between two impressions: 100 lists a second
_LATE: Final = 0.05  # of the likes come after the window
_TWICE: Final = 0.01  # of the engagements
_FILLED: Final = 0.4  # of the words of features: the feed's are as sparse once histories are full


@dataclass(frozen=True)
class EncodedEvents:
    """Encoded events with their partitions, in time order."""

    records: list[tuple[int, bytes]]

    def __len__(self) -> int:
        return len(self.records)


def measure_join(events: int, seed: int) -> dict[str, Any]:
    """Events per second over at least ``events`` events; raises RuntimeError when the joins differ."""
    written = write_events(draw_events(events, seed))
    core = _core(written)
    loop, busy, labels, sizes = _loop(written)
    batch, polars_labels = _polars(written)
    if labels != polars_labels:
        raise RuntimeError(
            f"{len(labels ^ polars_labels)} labels differ between the joiner and the join of the whole log, "
            "expected none: a bench of wrong labels says nothing"
        )
    return {
        "what": f"{len(written)} events: lists of {ITEMS}, features of the feed, "
        f"{_LATE:.0%} of likes after the window",
        "figures": {"events_per_s": loop, "events_per_cpu_s": busy, "core_events_per_s": core, **sizes},
        "comparators": {"polars_whole_log_at_once": {"events_per_s": batch}},
    }


def draw_events(count: int, seed: int) -> list[Event]:
    """At least ``count`` impressions and engagements in time order, determined by the seed."""
    draw = np.random.default_rng(seed)
    block = _block(draw)
    events: list[Event] = []
    number = 0
    while len(events) < count:
        time_ms, user = START_MS + number * _GAP_MS, f"u{int(draw.integers(5_000))}"
        items = [ServedItem(item_id=f"v{item}") for item in draw.choice(20_000, ITEMS, replace=False)]
        request_id = f"r{number}"
        events.append(
            Impression(time_ms=time_ms, request_id=request_id, user_id=user, items=items, features=block)
        )
        seen, chances = int(draw.integers(1, ITEMS + 1)), draw.random((ITEMS, 4))
        for served, (watched, liked, late, twice) in zip(items[:seen], chances, strict=False):
            time_ms += 200 + int(watched * 4_000)
            done = _engagements(time_ms, request_id, user, served, watched, liked, late)
            events += done + (done[-1:] if twice < _TWICE else [])
        number += 1
    events.sort(key=lambda event: event.time_ms)
    return events


def _engagements(
    time_ms: int, request_id: str, user: str, served: ServedItem, watched: float, liked: float, late: float
) -> list[Event]:
    def engagement(kind: str, after_ms: int = 0, watch_ms: int | None = None) -> Event:
        return Engagement(
            time_ms=time_ms + after_ms, request_id=request_id, user_id=user, item_id=served.item_id,
            kind=kind, watch_ms=watch_ms,
        )  # fmt: skip

    done = [engagement("long_view")] if watched > 0.7 else []
    done.append(engagement("view", 0, int(watched * 4_000)))
    if liked < 0.2:
        done.append(engagement("like", 90_000 if late < _LATE else 500))
    return done


def _block(draw: np.random.Generator) -> FeatureBlock:
    """A block of realistic size and sparsity; the joiner cuts it without reading it."""

    def keys(count: int) -> bytes:
        return _sparse(draw, draw.integers(1 << 62, size=count)).tobytes()

    def floats(count: int) -> bytes:
        return _sparse(draw, draw.standard_normal(count, np.float32)).tobytes()

    history = FEATURES.history_length
    return FeatureBlock(
        feature_set=FEATURES.digest,
        user_keys=keys(FEATURES.user_columns),
        item_keys=keys(FEATURES.item_columns * ITEMS),
        history=keys(history * FEATURES.history_keys),
        outcomes=floats(history * FEATURES.outcomes),
        dense=floats(FeatureBuilder(FEATURES).dense_width * ITEMS),
    )


def _sparse(draw: np.random.Generator, values: NDArray[Any]) -> NDArray[Any]:
    """The values, most of them 0."""
    return np.where(draw.random(len(values)) < _FILLED, values, values.dtype.type(0))


def write_events(events: list[Event]) -> EncodedEvents:
    """Events as on the log, by partition of the user; a final tick in each closes every window."""
    partitions = CONFIG.log.partitions
    appends = [record_of(event, partitions) for event in events]
    records = [(append.partition, append.value) for append in appends]
    tick = encode(Tick(time_ms=events[-1].time_ms + 120_000))
    return EncodedEvents(records + [(partition, tick) for partition in range(partitions)])


def _core(written: EncodedEvents) -> float:
    """Decoded events through the pure joiners: the cost of the join itself."""
    parts: list[list[Event]] = [[] for _ in range(CONFIG.log.partitions)]
    for partition, value in written.records:
        parts[partition].append(decode(value))

    def again(events: list[Event]) -> Recall:
        return lambda offset: events[offset] if isinstance(events[offset], Impression) else None  # type: ignore[return-value]

    joiners = [
        Joiner(partition, FEATURES.schema.labels, CONFIG.join, again(events))
        for partition, events in enumerate(parts)
    ]

    def join() -> None:
        for joiner, events in zip(joiners, parts, strict=True):
            for offset, event in enumerate(events):
                joiner.feed(offset, event)

    return _rate(len(written), join)


def _loop(written: EncodedEvents) -> tuple[float, float, set[tuple[Any, ...]], dict[str, float]]:
    """The part's loop: reads, decodes, joins, encodes, appends; by wall clock and by processor time. Also
    returns the final labels and the bytes of a list."""
    log = MemoryLog()
    for topic in topics(CONFIG.log.partitions):
        log.create(topic)
    log.append(EVENTS, [Append(partition, b"", value) for partition, value in written.records])
    loop = JoinerLoop(log, CONFIG, FEATURES, lambda: 0)

    def join() -> None:
        while loop.turn():
            pass

    spent: list[float] = []

    def timed() -> None:
        started = time.process_time()
        join()
        spent.append(time.process_time() - started)

    rate = _rate(len(written), timed)
    busy = round(len(written) / spent[0], 1)
    final: dict[tuple[str, str], tuple[int, ...]] = {}
    shown = [v for _, v in written.records if isinstance(decode(v), Impression)]
    values = list(shown)
    for partition in range(CONFIG.log.partitions):
        for record in log.read(EXAMPLES, partition, 0, log.end(EXAMPLES, partition)):
            values.append(record.value)
            example = unpack(record.value, Example)
            final[example.request_id, str(example.item_id)] = tuple(map(int, example.labels))
    sizes = {
        "list_bytes": round(sum(map(len, values)) / len(shown), 1),
        "list_bytes_expanded": round(sum(len(plain(v)) for v in values) / len(shown), 1),
    }
    return rate, busy, {(*place, *labels) for place, labels in final.items()}, sizes


def _polars(written: EncodedEvents) -> tuple[float, set[tuple[Any, ...]]]:
    """Shown items of the whole log with their labels, joined at once."""
    import polars as pl

    labels, joined = FEATURES.schema.labels, list[Any]()

    def join() -> None:
        served, done = list[tuple[str, str]](), list[tuple[str, str, str]]()
        for _, value in written.records:
            event = decode(value)
            if isinstance(event, Impression):
                served.extend((event.request_id, str(item.item_id)) for item in event.items)
            elif isinstance(event, Engagement):
                done.append((event.request_id, str(event.item_id), event.kind))
        shown = pl.DataFrame(served, ["request", "item"], orient="row")
        kinds = pl.DataFrame(done, ["request", "item", "kind"], orient="row")
        happened = kinds.group_by("request", "item").agg(
            [(pl.col("kind") == label).any().cast(pl.Int8).alias(label) for label in labels]
        )
        joined.append(shown.join(happened, on=["request", "item"]))

    return _rate(len(written), join), set(joined[0].rows())


def _rate(count: int, work: Callable[[], None]) -> float:
    freeze_gc()  # takes the drawn events out of garbage collection
    started = time.perf_counter()
    work()
    return round(count / (time.perf_counter() - started), 1)
