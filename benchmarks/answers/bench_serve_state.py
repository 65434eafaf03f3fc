"""State of ``recsys bench serve``: catalogue, counters, a snapshot and sessions, as after running for a
while. Nothing is trained: drawn gradients move the rows once, so that no two items score alike."""

# N items of a block, R rows of a table

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.shard.shard import Shard
from parameter_server.storage.snapshots import write_part
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Impression, Item, encode
from recsys.events.hashing import cross, key_of
from recsys.events.records import ITEM_STATE, ITEMS, STEPS, ItemState, Step, pack
from recsys.features.columns import CONTEXT, GLOBAL
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.item_counters import crossed_columns
from recsys.features.session import Session
from recsys.log.protocol import Append, Log
from recsys.model.model import build_model
from recsys.process.open_log import create_topics, open_log
from training.lines.line import spec_of

USERS: Final = 1_000
STEP: Final = 1  # of the snapshot
_BLOCK: Final = 20_000
_TAGS: Final = 200
_STATED: Final = 200_000  # the first items, which have counters
_PATTERNS: Final = 50  # distinct histories among the users
_VIEWED: Final = 60  # items of a history
Keys = NDArray[np.int64]


@dataclass(frozen=True)
class BenchState:
    """Sessions by user, and their mean size."""

    sessions: dict[str, bytes]
    session_bytes: int


def build(config: Config, items: int, seed: int, now_ms: int) -> BenchState:
    """Writes log and snapshot into the state folder, as of ``now_ms``; the caller puts the sessions into the
    store."""
    features, log = feature_set(config), open_log(config)
    create_topics(log, config)
    try:
        keys = _catalogue(log, features, items, seed, now_ms)
        _item_state(log, features, keys[:_STATED], seed, now_ms)
        _snapshot(config, features, keys, seed, now_ms)
        _step_record(log, config, now_ms)
    finally:
        log.close()
    draw = np.random.default_rng(seed + 3)
    patterns = [_session(features, keys, config.sessions.seen, draw, now_ms) for _ in range(_PATTERNS)]
    return _sessions(patterns)


