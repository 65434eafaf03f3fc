"""What must hold after a simulated run. The oracles know nothing of the classes they judge: they count.

Each raises Broken with the name of its invariant.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parameter_server.publish.deltas import to_arrays
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import Shard, digest_of_shards
from recsys.events.event_types import Engagement, Event, Impression
from recsys.events.hashing import key_of
from recsys.events.records import DELTAS, EXAMPLES, STEPS, Delta, Example, Step, topics, unpack
from recsys.log.protocol import MemoryLog, read_range
from tests.support.simulation.simulator import (
    CONFIG,
    DENSE,
    SHARDS,
    SPEC,
    TTL_S,
    Clock,
    Simulation,
    check_snapshots,
    hold,
)
from tests.support.simulation.simulator_faults import KafkaLog
from tests.support.simulation.simulator_learner import CountingLearner
from tests.support.training.small_feed import FEATURES, PARTITIONS, append_events
from training.continual.worker import Worker
from training.joining.joiner_loop import JoinerLoop


def check(run: Simulation) -> None:
    """Raises Broken, naming the invariant."""
    for invariant in (
        check_examples, check_labels, check_steps, check_counts, check_visits, check_digest,
        check_published, check_replica, check_rounding,
    ):  # fmt: skip
        invariant(run)
    check_snapshots(run.folder / "snapshots")


def records(log: MemoryLog, topic: str, kind: type) -> list[Any]:
    found = []
    for p in range(log.partitions(topic)):
        its = read_range(log, topic, p, log.begin(topic, p), log.end(topic, p))
        found += [unpack(record.value, kind) for record in its]
    return found


def check_examples(run: Simulation) -> None:
    """Examples are those of an undisturbed join, each once, numbered without a hole."""
    calm = KafkaLog() if isinstance(run.log, KafkaLog) else MemoryLog()  # with the same offsets
    for topic in topics(PARTITIONS):
        calm.create(topic)
    append_events(calm, run.events)
    loop = JoinerLoop(calm, CONFIG, FEATURES, Clock())
    while loop.turn():
        pass
    mine, theirs = records(run.log, EXAMPLES, Example), records(calm, EXAMPLES, Example)
    numbers = [(e.partition, e.sequence) for e in mine]
    hold("an example is appended once", len(set(numbers)) == len(numbers), numbers)
    hold("examples are those of an undisturbed join", mine == theirs, (len(mine), len(theirs)))


def happened(events: Sequence[Event]) -> dict[tuple[str, int], set[str]]:
    """By shown item, what was done with it: a join of the whole log at once, in any order."""
    shown = {e.request_id: e for e in events if isinstance(e, Impression)}
    found: dict[tuple[str, int], set[str]] = {}
    for event in events:
        if isinstance(event, Engagement):
            items = [served.item_id for served in shown[event.request_id].items]
            place = (event.request_id, items.index(event.item_id))
            found.setdefault(place, set()).add(event.kind)
    return found


def check_labels(run: Simulation) -> None:
    final = {}
    for example in records(run.log, EXAMPLES, Example):
        final[example.request_id, example.index] = example.labels
    names = FEATURES.schema.labels
    truth = {place: [float(name in kinds) for name in names] for place, kinds in happened(run.events).items()}
    hold("labels are what happened", final == truth, set(final) ^ set(truth))


def check_steps(run: Simulation) -> None:
    """Every example is in one step, and steps are numbered without a hole."""
    steps = records(run.log, STEPS, Step)
    there = {
        (p, record.offset)
        for p in range(PARTITIONS)
        for record in read_range(run.log, EXAMPLES, p, 0, run.log.end(EXAMPLES, p))
    }
    covered = [
        (part.partition, offset)
        for step in steps
        for part in step.ranges
        for offset in range(part.start, part.stop)
        if (part.partition, offset) in there
    ]
    hold("steps are numbered", [s.step for s in steps] == list(range(1, len(steps) + 1)), steps)
    hold("steps cover examples once", sorted(covered) == sorted(there), len(covered))


def rows_of(run: Simulation, table: str) -> dict[int, np.ndarray]:
    rows = {}
    for shard in run.shards:
        arrays = shard.shard.tables[table].export()
        rows |= dict(zip(arrays["keys"].tolist(), arrays["values"], strict=True))
    return rows


def check_counts(run: Simulation) -> None:
    """Each shown item once, each of its labels once: 0 lost, 0 twice."""
    labels = {name: number for number, name in enumerate(FEATURES.schema.labels)}
    expected = set()
    for (request, index), kinds in happened(run.events).items():
        expected.add(key_of("example", f"{request}/{index}"))
        expected |= {key_of("label", f"{request}/{index}/{labels[k]}") for k in kinds if k in labels}
    rows = rows_of(run, "features")
    lost = expected - rows.keys()
    other = {key: float(row[0]) for key, row in rows.items() if row[0] != 1 or key not in expected}
    hold("nothing is lost or counted twice", not lost and not other, (len(lost), other))
    total = sum(float(row[0]) for row in rows.values())
    hold("row sums are counts", total == len(expected), (total, len(expected)))


def learned_steps(run: Simulation) -> Iterator[tuple[Step, list[Example]]]:
    for step in records(run.log, STEPS, Step):
        examples = []
        for part in step.ranges:
            its = read_range(run.log, EXAMPLES, part.partition, part.start, part.stop)
            examples += [unpack(record.value, Example) for record in its]
        yield step, examples


@dataclass
class Visitor:
    """What a row of one number, rate 1 and gradient -1 is, by hand."""

    value: float = 0.0
    squares: float = 0.0
    used_ms: int = 0


def check_visits(run: Simulation) -> None:
    """Rows and optimizer state of a table that expires, against Adagrad by hand: who comes back is new."""
    there: dict[int, Visitor] = {}
    now_ms = expired = 0
    for step, examples in learned_steps(run):
        now_ms = max(now_ms, step.time_ms)
        users = [key_of("user", e.user_id) for e in examples]
        for key in set(users):
            visitor, times = there.setdefault(key, Visitor()), users.count(key)
            visitor.squares += times**2
            visitor.value += times / visitor.squares**0.5
            visitor.used_ms = now_ms
        if step.step % SPEC.expire_every == 0:
            gone = [k for k, v in there.items() if v.used_ms < now_ms - 1000 * TTL_S]
            expired += len(gone)
            for key in gone:
                del there[key]
    rows = rows_of(run, "users")
    hold("the run expires rows", expired > 10, expired)
    hold("expired rows left", rows.keys() == there.keys(), rows.keys() ^ there.keys())
    wrong = {
        k: (float(row[0]), there[k].value) for k, row in rows.items() if abs(row[0] - there[k].value) > 1e-4
    }
    hold("who comes back is new", not wrong, wrong)


def check_digest(run: Simulation) -> None:
    """The same steps, learned by one worker and three shards that nothing disturbs: the same bits."""
    client = LocalClient.fresh(replace(SPEC, parts=3), DENSE)
    worker = Worker(0, 1, run.log, client, CountingLearner(), run.config)  # type: ignore[arg-type]
    while worker.turn():
        pass
    mine = digest_of_shards([shard.shard for shard in run.shards])
    hold("digest is that of the undisturbed run", mine == digest_of_shards(client.shards), mine)


def check_published(run: Simulation) -> None:
    """Each shard's part of each step stands on the log: only the wire to a replica may lose one."""
    there = {(delta.step, delta.part) for delta in records(run.log, DELTAS, Delta)}
    steps = run.shards[0].applied
    missing = {(step, part) for step in range(1, steps + 1) for part in range(SHARDS)} - there
    hold("every step is published", not missing, missing)


