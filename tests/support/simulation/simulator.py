"""The whole way of an example in one process: events, joiner, sequencer, worker, shards, deltas, replica.

The classes are the real ones; disk, log and wire are those of ``simulator_faults``. A seed decides who turns,
what breaks and when. After a storm there is calm, in which everything settles, and then ``check`` says
(``simulator_oracles``) whether anything was lost, doubled or is different.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from parameter_server.publish.deltas import StepDelta, to_arrays
from parameter_server.rpc.parameter_client import Channel, ShardedClient, WorkerId, part_of
from parameter_server.rpc.protocol import Exchange, Frame, Reply, Rewind
from parameter_server.rpc.shard_service import ShardService
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import ShardSpec
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from parameter_server.storage.mapped_rows import MappedRows
from recsys.config.system_config import TableConfig
from recsys.events.event_types import Event
from recsys.events.records import DELTAS, EVENTS, Delta, topics, unpack
from recsys.log.protocol import Append, LogUnavailable, MemoryLog
from recsys.process.part_snapshot import PartState
from serving.followers.line_reader import LineReader, LoadedSnapshot
from serving.replica.row_store import RowStore
from tests.support.clock import Clock
from tests.support.simulation.simulator_faults import Chance, Crash, Disk, FaultyKafka, FaultyLog, Wire
from tests.support.simulation.simulator_learner import CountingLearner
from tests.support.training.small_feed import FEATURES, PARTITIONS, append_events, feed, toy_config
from training.continual.worker import Worker
from training.joining.joiner_loop import JoinerLoop
from training.steps.sequencer_loop import SequencerLoop

SHARDS: Final = 2
TTL_S: Final = 5
CONFIG: Final = toy_config(examples=4, shards=SHARDS)
TABLES: Final = (
    TableConfig("features", 1, 1.0),  # the counting table
    # The smallest sketch: most bytes of a snapshot are its cells, and there are few ids to collide.
    TableConfig("items", 3, 0.1, initial=0.1, admit_after=2, ttl_s=TTL_S, sketch_mb=0.3),
    TableConfig("users", 1, 1.0, ttl_s=TTL_S),
)
SPEC: Final = ShardSpec(
    TABLES, CONFIG.step.lanes, parts=SHARDS, expire_every=4, dense_average=0.9, dense_first=3.0
)
DENSE: Final = np.linspace(-1, 1, 5, dtype=np.float32)
SNAPSHOT_EVERY: Final = 5
JUMPS_MS: Final = (-3_600_000, 3_600_000, -700, -86_400_000)  # a wrong hour, a slewed second, a wrong day
BUDGET: Final = 60  # bytes of rows: about five
# How deltas are published, by seed: exact and whole; rounded, and most of a step held back; the same, with
# digests too rare to mend what the fold of deltas must get right by itself.
PUBLISHED: Final = (
    {"digest_every": 3},
    {"delta_format": "fp16", "delta_bytes": BUDGET, "settle_every": 13, "digest_every": 2},
    {"delta_format": "int8", "delta_bytes": BUDGET, "settle_every": 7, "digest_every": 10**6},
)


class ManyLanes(SequencerLoop):
    """Sequencer whose small steps fill several lanes, as large ones do."""

    lane_examples = 1


class Broken(AssertionError):
    """An invariant doesn't hold; ``name`` says which."""

    def __init__(self, name: str, what: object) -> None:
        super().__init__(f"{name}: {what}")
        self.name = name


def hold(name: str, true: bool, what: object = "") -> None:
    if not true:
        raise Broken(name, what)


class ShuffledShard(DurableShard):
    """Lanes come in any order: they are of several workers."""

    chance: Chance

    def learn(self, step: int, time_ms: int, lanes: Sequence[LaneGradients], publish: bool = True) -> None:
        lanes = list(lanes)
        self.chance.random.shuffle(lanes)
        super().learn(step, time_ms, lanes, publish)


