"""One seeded run of the real parts: a storm of ``kill -9``, then calm. Then it looks as a simulated run does,
so that the simulator's oracles judge it."""

import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from parameter_server.rpc.parameter_client import part_of
from parameter_server.storage.durable_shard import DurableShard
from recsys.events.event_types import Event
from recsys.events.records import DELTAS, EXAMPLES, STEPS, Delta, Step, topics, unpack
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.process.open_log import create_topics, open_log
from tests.support.simulation import real_parts
from tests.support.simulation.real_parts import BROKEN, WORKERS, Job, deltas_on
from tests.support.simulation.simulator import CONFIG, DENSE, SHARDS, Broken, Clock, Copy, hold
from tests.support.training.small_feed import FEATURES, PARTITIONS, append_events, feed
from training.joining.joiner_loop import JoinerLoop

PATIENCE_S: Final = 90.0
BETWEEN_KILLS_S: Final = (0.03, 0.25)
DOWN_S: Final = (0.0, 0.1)
_context = get_context("forkserver")  # a part starts in a moment: its modules are there
_context.set_forkserver_preload(["tests.support.simulation.real_parts"])


class RealRun:
    """Has what the oracles look at: events, log, shards, replica, published, spec, config, folder."""

    def __init__(self, seed: int, folder: Path, bug: str = "") -> None:
        self.seed, self.folder = seed, folder
        self.job = Job(seed, folder, bug)
        self.config, self.spec = CONFIG, self.job.spec
        self.events: list[Event] = []
        self.killed: dict[str, int] = {}
        self.published: dict[tuple[int, int], Delta] = {}
        self.log: Log = MemoryLog()
        self.shards: list[DurableShard] = []
        self._draw = random.Random(seed)
        self._generation = 0
        self._parts: dict[str, BaseProcess] = {}
        self._back_at: dict[str, float] = {}

    def run(self, requests: int = 120, calm: int = 30) -> "RealRun":
        """Raises Broken where it doesn't go on, or a shard comes back without what it had published."""
        self._real = open_log(self.job.config)
        create_topics(self._real, self.job.config)
        first = 1000 * self.seed
        try:
            self._revive()
            self._storm(feed(requests, first))
            self._arrive(feed(calm, first + requests + 400))
            self._settle()
        finally:
            self._kill_all()
        self._read()
        self._real.close()
        return self

    def _storm(self, events: list[Event]) -> None:
        draw, at, strike = self._draw, 0, time.monotonic() + 0.3
        while at < len(events):
            some = events[at : at + draw.randint(1, 12)]
            at += len(some)
            self._arrive(some + [e for e in events[:at] if draw.random() < 0.005])  # clients repeat
            time.sleep(draw.uniform(0.01, 0.06))
            if time.monotonic() >= strike and self._parts:
                self._strike(draw.choice(sorted(self._parts)))
                strike = time.monotonic() + draw.uniform(*BETWEEN_KILLS_S)
            self._revive()

    def _arrive(self, events: list[Event]) -> None:
        append_events(self._real, events)
        self.events += events

    def _strike(self, name: str) -> None:
        """kill -9 of a part; workers come and go as a group, as the trainer's do."""
        self.killed[name] = self.killed.get(name, 0) + 1
        group = [n for n in self._parts if n.startswith("worker")]
        for victim in group if name in group else [name]:
            _kill(self._parts.pop(victim))
        self._back_at[name.partition("-")[0] if name in group else name] = (
            time.monotonic() + self._draw.uniform(*DOWN_S)
        )

    def _revive(self) -> None:
        """Starts what isn't there, once its time has come, and again what ended by itself."""
        for name, part in list(self._parts.items()):
            if part.exitcode is not None and name in self._parts:
                self._strike(name)
        wanted: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
            "joiner": (real_parts.joiner, ()),
            "sequencer": (real_parts.sequencer, ()),
        }
        wanted |= {f"shard-{part}": (real_parts.shard, (part,)) for part in range(SHARDS)}
        now = time.monotonic()
        for name, (part, more) in wanted.items():
            if name not in self._parts and now >= self._back_at.get(name, 0.0):
                self._start(name, part, *more)
        if "worker-0" not in self._parts and now >= self._back_at.get("worker", 0.0):
            self._generation += 1
            for rank in range(WORKERS):
                self._start(f"worker-{rank}", real_parts.worker, rank, self._generation)
        broken = self.folder / BROKEN
        hold("what was answered is kept", not broken.exists(), broken.read_text() if broken.exists() else "")

    def _start(self, name: str, part: Callable[..., None], *more: Any) -> None:
        self._parts[name] = _context.Process(target=part, args=(self.job, *more), daemon=True)
        self._parts[name].start()

    def _settle(self) -> None:
        """Until as many examples as an undisturbed join makes are cut, learned and published."""
        calm = MemoryLog()
        for topic in topics(PARTITIONS):
            calm.create(topic)
        append_events(calm, self.events)
        loop = JoinerLoop(calm, CONFIG, FEATURES, Clock())
        while loop.turn():
            pass
        wanted = [calm.end(EXAMPLES, p) for p in range(PARTITIONS)]
        until = time.monotonic() + PATIENCE_S
        while not self._arrived(wanted):
            self._revive()
            if time.monotonic() > until:
                raise Broken("it settles", f"{self._ends()} of {wanted} examples, {self.killed} killed")
            time.sleep(0.05)

    def _ends(self) -> list[int]:
        return [self._real.end(EXAMPLES, p) for p in range(PARTITIONS)]

    def _arrived(self, wanted: list[int]) -> bool:
        ends = self._ends()
        if any(end < its for end, its in zip(ends, wanted, strict=True)):
            return False
        covered = [0] * PARTITIONS
        steps = self._real.end(STEPS, 0)
        for record in self._real.read(STEPS, 0, 0, steps):
            for part in unpack(record.value, Step).ranges:
                covered[part.partition] = max(covered[part.partition], part.stop)
        there = {(delta.step, delta.part) for delta in deltas_on(self._real)}
        return covered == ends and all((steps, part) in there for part in range(SHARDS))

    def _read(self) -> None:
        """What is left of it all, as after one last crash of everything."""
        memory = MemoryLog()
        for topic in topics(PARTITIONS):
            memory.create(topic)
        for part in range(SHARDS):
            shard = DurableShard(
                part_of(self.spec, part), self.job.home(part), self._publish, DENSE if part == 0 else None
            )
            shard.flush()
            self.shards.append(shard)
        for topic in topics(PARTITIONS):
            for p in range(self._real.partitions(topic.name)):
                _copy(self._real, memory, topic.name, p)
        self.log = memory
        for delta in deltas_on(memory):
            first = self.published.setdefault((delta.step, delta.part), delta)
            hold("a delta published again is the same", first == delta, (delta.step, delta.part))

    def _publish(self, deltas: Any) -> None:
        self._real.append(DELTAS, [Append(0, b"", delta) for delta in deltas])

    @property
    def replica(self) -> Copy:
        """The fold of every delta, from the line's beginning: it looks for snapshots where there are none."""
        return self.copy(self.folder / "none")

    def copy(self, snapshots: Path) -> Copy:
        copy = Copy(self.log, snapshots, self.published)  # type: ignore[arg-type]
        for _ in range(self.log.end(DELTAS, 0)):  # a turn may find nothing but repeats
            copy.turn(0)
        return copy

    def _kill_all(self) -> None:
        for part in self._parts.values():
            _kill(part)
        self._parts.clear()


def _kill(part: BaseProcess) -> None:
    if part.pid is not None and part.exitcode is None:
        os.kill(part.pid, signal.SIGKILL)
    part.join()


def _copy(real: Log, memory: MemoryLog, topic: str, partition: int) -> None:
    at = 0
    while records := real.read(topic, partition, at, 500):
        appended = [Append(partition, record.key, record.value) for record in records]
        hold("offsets are dense", memory.append(topic, appended) == [r.offset for r in records], topic)
        at = records[-1].offset + 1
