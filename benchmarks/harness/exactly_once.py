"""Checks that kills have lost and doubled nothing: the log, each fold of it, and the weights that it taught.

Each check folds the whole log anew in this process, with the classes of the live parts, and compares the
outcome with what the system has.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.commands import Figures
from benchmarks.harness.memory_sessions import MemorySessions
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import digest_of_shards, part_of
from parameter_server.storage.durable_shard import DurableShard
from parameter_server.storage.shard_home import home_of
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event, decode, dedupe_key, event_id_of
from recsys.events.records import (
    EVENTS,
    EXAMPLES,
    ITEM_STATE,
    ITEMS,
    STEPS,
    Example,
    ItemState,
    Step,
    non_example,
    topics,
    unpack,
)
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.log.protocol import Append, Log, MemoryLog, Record
from recsys.model.model import build_model
from recsys.process.open_log import open_log
from serving.sessions.counter_loop import CounterLoop
from serving.sessions.session_loop import SessionLoop
from serving.sessions.session_store import RedisFoldStore
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.joining.joiner_loop import JoinerLoop
from training.lines.line import spec_of

_AT_ONCE = 500  # records
_NEAR = 1e-4  # counters: their sums depend on the order of partitions


class Disagreement(RuntimeError):
    """The log could not be folded as a whole."""


def stored_sessions(config: Config, users: Sequence[str]) -> dict[str, bytes]:
    """Packed sessions of a running system."""
    with closing(RedisFoldStore(config.sessions.url, config.sessions.ttl_s)) as store:
        blobs = zip(users, store.load(users), strict=True)
        return {user: blob for user, blob in blobs if blob is not None}


def folded_to(config: Config) -> list[int]:
    """Next offsets of the session fold of a running system."""
    with closing(RedisFoldStore(config.sessions.url, config.sessions.ttl_s)) as store:
        position = store.position()
        return [] if position is None else position.events


def audit(config: Config, acknowledged: Mapping[str, bool], sessions: Mapping[str, bytes]) -> Figures:
    """Figures of a stopped system: of ``acknowledged`` events (whether each was sent again), of its
    ``sessions``, counters, examples, steps and weights."""
    with closing(open_log(config)) as log:
        copy = copied(log, config, (ITEMS, EVENTS))
        return {
            **_events(copy, acknowledged),
            **_sessions(copy, config, sessions),
            **_counters(copy, log, config),
            **_examples(copy, log, config),
            **_steps(log),
            **_weights(log, config),
        }


def copied(log: Log, config: Config, names: Sequence[str]) -> MemoryLog:
    """Topics of a log in memory, at the same offsets."""
    memory = MemoryLog()
    memory.id = log.id
    for topic in topics(config.log.partitions):
        memory.create(topic)
    for name in names:
        for partition in range(log.partitions(name)):
            for record in records(log, name, partition):
                (offset,) = memory.append(name, [Append(partition, record.key, record.value)])
                if offset != record.offset:
                    raise Disagreement(
                        f"{name} of partition {partition} has no offset {offset}, expected all from 0 on: "
                        "run the check before records are dropped"
                    )
    return memory


def records(log: Log, topic: str, partition: int) -> Iterator[Record]:
    offset = log.begin(topic, partition)
    while batch := log.read(topic, partition, offset, _AT_ONCE):
        yield from batch
        offset = batch[-1].offset + 1


def events_of(log: Log) -> Iterator[Event]:
    for partition in range(log.partitions(EVENTS)):
        for record in records(log, EVENTS, partition):
            yield decode(record.value)


def _events(log: Log, acknowledged: Mapping[str, bool]) -> Figures:
    """Copies on the log. An event that was sent again after a lost answer may have two: folds drop one."""
    copies = Counter(event_id_of(e) for e in events_of(log) if isinstance(e, Engagement))
    twice = [id for id in acknowledged if copies[id] > 1]
    return {
        "acknowledged": len(acknowledged),
        "lost": sum(copies[id] == 0 for id in acknowledged),
        "sent_again": sum(acknowledged.values()),
        "twice_on_log": len(twice),
        "twice_on_log_sent_once": sum(not acknowledged[id] for id in twice),
    }


def _sessions(log: MemoryLog, config: Config, sessions: Mapping[str, bytes]) -> Figures:
    """Sessions beside a new fold of the log, bit for bit, and their counts beside distinct events."""
    features, store = feature_set(config), MemorySessions()
    loop = SessionLoop(log, store, features, lambda: 0, config.sessions.seen)
    while loop.turn():
        pass
    distinct: dict[str, set[str]] = {user: set() for user in sessions}
    for event in events_of(log):
        if isinstance(event, Engagement) and event.attributed:
            distinct.setdefault(str(event.user_id), set()).add(dedupe_key(event))
    counted = {u: Session.unpack(blob, features).events for u, blob in sessions.items()}
    return {
        "sessions": len(sessions),
        "sessions_differ": sum(store.blobs.get(user) != blob for user, blob in sessions.items()),
        "session_events_differ": sum(counted[user] != len(distinct[user]) for user in sessions),
    }


def _counters(copy: MemoryLog, log: Log, config: Config) -> Figures:
    """Published counters beside those of a new fold."""
    features = feature_set(config)
    loop = CounterLoop(copy, features, bounds=config.bounds)
    while loop.turn():
        pass
    keys, values, last_ms = loop.fold.counters.export()
    expected = dict(zip(keys.tolist(), zip(last_ms.tolist(), values, strict=True), strict=True))
    published: dict[int, tuple[int, NDArray[np.float32]]] = {}
    for record in records(log, ITEM_STATE, 0):
        state = unpack(record.value, ItemState)
        rows = np.frombuffer(state.values, np.float32).reshape(-1, values.shape[1])
        times = np.frombuffer(state.last_ms, np.int64).tolist()
        ids = np.frombuffer(state.keys, np.int64).tolist()
        published.update(zip(ids, zip(times, rows, strict=True), strict=True))
    differ = expected.keys() ^ published.keys()
    for key in expected.keys() & published.keys():
        (time_ms, row), (published_ms, published_row) = expected[key], published[key]
        if time_ms != published_ms or not np.allclose(row, published_row, rtol=_NEAR, atol=_NEAR):
            differ.add(key)
    return {"counters": len(expected), "counters_differ": len(differ)}


def _examples(copy: MemoryLog, log: Log, config: Config) -> Figures:
    """Examples beside those of a new join, byte for byte."""
    loop = JoinerLoop(copy, config, feature_set(config), lambda: 0)
    while loop.turn():
        pass
    total = differ = doubled = 0
    for partition in range(log.partitions(EXAMPLES)):
        live = [record.value for record in records(log, EXAMPLES, partition)]
        again = [record.value for record in records(copy, EXAMPLES, partition)][: len(live)]
        differ += sum(a != b for a, b in zip(live, again, strict=False)) + len(live) - len(again)
        first = [
            (e.offset, e.index)
            for e in (unpack(value, Example) for value in live if non_example(value) is None)
            if not e.correction
        ]
        total, doubled = total + len(live), doubled + len(first) - len(set(first))
    return {"examples": total, "examples_differ": differ, "examples_twice": doubled}


def _steps(log: Log) -> Figures:
    """Whether steps are numbered without a hole and contain each example once."""
    steps = [unpack(record.value, Step) for record in records(log, STEPS, 0)]
    covered = Counter(
        (part.partition, offset)
        for step in steps
        for part in step.ranges
        for offset in range(part.start, part.stop)
    )
    present = {
        (partition, record.offset)
        for partition in range(log.partitions(EXAMPLES))
        for record in records(log, EXAMPLES, partition)
    }
    return {
        "steps": len(steps),
        "steps_missing": sum(s.step != n for n, s in enumerate(steps, 1)),
        "examples_in_no_step": len(present - covered.keys()),
        "examples_in_two_steps": sum(count > 1 for place, count in covered.items()),
    }


def _weights(log: Log, config: Config) -> Figures:
    """The shards' state beside that of one process that learned the same steps and was never disturbed."""
    spec, model = spec_of(config), build_model(feature_set(config), config.model)
    client = LocalClient.fresh(spec, model.read_dense())
    worker = Worker(0, 1, log, client, Learner(model), config, reports=False)
    while worker.turn():
        pass
    shards = [
        DurableShard(
            (own := part_of(spec, part)),
            home_of(own, config),
            lambda deltas: None,
            model.read_dense() if part == 0 else None,
        )
        for part in range(spec.parts)
    ]
    learned = [shard.applied for shard in shards]
    digest = digest_of_shards([shard.shard for shard in shards])
    equal = digest == digest_of_shards(client.shards)
    for shard in shards:
        shard.close()
    return {
        "steps_learned": min(learned),
        "steps_unlearned": worker.step - min(learned),
        "digest": digest[:16],
        "weights_differ": int(not equal),
    }