def check_replica(run: Simulation) -> None:
    """0 rows differ between what was published and what a replica holds, over gaps and snapshots."""
    shards, replica = [shard.shard for shard in run.shards], run.replica
    hold("the replica arrives", replica.step == shards[0].applied, (replica.step, shards[0].applied))
    there = published(run.published.values())
    for table, store in replica.rows.items():
        keys, rows = store.export()
        mine = dict(zip(keys.tolist(), rows, strict=True))
        theirs = there.get(table, {})
        differ = [k for k in mine.keys() & theirs.keys() if bytes(mine[k]) != bytes(theirs[k])]
        hold("published and replica rows are equal", not differ, (table, differ))
        hold("a replica drops what expired", mine.keys() <= theirs.keys(), table)
        hold("a replica has every row", mine.keys() >= theirs.keys(), table)
    dense = shards[0].dense.averaged
    if run.spec.delta_format != "fp32":
        dense = dense.astype(np.float16).astype(np.float32)
    hold("dense parameters are equal", bool((replica.dense == dense).all()))
    hold("digests are exchanged", replica.digests > 0 or run.spec.digest_every > 100 or replica.gaps)


def check_rounding(run: Simulation) -> None:
    """What isn't held back is published as its rounded value; and steps without an example bring the rest, so
    that what is published and what is true then differ by rounding alone."""
    deltas = list(run.published.values())
    for shard in [shard.shard for shard in run.shards]:
        held = {table: shard.published.export()[f"held/{table}/keys"].tolist() for table in shard.tables}
        rounded(shard, published(d for d in deltas if d.part == shard.spec.part), held)
        twin = Shard(shard.spec, DENSE if shard.dense is not None else None)
        twin.load([shard.export()[0]], shard.export()[1])
        for _ in range(sum(len(keys) for keys in held.values())):
            step = twin.applied + 1
            delta = twin.learn(step, 0, [LaneGradients(n) for n in range(twin.spec.lanes)])
            assert delta is not None
            deltas.append(delta)
        rounded(twin, published(d for d in deltas if d.part == shard.spec.part), {})


def published(deltas: Iterable[Delta]) -> dict[str, dict[int, np.ndarray]]:
    """The fold of deltas: rows by table and key."""
    rows: dict[str, dict[int, np.ndarray]] = {}
    for delta in sorted(deltas, key=lambda delta: delta.step):
        for table, (keys, values, removed) in to_arrays(delta).items():
            there = rows.setdefault(table, {})
            there.update(zip(keys.tolist(), values, strict=True))
            for key in removed.tolist():
                there.pop(key, None)
    return rows


def rounded(shard: Shard, there: dict[str, dict[int, np.ndarray]], held: dict[str, list[int]]) -> None:
    for name, table in shard.tables.items():
        export = table.export()
        waits = set(held.get(name, []))
        true = dict(zip(export["keys"].tolist(), export["values"], strict=True))
        true = {key: row for key, row in true.items() if key not in waits}
        its = {key: row for key, row in there.get(name, {}).items() if key not in waits}
        hold("what isn't held back is published", true.keys() == its.keys(), name)
        for key, row in true.items():
            if shard.spec.delta_format == "int8":
                near = np.abs(row - its[key]).max() <= np.abs(row).max() / 250
            else:
                half = shard.spec.delta_format == "fp16"
                near = bool(((row.astype(np.float16) if half else row) == its[key]).all())
            hold("what isn't held back is published", bool(near), (name, key, row, its[key]))