class InProcess(Channel):
    """A channel to a shard of the simulation: it waits for one that is away, and asks it again."""

    def __init__(self, simulation: "Simulation", part: int) -> None:
        self._simulation, self._part = simulation, part

    def send(self, frame: Frame) -> None:
        self._frame = frame

    def receive(self) -> Frame:
        return self._attempt()

    def _attempt(self) -> Frame:
        reply = self._simulation.ask(self._part, self._frame)
        self._simulation.chance.point("answer")  # the worker dies before it reads the answer
        return reply

    def close(self) -> None: ...


class Copy:
    """A replica's rows and dense parameters, folded from a snapshot and the deltas that arrive."""

    def __init__(self, log: MemoryLog, folder: Path, published: Mapping[tuple[int, int], Delta]) -> None:
        self.digests = self.rebased = 0
        self._reader, self._published = LineReader(log, folder), published
        self._take(self._reader.start(SPEC.line, None))

    @property
    def gaps(self) -> int:
        return self._reader.gaps

    def turn(self, now_ms: int) -> int:
        loaded = self._reader.mend(now_ms)
        if loaded is not None:
            self._take(loaded)
        newer = self._reader.newer_base(now_ms, self.step, due=True)
        if newer is not None:
            self.rebased += 1
            for name, base in newer.tables.items():
                self.rows[name] = self.rows[name].rebased(base)
        steps = self._reader.read(8)
        for delta in steps:
            hold("a replica never goes back", delta.step > self.step, (delta.step, self.step))
            self._check(delta)
            for name, changed in delta.tables.items():
                self.rows[name].set(changed.keys, changed.values, delta.step)
                self.rows[name].remove(changed.removed, delta.step)
            if delta.dense is not None:
                self.dense = delta.dense
            self.step = delta.step
            if delta.digest is not None:
                self.digests += 1
                its = sum(rows.digest for rows in self.rows.values()) % 2**64
                hold("digests of published and replica rows are equal", its == delta.digest, delta.step)
        return len(steps)

    def _check(self, delta: StepDelta) -> None:
        parts = [to_arrays(self._published[delta.step, part]) for part in range(SHARDS)]
        for name, changed in delta.tables.items():
            its = [part[name] for part in parts if name in part]
            same = all(
                np.concatenate(column).tobytes() == mine.tobytes()
                for column, mine in zip(zip(*its, strict=True), changed, strict=True)
            )
            hold("a step is applied as it was published", same, (delta.step, name))

    def _take(self, loaded: LoadedSnapshot) -> None:
        self.step, self.dense = loaded.step, DENSE
        bases = {} if loaded.rows is None else loaded.rows.tables
        self.rows = {
            table.name: RowStore.over(table, SPEC.seed, bases.get(table.name, MappedRows()))
            for table in TABLES
        }
        if loaded.rows is not None and loaded.rows.dense is not None:
            self.dense = loaded.rows.dense


