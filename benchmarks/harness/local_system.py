"""The running system in one process over a log: the classes of the live parts, called one after the other.

For benches and tests that need a real but deterministic run: the clock is handed in, and viewers act by
hashes of the request id. The live system waits; this one acts on each ``turn``.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.memory_sessions import MemorySessions
from parameter_server.publish.deltas import record_publish_spans
from parameter_server.rpc.parameter_client import LocalClient, route_lanes
from parameter_server.shard.shard import part_of
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from parameter_server.table.dense import Vector
from parameter_server.table.kernels import warm
from recsys.app.set_loops import SetLoops
from recsys.config.system_config import Config, ModelConfig, ServeConfig, StepConfig
from recsys.events.control_records import Experiments
from recsys.events.event_types import Item, User, encode
from recsys.events.hashing import partition_of, uniform
from recsys.events.records import CONTROL, DELTAS, EVENTS, ITEMS, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.session import PLAIN_LIST
from recsys.log.protocol import Append
from recsys.model.model import build_model
from recsys.observability.tracer import open_tracer
from recsys.process.open_log import create_topics, open_log
from serving.access.caller import SERVER
from serving.followers.followers import Followers
from serving.request import Answer, Request
from serving.retrieval.retrieval_client import RetrievalClient
from serving.retrieval.retrieval_service import RetrievalService
from serving.service import Service
from serving.sessions.counter_loop import CounterLoop
from serving.sessions.session_loop import SessionLoop
from serving.tracing.swipe_traces import SwipeTraces
from training.candidates.director import Director
from training.candidates.shadow_loop import ShadowLoop
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.joining.join_trace import JoinTrace
from training.joining.joiner_loop import JoinerLoop
from training.lines.control import model_now
from training.lines.line import MAIN, spec_of
from training.steps.sequencer_loop import EpochEnd, SequencerLoop
from training.steps.step_trace import SequenceTrace, trace_step

START_MS: Final = 1_790_000_000_000
_WATCH_MS: Final = 3_000


def small_config(state: Path) -> Config:
    """Small model and short steps that learn quickly."""
    return replace(
        Config(),
        state=str(state),
        step=StepConfig(
            examples=32, every_ms=1_000, lanes=2, snapshot_every=5, snapshot_s=0, snapshots_kept=50
        ),
        model=ModelConfig(dim=4, vector_dim=8, hidden=(16,)),
        serve=ServeConfig(candidates=80),
    )


class DurableShards(LocalClient):
    """Durable shards that run on the calling thread."""

    def __init__(self, durable: Sequence[DurableShard]) -> None:
        super().__init__([shard.shard for shard in durable])
        self.durable = durable

    def exchange(self, step, time_ms, lanes, next_keys, meanwhile=lambda: None):  # type: ignore[no-untyped-def]
        for shard, own in zip(self.durable, route_lanes(lanes, len(self.durable)), strict=True):
            shard.learn(step, time_ms, own)
        return None if next_keys is None else self.lookup(step, next_keys), self.dense(step)


class LocalSystem:
    """A system in a state folder. Use it in one event loop: ``start``, then ``ask``, ``turn``, ``stop``."""

    def __init__(self, config: Config) -> None:
        warm()
        self.config, self.now_ms = config, START_MS
        self.log = open_log(config)
        create_topics(self.log, config)
        self.features = feature_set(config)
        self.sessions = MemorySessions()
        self.tracer = tracer = open_tracer(config, "all")
        self.fold = SetLoops(self.log, self.features, self._session_loop)
        self.counters = SetLoops(self.log, self.features, self._counter_loop)
        joins = JoinTrace(tracer, time.time_ns) if tracer else None
        self.joiner = JoinerLoop(self.log, config, self.features, self._clock, trace=joins)
        cuts = SequenceTrace(tracer, time.time_ns) if tracer else None
        self.sequencer = SequencerLoop(self.log, config, self.features, self._clock, trace=cuts)
        self._learn_in(0)
        self.director = Director(self.log, config, self._clock)
        self.shadow = ShadowLoop(self.log, config, self.features, self._clock)
        self.retrieval = [
            RetrievalService(config, self.log, n, config.serve.retrieval_shards, self._clock)
            for n in range(config.serve.retrieval_shards)
        ]
        self.service = self._service()
        partitions = range(self.log.partitions(EVENTS))
        self._asked = sum(self.log.end(EVENTS, partition) for partition in partitions)

    def _clock(self) -> int:
        return self.now_ms

    def _session_loop(self, name: str, features: FeatureSet) -> SessionLoop:
        store, seen = self.sessions.of_set(name), self.config.sessions.seen
        return SessionLoop(self.log, store, features, self._clock, seen, self.tracer, name)

    def _counter_loop(self, name: str, features: FeatureSet) -> CounterLoop:
        return CounterLoop(self.log, features, None, self._clock, name=name)

    def _learn_in(self, epoch: int) -> None:
        """Creates shards and worker of an epoch from its newest snapshot."""
        config, features = model_now(self.log, self.config, self.features, MAIN, epoch)
        parts = range(config.parameter_server.shards)
        model = build_model(features, config.model)
        self._learner, dense = Learner(model), model.read_dense()
        self.epoch = epoch
        self.shards = DurableShards([self._shard(config, part, epoch, dense) for part in parts])
        self.worker = Worker(0, 1, self.log, self.shards, self._learner, config, MAIN, epoch)
        self._end = EpochEnd(self.log, MAIN, epoch)

    def restart_trainer(self) -> None:
        """Replaces shards and worker, as after a kill: from snapshot and write-ahead file of the live
        epoch."""
        for shard in self.shards.durable:
            shard.close()
        self._learn_in(self.epoch)

    def _shard(self, config: Config, part: int, epoch: int, dense: Vector) -> DurableShard:
        step, folder = config.step, Path(config.state)
        home = ShardStorage(
            folder / "snapshots", folder / f"{epoch}-{part}.wal", step.snapshot_every, step.snapshots_kept
        )
        spec, first = part_of(spec_of(config, epoch=epoch), part), dense if part == 0 else None
        return DurableShard(spec, home, self._publish, first)

    def _publish(self, deltas: Sequence[bytes]) -> None:
        began_ns = time.time_ns()
        self.log.append(DELTAS, [Append(0, b"", delta) for delta in deltas])
        if self.tracer:
            record_publish_spans(self.tracer, deltas, began_ns, time.time_ns())

    def _service(self) -> Service:
        asked = [service.search for service in self.retrieval]
        shards = RetrievalClient(asked) if asked else None
        traces = SwipeTraces(self.tracer, "replica", time.time_ns) if self.tracer else None
        return Service(self.config, self.log, self.sessions, self._clock, shards, traces)

    async def start(self) -> None:
        """The replica reads the log to its end. Afterwards it follows by ``turn`` instead of a thread of its
        own."""
        self.service.writer.start()
        for followers in self._all_followers():
            if not followers.ready:
                followers.catch_up(lambda: False)

    async def restart_replica(self) -> None:
        """Replaces the replica: the new one starts from the newest snapshot and the begin of the counters."""
        await self._end_replica()
        self.service = self._service()
        await self.start()

    async def stop(self) -> None:
        await self._end_replica()
        self.close()

    def close(self) -> None:
        """Releases the files of a system that was never started; ``stop`` calls it."""
        for shard in self.shards.durable:
            shard.close()
        if self.tracer:
            self.tracer.close()
        self.log.close()

    async def _end_replica(self) -> None:
        self.service.write_api.close()
        await asyncio.to_thread(self.service.writer.close)
        await self.service.sessions.store.close()

    def publish(self, items: Sequence[Item]) -> None:
        self.log.append(ITEMS, [Append(0, str(i.item_id).encode(), encode(i)) for i in items])

    def profile(self, user: User) -> None:
        partition = partition_of(user.user_id, self.config.log.partitions)
        self.log.append(EVENTS, [Append(partition, str(user.user_id).encode(), encode(user))])

    def experiments(self, experiments: Experiments) -> None:
        self.log.append(CONTROL, [Append(0, b"", pack(experiments))])

    async def ask(self, request: Request) -> Answer:
        """Answers one request; its impression is on the log when this returns.

        Request ids are counted, so that two runs draw and explore alike.
        """
        self._asked += 1
        request_id = f"{PLAIN_LIST if request.plain else ''}{self._asked:032x}"
        answer = await self.service.recommend(request, request_id)
        while self.service.writer.kept_bytes:
            await asyncio.sleep(0.0005)
        return answer

    async def watch(self, answer: Answer) -> None:
        """The viewer watches each item, and likes or hides some."""
        events: list[dict[str, Any]] = []
        for rank, shown in enumerate(answer.items):
            self.now_ms += _WATCH_MS
            draw = uniform(1, answer.request_id, rank)
            what = {"type": "engagement", "time_ms": self.now_ms, "request_id": answer.request_id,
                    "user_id": answer.impression.user_id, "item_id": shown.item_id}  # fmt: skip
            kinds = ["like"] if draw < 0.2 else ["hide"] if draw > 0.97 else []
            events += [what | {"kind": kind} for kind in kinds]
            events.append(what | {"kind": "view", "watch_ms": int(20_000 * draw)})
        taken = await self.service.write_api.append_events(events, SERVER)
        assert taken.count("accepted") == len(events), taken.results

    def turn(self) -> None:
        """Folds, joins, learns and applies everything that is due."""
        self.fold.turn()
        self.counters.turn()
        while self.joiner.turn():
            pass
        self.director.turn()
        self.shadow.turn()
        self.sequencer.turn()
        self._learn()
        self.follow()

    def _learn(self) -> None:
        """Learns all steps on the log, and goes on in the next epoch where the line does."""
        while True:
            self._learn_here()
            following = self._end.following(self.worker.step)
            if following is None:
                return
            for shard in self.shards.durable:
                shard.stop()
            self._learn_in(following)

    def _learn_here(self) -> None:
        began_ns = time.time_ns()
        while learned := self.worker.turn():
            if self.tracer:
                version = (MAIN, self.epoch, self.worker.step)
                trace_step(self.tracer, version, learned, began_ns, time.time_ns())
            began_ns = time.time_ns()

    def follow(self) -> None:
        """The replica and the retrieval shards read and apply what is new on the log."""
        control = self.service.live.control
        self.service.canary.update(control.canary, control.arms)
        for variant in self.service.canary.variants.all:
            if not variant.followers.ready:
                variant.followers.catch_up(lambda: False)
        for followers in self._all_followers():
            full = True
            while full:
                before = followers.weights.offset
                batch = followers.read()
                followers.apply(batch)
                # After a snapshot many deltas are known already: a batch of them is empty.
                full = batch.full or followers.weights.offset > before

    def _all_followers(self) -> list[Followers]:
        variants = [variant.followers for variant in self.service.canary.variants.all]
        return [self.service.live.followers, *(shard.followers for shard in self.retrieval), *variants]
