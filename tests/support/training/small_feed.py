"""A small feed for tests of the training parts: impressions with features, engagements, and their examples.

Everything is a hash of numbers, so any process makes the same.
"""

from functools import lru_cache

import numpy as np

from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, StepConfig
from recsys.events.event_types import Engagement, Event, FeatureBlock, Impression, ServedItem, Tick, encode
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema
from recsys.events.hashing import cross, key_of, partition_of, uniforms
from recsys.events.records import EVENTS, EXAMPLES, Example, pack, topics
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from recsys.log.protocol import Append, Log, MemoryLog

SCHEMA = Schema(
    item=(("author", CATEGORICAL), ("duration_ms", NUMERIC), ("tags", CATEGORICAL)),
    user=(("country", CATEGORICAL),),
    context=(("surface", CATEGORICAL),),
    labels=("long_view", "like"),
)
FEATURES = FeatureSet(SCHEMA, "all", history=4)
DENSE = FeatureBuilder(FEATURES).dense_width
PARTITIONS = 3
START_MS = 1_700_000_000_000


def toy_config(state: str = "state", *, examples: int = 8, shards: int = 1) -> Config:
    """A configuration that is quick to learn with."""
    return Config(
        state=state,
        step=StepConfig(examples=examples, every_ms=250, lanes=4, snapshot_every=5, snapshot_s=0),
        model=ModelConfig(dim=4, vector_dim=4, hidden=(8,)),
        parameter_server=ParameterServerConfig(shards=shards),
    )


def toy_log() -> MemoryLog:
    log = MemoryLog()
    for topic in topics(PARTITIONS):
        log.create(topic)
    return log


@lru_cache(10_000)  # most tests use the same numbers, and a block is frozen
def block(seed: int, items: int = 1) -> FeatureBlock:
    """Features of a request: keys of few ids, so that lanes share rows."""
    draws = uniforms(seed, np.arange(items + 2, dtype=np.int64), 64)
    user = np.zeros(FEATURES.user_columns, np.int64)
    user[0] = key_of("user", int(draws[0, 0] * 20))
    user[1:3] = key_of("user.country", int(draws[0, 1] * 5)), 0
    rows = np.zeros((items, FEATURES.item_columns), np.int64)
    for row, draw in zip(rows, draws[2:], strict=True):
        row[0] = key_of("item", int(draw[0] ** 2 * 30))
        row[1] = key_of("item.author", int(draw[1] * 6))
        row[5:7] = key_of("item.tags", int(draw[2] * 6)), key_of("item.tags", 6 + int(draw[3] * 6))
    there = int(draws[1, 0] * (FEATURES.history + 1))
    history = np.zeros((FEATURES.history, FEATURES.history_keys), np.int64)
    history[:there] = cross(seed % 7, np.arange(1, FEATURES.history_keys + 1))
    outcomes = np.zeros((FEATURES.history, FEATURES.outcomes), np.float32)
    outcomes[:there] = draws[1, : FEATURES.outcomes]
    outcomes[:there, -1] = 0.5
    dense = uniforms(seed + 1, np.arange(items, dtype=np.int64), DENSE).astype(np.float32)
    return RequestFeatures(FEATURES.digest, user, rows, history, outcomes, dense).block()


def impression(n: int, user: int, time_ms: int, items: int = 3) -> Impression:
    served = [ServedItem(item_id=f"v{(n + i) % 9}", propensity=0.5) for i in range(items)]
    return Impression(
        time_ms=time_ms, request_id=f"r{n}", user_id=f"u{user}", items=served, features=block(n, items)
    )


def engagement(of: Impression, index: int, kind: str, after_ms: int, **more: int) -> Engagement:
    return Engagement(
        time_ms=of.time_ms + after_ms, request_id=of.request_id, user_id=of.user_id,
        item_id=of.items[index].item_id, kind=kind, **more,
    )  # fmt: skip


def feed(requests: int, first: int = 0) -> list[Event]:
    """Requests in time order, each with some views and likes; at last a tick by which most are over."""
    events: list[Event] = []
    for n in range(first, first + requests):
        draws = uniforms(99, np.array([n]), 8)[0]
        shown = impression(n, int(draws[0] * 12), START_MS + n * 400)
        events.append(shown)
        for index in range(3):
            if draws[1 + index] < 0.7:
                watch_ms = int(draws[4 + index] * 20_000)
                if watch_ms > 9_000:
                    events.append(engagement(shown, index, "long_view", watch_ms - 1))
                events.append(engagement(shown, index, "view", watch_ms, watch_ms=watch_ms))
            if draws[1 + index] < 0.2:
                events.append(engagement(shown, index, "like", 90_000))
    events.append(Tick(time_ms=START_MS + (first + requests) * 400 + 125_000))
    return sorted(events, key=lambda event: event.time_ms)


def append_events(log: Log, events: list[Event]) -> None:
    """Each event to the partition of its user, ticks to all."""
    appends = []
    for event in events:
        user = getattr(event, "user_id", None)
        where = range(PARTITIONS) if user is None else [partition_of(user, PARTITIONS)]
        appends += [Append(partition, str(user).encode(), encode(event)) for partition in where]
    log.append(EVENTS, appends)


def example(n: int, **changes: object) -> Example:
    draws = uniforms(5, np.array([n]), 3)[0]
    values = dict(
        partition=n % PARTITIONS, offset=n, index=0, sequence=n + 1, request_id=f"r{n}",
        user_id=f"u{n % 12}", item_id=f"v{n % 9}", surface="feed", shown_ms=START_MS + n,
        closed_ms=START_MS + n + 5_000, labels=[float(draws[0] < 0.4), float(draws[1] < 0.2)],
        watch_ms=int(draws[2] * 20_000), features=block(n),
    )  # fmt: skip
    return Example(**(values | changes))  # type: ignore[arg-type]


def append_examples(log: Log, examples: list[Example]) -> list[int]:
    """Each example to its partition; returns the offsets."""
    appends = [Append(e.partition, str(e.user_id).encode(), pack(e)) for e in examples]
    return log.append(EXAMPLES, appends)