class Simulation:
    """One seeded run. ``run`` raises Broken where an invariant doesn't hold on the way; then ``check``."""

    def __init__(
        self, seed: int, folder: Path, rate: float | None = None, extra: Collection[str] = ()
    ) -> None:
        """``extra``: faults beside those that all runs have, of ``simulator_faults.EXTRA``."""
        self.seed, self.folder, self.extra = seed, folder, extra
        rates = (0.004, 0.015, 0.03, 0.06)
        self.power = seed % 2 == 0
        self.chance = Chance(seed, rates[seed % 4] if rate is None else rate, self.power)
        self.disk = Disk(folder, self.chance, "full disk" in extra)
        self.clock = Clock()
        self.log = (FaultyKafka if "kafka" in extra else FaultyLog)(self.chance)
        for topic in topics(PARTITIONS):
            self.log.create(topic)
        self.wire = Wire(self.log, self.chance)
        self.config = replace(CONFIG, state=str(folder))
        self.spec = replace(SPEC, **PUBLISHED[seed % len(PUBLISHED)])  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.answered = [0] * SHARDS  # the newest step that each shard answered for
        self.published: dict[tuple[int, int], Delta] = {}  # by step and part
        self.crashes = 0
        self.replicas: list[Copy] = []  # each start of the replica
        self.held_back = 0  # answers of shards that held some row back from replicas
        self._shards: list[tuple[DurableShard, ShardService] | None] = [None] * SHARDS
        self._parts: dict[str, Any] = dict.fromkeys(("joiner", "sequencer", "worker", "replica"))

    def run(
        self, requests: int = 40, calm: int = 30, between: Callable[[], None] | None = None
    ) -> "Simulation":
        """A storm over some requests, then calm until all is learned and the replica has all of it.
        ``between``: a fault that comes after the storm, while all processes are down."""
        first = 1000 * self.seed
        try:
            with self.disk, quiet():
                self._storm(feed(requests, first))
                self.chance.rate = 0.0
                if between is not None:
                    self._down()
                    between()
                self._arrive(feed(calm, first + requests + 400))
                self._settle()
        except Broken:
            raise
        except Exception as error:
            raise Broken("it goes on", repr(error)) from error
        return self

    def _down(self) -> None:
        """All processes are killed."""
        self._parts = dict.fromkeys(self._parts)
        self._shards = [None] * SHARDS

    @property
    def shards(self) -> list[DurableShard]:
        return [self._shard(part)[0] for part in range(SHARDS)]

    @property
    def replica(self) -> Copy:
        return self._part("replica")

    def ask(self, part: int, frame: Frame) -> Frame:
        """A shard's reply; a shard that dies meanwhile is started again and asked again."""
        while True:
            try:
                reply = self._shard(part)[1].answer(frame)
            except Crash as crash:
                if crash.power:
                    raise
                self._shard_is_gone(part)
                continue
            except (LogUnavailable, OSError):  # while it started
                self._shard_is_gone(part)
                continue
            if isinstance(reply.message, Reply):
                self.held_back += sum(self._shard(part)[0].shard.published.withheld.values()) > 0
                if isinstance(frame.message, Exchange):
                    self.answered[part] = max(self.answered[part], frame.message.step)
                elif isinstance(frame.message, Rewind):
                    self.answered[part] = frame.message.step
            self._publish_behind(part)
            return reply

    def _publish_behind(self, part: int) -> None:
        """What a shard does once its answer is on its way. Now and then it comes to it only with the next
        request, which may be too late for it: then it dies in between."""
        shard, service = self._shard(part)
        if (shard.applied + part) % 3:
            try:
                service.publish()
            except Crash as crash:
                if crash.power:
                    raise
                self._shard_is_gone(part)

    def _storm(self, events: list[Event]) -> None:
        draw, at = self.chance.random, 0
        while at < len(events):
            some = events[at : at + draw.randint(1, 12)]
            at += len(some)
            self._arrive(some + [e for e in events[:at] if draw.random() < 0.02])  # clients repeat
            self._round()
            if draw.random() < 0.2:
                self._retain()
        for _ in range(12):
            self._round()

    def _arrive(self, events: list[Event]) -> None:
        append_events(self.log, events)
        self.events += events

    def _round(self) -> int:
        """Each part turns once or not at all, in any order; returns how much they did."""
        order = list(self._parts)
        self.chance.random.shuffle(order)
        self.clock.now_ms += self.chance.random.randint(100, 3_000)
        if "clock" in self.extra and self.chance.strikes():
            self._jump()
        return sum(self._turn(part) for part in order)

    def _jump(self) -> None:
        self.chance.count("clock")
        self.clock.now_ms += self.chance.random.choice(JUMPS_MS)

    def _turn(self, name: str) -> int:
        try:
            its = self._part(name)
            if name != "replica":
                return int(its.turn())
            self.wire.carry()
            return int(its.turn(self.clock.now_ms))
        except Crash as crash:
            self.crashes += 1
            self._parts[name] = None
            if crash.power:
                self._power_is_gone()
            elif "pairs" in self.extra:
                self._another_dies()
        except LogUnavailable:
            if name in ("worker", "replica"):
                self._parts[name] = None
        except (OSError, ConnectionError):  # a disk or a shard that fails: who meets it starts again
            self._parts[name] = None
        return 1

    def _another_dies(self) -> None:
        """A part or a shard, at the same point as the one before."""
        draw = self.chance.random
        if draw.random() < 0.5:
            self._parts[draw.choice(list(self._parts))] = None
        else:
            self._shards[draw.randrange(SHARDS)] = None
        self.chance.count("pair")
        self.chance.kills += 1

    def _part(self, name: str) -> Any:
        if self._parts[name] is None:
            self._parts[name] = getattr(self, f"_{name}")()
        return self._parts[name]

    def _joiner(self) -> JoinerLoop:
        state = PartState(self.folder, "joiner")
        return JoinerLoop(self.log, self.config, FEATURES, self.clock, state)

    def _sequencer(self) -> SequencerLoop:
        return ManyLanes(self.log, self.config, FEATURES, self.clock)

    def _worker(self) -> Worker:
        channels = [InProcess(self, part) for part in range(SHARDS)]
        client = ShardedClient(self.spec, channels, WorkerId())
        return Worker(0, 1, self.log, client, CountingLearner(), self.config)  # type: ignore[arg-type]

    def _replica(self) -> Copy:
        self.replicas.append(Copy(self.wire.arrived, self.folder / "snapshots", self.published))
        return self.replicas[-1]

    def _shard(self, part: int) -> tuple[DurableShard, ShardService]:
        there = self._shards[part]
        if there is None:
            home = ShardStorage(
                self.folder / "snapshots", self.folder / f"{part}.wal", SNAPSHOT_EVERY, 2, self.power
            )
            shard = ShuffledShard(part_of(self.spec, part), home, self._publish, DENSE if part == 0 else None)
            shard.chance = self.chance
            what = (part, shard.applied, self.answered[part], shard.lost)
            hold("what was answered is kept", shard.applied >= self.answered[part], what)
            shard.flush()
            there = self._shards[part] = shard, ShardService(shard, "token")
        return there

    def _publish(self, deltas: Sequence[bytes]) -> None:
        for delta in [unpack(value, Delta) for value in deltas]:
            first = self.published.setdefault((delta.step, delta.part), delta)
            hold("a delta published again is the same", first == delta, (delta.step, delta.part))
        self.log.append(DELTAS, [Append(0, SPEC.line.encode(), delta) for delta in deltas])

    def _shard_is_gone(self, part: int) -> None:
        self.crashes += 1
        self._shards[part] = None
        check_snapshots(self.folder / "snapshots")

    def _power_is_gone(self) -> None:
        self._down()
        self.disk.cut_power()
        check_snapshots(self.folder / "snapshots")

    def _retain(self) -> None:
        """Retention drops whatever nobody holds."""
        for partition in range(PARTITIONS):
            holds = self.log.holds(EVENTS, partition)
            if holds:
                self.log.trim(EVENTS, partition, min(holds.values()))

    def _settle(self) -> None:
        for number in range(400):
            moved = self._round()
            if number < 12 and number % 3 == 0 and "clock" in self.extra:
                self._jump()
            sequencer, worker = self._part("sequencer"), self._part("worker")
            if not moved and not sequencer.waiting and worker.step == sequencer.step:
                break
        else:
            raise Broken("it settles", f"after 400 rounds: {worker.step} of {sequencer.step}")
        for shard in self.shards:
            shard.snapshot()
        for _ in range(20):  # the replica has what it needs, and a second between two looks
            self.clock.now_ms += 1_001
            self._turn("replica")


@contextmanager
def quiet() -> Iterator[None]:
    """Gaps and restarts are what is wanted here: nobody need be told."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def check_snapshots(folder: Path) -> None:
    """In a folder of lines, a part of a snapshot that bears its name is whole, whatever crashed."""
    for part in folder.glob("*/[0-9]*/part-*"):
        try:
            manifest = json.loads((part / "manifest.json").read_text())
            its = [f"chain-{place}" for place in range(len(manifest["chain"]))] + ["arrays"]
            found = [hashlib.sha256((part / f"{name}.safetensors").read_bytes()).hexdigest() for name in its]
        except (OSError, ValueError) as error:
            raise Broken("a named snapshot is whole", f"{part}: {error}") from None
        said = [link["sha256"] for link in (*manifest["chain"], manifest)]
        hold("a named snapshot is whole", found == said, part)
