"""``recsys bench units``: unit costs of each part, for ``recsys bench capacity``.

The parts of a running system, one after the other in one process over SQLite, with the feed's features and
the default model: viewers ask for lists of ten, and watch them. Processor time of a part, of all its threads,
is divided by what it handled; bytes are those on the log. The cost of waiting is not in it.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.harness.local_system import LocalSystem
from parameter_server.shard.shard import Shard
from recsys.arrays.key_index import LOAD
from recsys.config.system_config import Config, StepConfig
from recsys.events.control_records import Live
from recsys.events.event_types import Impression, Item, decode
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, ITEM_STATE
from recsys.log.compression import plain
from recsys.log.protocol import Log, Record, read_range
from recsys.model.model import build_model
from recsys.process.latency_tuning import freeze_gc
from recsys.process.worker_share import Share
from serving.request import Request
from serving.sessions.counter_loop import CounterLoop
from serving.sessions.counter_sums import SumLoop
from training.archive.writer import Archive
from training.candidates.shadow import Shadow
from training.continual.learner import Learner
from training.lines.line import MAIN, whole_spec

_WARM: Final = 0.2  # share of the rounds before the clock starts
_ASKED: Final = 25  # lists of a round
_LIST: Final = 10
# A replica's memory, proportional, by `recsys bench start`: at a million items 1,378 MB for
# one on a machine and 3,123 for four, so 582 for a further one, of which 250 are the bare process.
_REPLICA_MEMORY: Final = {
    "replica_process_bytes": 250e6,
    "catalogue_own_bytes_an_item": 332.0,
    "catalogue_shared_bytes_an_item": 796.0,  # with the rows of items that were read
}


class _Spent:
    """Processor seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def of(self, part: str, act: Callable[[], object]) -> None:
        began_s = time.process_time()
        while act():
            pass
        self.add(part, began_s)

    def add(self, part: str, began_s: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - began_s


def measure_units(requests: int, items: int, users: int) -> dict[str, Any]:
    """Unit costs over so many lists."""
    with TemporaryDirectory() as folder:
        costs = asyncio.run(_run(Path(folder), requests, items, users))
    return {"what": f"{requests} lists of {_LIST} from {items} items, {users} viewers", "figures": costs}


async def _run(folder: Path, requests: int, items: int, users: int) -> dict[str, float]:
    config = replace(Config(), state=str(folder), step=StepConfig(snapshot_every=10_000))
    system = LocalSystem(config)
    fields = [{"author": f"a{i % 97}", "tags": [f"t{i % 53}", f"t{i % 7}"]} for i in range(items)]
    system.publish([Item(time_ms=1, item_id=f"v{i}", fields=each) for i, each in enumerate(fields)])
    await system.start()
    rounds = requests // _ASKED
    spent, before = _Spent(), dict[str, int]()
    for number in range(rounds):
        if number == int(rounds * _WARM):
            freeze_gc()
            spent, before = _Spent(), _counts(system.log)
        await _ask(system, spent, number, users)
        _turn(system, spent)
    after = _counts(system.log)
    archived = Archive(system.log, folder / "archive", lambda: system.now_ms)
    spent.of("archive", archived.turn)
    spent.of("archive", lambda: archived.flush())
    figures = _figures(system, spent, {name: after[name] - before[name] for name in after})
    whole = after["events"] + after["examples"]
    figures["archive_us"] = 1e6 * spent.seconds["archive"] / whole
    spent.of("shadow", _new_candidate(system).turn)
    figures["shadow_us"] = 1e6 * spent.seconds["shadow"] / after["examples"]
    figures["counter_sums_us"] = _added_up(system, spent) / after["events"]
    await system.stop()
    return {name: round(value, 3) for name, value in figures.items()}


async def _ask(system: LocalSystem, spent: _Spent, number: int, users: int) -> None:
    for n in range(_ASKED):
        user = f"u{(number * _ASKED + n) % users}"
        began_s = time.process_time()
        answer = await system.ask(Request(user_id=user, n=_LIST))
        spent.add("answer", began_s)
        began_s = time.process_time()
        await system.watch(answer)
        spent.add("write", began_s)


def _turn(system: LocalSystem, spent: _Spent) -> None:
    spent.of("session_fold", system.fold.turn)
    spent.of("counters", system.counters.turn)
    spent.of("joiner", system.joiner.turn)
    system.now_ms += 1_000  # so that a step is cut
    spent.of("sequencer", system.sequencer.turn)
    spent.of("learn", system.worker.turn)
    began_s = time.process_time()
    system.follow()
    spent.add("follow", began_s)


def _new_candidate(system: LocalSystem) -> Shadow:
    """A line that learns from the first step of the log on."""
    config, features = system.config, system.features
    model = build_model(features, config.model)
    shard = Shard(whole_spec(config, "cand"), model.read_dense())
    return Shadow(system.log, config, Learner(model), "cand", shard, [Live(line=MAIN, epoch=0)])


def _added_up(system: LocalSystem, spent: _Spent) -> float:
    """Microseconds of adding up what two workers count, who publish in each turn."""
    log, features = system.log, system.features
    for share in (Share(0, 2), Share(1, 2)):
        clock = count(0, 100).__next__
        spent.of("workers", CounterLoop(log, features, now_ms=clock, share=share).turn)
    spent.of("counter_sums", SumLoop(log, features, now_ms=count(0, 100).__next__).turn)
    return 1e6 * spent.seconds["counter_sums"]


def _counts(log: Log) -> dict[str, int]:
    counts = {
        topic: sum(log.end(topic, p) - log.begin(topic, p) for p in range(log.partitions(topic)))
        for topic in (EVENTS, EXAMPLES)
    }
    return counts | {"impressions": sum(isinstance(event, Impression) for event in _events(log))}


def _records(log: Log, topic: str) -> list[Record]:
    return [
        record
        for p in range(log.partitions(topic))
        for record in read_range(log, topic, p, log.begin(topic, p), log.end(topic, p))
    ]


def _events(log: Log) -> list[Any]:
    return [decode(record.value) for record in _records(log, EVENTS)]


def _figures(system: LocalSystem, spent: _Spent, counts: dict[str, int]) -> dict[str, float]:
    events, examples, lists = counts["events"], counts["examples"], counts["impressions"]
    per = {
        "answer": lists, "write": events - lists, "session_fold": events, "counters": events,
        "joiner": events, "sequencer": examples, "learn": examples, "follow": examples,
    }  # fmt: skip
    log = system.log
    sizes = {True: [0], False: [0]}
    shown = [record.value for record in _records(log, EXAMPLES)]
    example_bytes = mean(map(len, shown))
    for record, event in zip(_records(log, EVENTS), _events(log), strict=True):
        sizes[isinstance(event, Impression)].append(len(record.value))
        shown += [record.value] if isinstance(event, Impression) else []
    answers = len(sizes[True]) - 1
    tables = [shard.shard.tables for shard in system.shards.durable]
    replica = system.service.replica.rows
    return {
        **{f"{name}_us": 1e6 * spent.seconds[name] / units for name, units in per.items()},
        "engagements_an_example": (events - lists) / examples,
        "impression_bytes": mean(sizes[True][1:]),
        "engagement_bytes": mean(sizes[False][1:]),
        "example_bytes": example_bytes,
        "list_bytes": sum(map(len, shown)) / answers,  # its impression and examples
        "list_bytes_expanded": sum(len(plain(value)) for value in shown) / answers,
        "delta_bytes_an_example": sum(len(r.value) for r in _records(log, DELTAS)) / max(1, examples),
        "item_state_bytes_an_event": sum(len(r.value) for r in _records(log, ITEM_STATE)) / events,
        "session_bytes": mean(len(blob) for blob in system.sessions.blobs.values()),
        **{
            f"shard_{name}_row_bytes": sum(t[name].nbytes for t in tables) / rows
            for name in ("users", "items")
            if (rows := sum(len(t[name]) for t in tables))
        },
        **_REPLICA_MEMORY,
        **{
            # In mapped files: the rows, their keys and the cells of their index.
            f"replica_{name}_row_bytes": sum(
                4 * replica[table].config.dim + 8 + 16 / LOAD for table in (name, "features")
            )
            for name in ("users", "items")
        },
    }