def draw_items(count: int, seed: int, now_ms: int) -> Iterator[list[Item]]:
    """Items in blocks: ten items per author on average, three of 200 tags, a duration."""
    draw = np.random.default_rng(seed)
    for start in range(0, count, _BLOCK):
        n = min(_BLOCK, count - start)
        authors = draw.integers(0, max(1, count // 10), n).tolist()
        tags = draw.integers(0, _TAGS, (n, 3)).tolist()
        durations = draw.integers(5_000, 60_000, n).tolist()
        yield [
            Item(
                time_ms=now_ms - 1_000 * (count - start - i),
                item_id=f"v{start + i}",
                fields={
                    "author": f"a{authors[i]}",
                    "tags": [f"t{tag}" for tag in tags[i]],
                    "duration_ms": durations[i],
                },
            )
            for i in range(n)
        ]


def _catalogue(log: Log, features: FeatureSet, count: int, seed: int, now_ms: int) -> Keys:
    """Appends the items; returns their keys (N, I)."""
    blocks = []
    for block in draw_items(count, seed, now_ms):
        log.append(ITEMS, [Append(0, str(item.item_id).encode(), encode(item)) for item in block])
        blocks += [features.item_keys(item.item_id, item.fields) for item in block]
    return np.array(blocks)


def _item_state(log: Log, features: FeatureSet, keys_NI: Keys, seed: int, now_ms: int) -> None:
    """Appends counters of items, authors, tags and durations, as the counters part publishes them."""
    draw = np.random.default_rng(seed + 1)
    duration = features.slot("duration").start
    groups = [features.slot(f"item.{name}") for name in features.schema.groups]
    parts = [keys_NI[:, [0, duration]], *(keys_NI[:, slot.start : slot.stop] for slot in groups)]
    context = features.context_keys("feed", {})[0]
    crossed = cross(context, keys_NI[:, crossed_columns(features, CONTEXT)])
    entities = np.unique(np.concatenate([part.ravel() for part in (*parts, crossed)]))
    keys = np.concatenate([[GLOBAL, context], entities[entities != 0]]).astype(np.int64)
    shown = draw.gamma(0.5, 40.0, len(keys)).astype(np.float32)
    rates = draw.beta(1.0, 4.0, (len(keys), len(features.kinds))).astype(np.float32)
    rates[:, 0], rates[:, -1] = 1.0, 2.0  # shown; the logarithm of the seconds watched
    values = np.tile(shown[:, None] * rates, (1, len(features.speeds)))
    last_ms = np.full(len(keys), now_ms, np.int64)
    appends = []
    for at in range(0, len(keys), _BLOCK):
        part = slice(at, at + _BLOCK)
        columns = keys[part].tobytes(), values[part].tobytes(), last_ms[part].tobytes()
        state = ItemState(offsets=[], keys=columns[0], values=columns[1], last_ms=columns[2])
        appends.append(Append(0, b"", pack(state)))
    log.append(ITEM_STATE, appends)


def _snapshot(config: Config, features: FeatureSet, keys_NI: Keys, seed: int, now_ms: int) -> None:
    """Writes a snapshot of a shard after one step, with rows for all keys of items and users."""
    spec, draw = spec_of(config), np.random.default_rng(seed + 2)
    dense = build_model(features, config.model).read_dense()
    shard = Shard(spec, dense)
    users = np.array([key_of("user", user_of(n)) for n in range(USERS)], np.int64)
    wanted = {"items": keys_NI[:, 0], "users": users}
    every = np.unique(keys_NI)
    wanted["features"] = np.union1d(every[every != 0], users)
    for name, table in shard.tables.items():
        keys = np.unique(wanted[name])
        for at in range(0, len(keys), _BLOCK):
            block = keys[at : at + _BLOCK]
            gradients = draw.standard_normal((len(block), table.config.dim)).astype(np.float32)
            table.apply(block, gradients, np.ones(len(block), np.int32), now_ms)
    shard.applied, shard.clock_ms = STEP, now_ms
    arrays, meta = shard.export()
    folder = Path(config.state) / "snapshots"
    write_part(folder, spec.line, spec.epoch, STEP, 0, spec.parts, arrays, meta)


def _step_record(log: Log, config: Config, now_ms: int) -> None:
    """Appends the record of the snapshot's step, behind which a sequencer continues."""
    step = Step(
        line="main", epoch=0, step=STEP, ranges=[], examples=0, lanes=config.step.lanes,
        time_ms=now_ms, config="",
    )  # fmt: skip
    log.append(STEPS, [Append(0, b"main", pack(step))])


def user_of(number: int) -> str:
    return f"u{number}"


def _sessions(patterns: list[Any]) -> BenchState:
    """A session for each user."""
    blobs = dict[str, bytes]()
    for number in range(USERS):
        session = patterns[number % len(patterns)]
        session.user_id = user_of(number)
        blobs[session.user_id] = session.pack()
    return BenchState(blobs, sum(map(len, blobs.values())) // USERS)


def _session(features: FeatureSet, keys_NI: Keys, seen: int, draw: np.random.Generator, now_ms: int) -> Any:
    """Session after some 60 viewed items."""
    session = Session("", features, seen)
    viewed = draw.choice(len(keys_NI), min(_VIEWED, len(keys_NI)), replace=False)
    for place, index in enumerate(viewed.tolist()):
        time_ms, request_id = now_ms - 10_000 * (_VIEWED - place), f"r{place // 10}"
        keys = keys_NI[index]
        if place % 10 == 0:
            shown = Impression(time_ms=time_ms, request_id=request_id, user_id="", items=[])
            session.fold_impression(shown, keys_NI[:0])
        did: list[tuple[str, int | None]] = [("view", int(draw.integers(500, 30_000)))]
        did += [("long_view", None)] if draw.random() < 0.4 else []
        did += [("like", None)] if draw.random() < 0.1 else []
        for kind, watch_ms in did:
            event = Engagement(
                time_ms=time_ms, request_id=request_id, user_id="", item_id=f"v{index}", kind=kind,
                watch_ms=watch_ms,
            )  # fmt: skip
            session.fold_engagement(event, keys)
    return session
