"""``recsys bench freshness``: from the end of a view to the first answer that has learned it, under load.

Events are appended at a steady rate to a SQLite log. Joiner, sequencer, worker, shard and replica are the
classes of the running system, each in a process of its own, as its parts are; Ray, which places some of them,
and HTTP are left out. After each batch of steps the replica makes an answer: only then are they "applied".

All processes read one monotonic clock. What stands on the log at last says which example a view became and
which step learned it; what the processes noted says when.
"""

import bisect
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness.worker_processes import Told, answers, end, telling, ways
from recsys.config.system_config import Config, ParameterServerConfig, StepConfig

WARM_S: Final = 5.0  # before the clock starts
STAGES: Final = ("joined", "cut", "published", "applied")
AFTER_S: Final = 3.0  # in which what was sent last may arrive
_BEAT_S: Final = 0.005  # between two appends
_IDLE_S: Final = 0.05  # as the parts wait
_SHARD: Final = 10  # the number of the first shard's notes
Notes = list[tuple[float, Any]]  # when, and what had happened by then; ascending


@dataclass(frozen=True)
class Task:
    """What a process of the bench is told."""

    config: Config
    token: str


def measure_freshness(
    seconds: float,
    rate: float,
    every_ms: int,
    shards: int,
    seed: int,
    warm_s: float = WARM_S,
    after_s: float = AFTER_S,
) -> dict[str, Any]:
    """Delays in ms of the views of ``seconds``, at ``rate`` events a second."""
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        config = replace(
            Config(),
            state=folder,
            step=replace(StepConfig(), every_ms=every_ms),
            parameter_server=ParameterServerConfig(shards=shards),
        )
        task = Task(config, secrets.token_hex(16))
        found = _run(task, seconds + warm_s, rate, seed, after_s)
        begun = found.sent[0][0] + warm_s
        figures = _figures(config, [view for view in found.sent if view[0] >= begun], found.notes)
        passed = seconds + warm_s + after_s
        cores = {kind: round(cpu_s / passed, 3) for kind, cpu_s in found.cpu_s.items()}
    return {
        "what": f"{rate:.0f} events/s offered for {seconds:.0f} s after {warm_s:.0f} s; step.every_ms "
        f"{every_ms}, {shards} shard(s), 1 worker, 1 replica; delays in ms",
        "figures": figures | {"cores_busy": cores},
        "comparators": {},
    }


@dataclass(frozen=True)
class Found:
    """When which (request, item) was viewed, and what each kind of part noted, with its processor time."""

    sent: list[tuple[float, str, str]]
    notes: dict[str, list[Notes]]
    cpu_s: dict[str, float]


def _run(task: Task, seconds: float, rate: float, seed: int, after_s: float) -> Found:
    """Sends at a steady rate, and waits for what was sent last."""
    from benchmarks.system.synthetic_views import draw_items, draw_views
    from recsys.events.event_types import encode
    from recsys.events.records import ITEMS
    from recsys.log.protocol import Append
    from recsys.process.open_log import create_topics, open_log

    config, shards = task.config, task.config.parameter_server.shards
    log = open_log(config)
    create_topics(log, config)
    items = draw_items(seed)
    log.append(ITEMS, [Append(0, str(item.item_id).encode(), encode(item)) for item in items])
    events = draw_views(config, items, int(seconds * rate), seed)[: int(seconds * rate)]
    told, stop, start = ways(True)
    _, over, _ = ways(True)  # for the shards: a worker may be asking one when it is told to stop
    with ExitStack() as stack:
        parts = [start(serve, task, part, told, over) for part in range(shards)]
        stack.callback(end, parts, over)
        stack.callback(stop.set)
        ports = answers(told, "shard", shards, parts)
        parts += [start(part, task, told, stop) for part in (join, cut, follow)]
        parts.append(start(learn, task, ports, told, stop))
        answers(told, "ready", 4, parts)
        sent = _send(log, config, events, rate)
        time.sleep(after_s)
        stop.set()
        notes: dict[str, list[Notes]] = {kind: [] for kind in STAGES}
        busy: dict[str, float] = {}
        told_by = list(answers(told, "noted", 4, parts).values())
        over.set()
        told_by += answers(told, "noted", shards, parts).values()
        for kind, noted, cpu_s in told_by:
            notes.setdefault(kind, []).append(noted)
            busy[kind] = busy.get(kind, 0.0) + cpu_s
    log.close()
    return Found(sent, notes, busy)


def _send(
    log: Any, config: Config, events: Sequence[Any], rate: float
) -> list[tuple[float, str, str]]:
    """Appends events when they are due; returns the views with the time just before their append."""
    from recsys.events.event_types import Engagement, encode
    from recsys.events.hashing import partition_of
    from recsys.events.records import EVENTS
    from recsys.log.protocol import Append

    due = [Append(partition_of(e.user_id, config.log.partitions), b"", encode(e)) for e in events]
    views = [isinstance(e, Engagement) and e.kind == "view" for e in events]
    sent: list[tuple[float, str, str]] = []
    started, done = time.monotonic(), 0
    while done < len(due):
        now = time.monotonic()
        until = min(len(due), int((now - started) * rate) + 1)
        if until > done:
            log.append(EVENTS, due[done:until])
            its = zip(events[done:until], views[done:until], strict=True)
            sent += [(now, e.request_id, str(e.item_id)) for e, is_view in its if is_view]
            done = until
        time.sleep(_BEAT_S)
    return sent


def join(task: Task, told: Told, stop: Any) -> None:
    """The joiner; notes how many examples stood in each partition."""
    from recsys.clock import wall_ms
    from recsys.events.records import EVENTS, EXAMPLES
    from recsys.features.feature_set_file import feature_set
    from recsys.process.open_log import open_log
    from recsys.process.part_snapshot import PartState
    from training.joining.joiner_loop import JoinerLoop

    with telling(told, 0):
        config, log = task.config, open_log(task.config)
        state = PartState(config.state, "joiner")
        loop = JoinerLoop(log, config, feature_set(config), wall_ms, state, open_log(config))

        def turn() -> Any:
            moved = loop.turn()
            partitions = range(config.log.partitions) if moved else ()
            return tuple(log.end(EXAMPLES, partition) for partition in partitions) or None

        _loop("joined", 0, turn, lambda: log.wait(EVENTS, _IDLE_S), told, stop)


def cut(task: Task, told: Told, stop: Any) -> None:
    """The sequencer; notes the newest step."""
    from recsys.clock import wall_ms
    from recsys.events.records import EXAMPLES
    from recsys.features.feature_set_file import feature_set
    from recsys.process.open_log import open_log
    from training.steps.sequencer_loop import SequencerLoop

    with telling(told, 1):
        log = open_log(task.config)
        loop = SequencerLoop(log, task.config, feature_set(task.config), wall_ms)

        def wait() -> None:
            log.wait(EXAMPLES, 0.01 if loop.waiting else _IDLE_S)

        _loop("cut", 1, lambda: loop.step if loop.turn() else None, wait, told, stop)


def follow(task: Task, told: Told, stop: Any) -> None:
    """A replica that follows the log as a serving one does; notes the step of its newest answer."""
    from recsys.clock import wall_ms
    from recsys.events.records import DELTAS
    from recsys.features.feature_set_file import feature_set
    from recsys.features.session import Session
    from recsys.process.open_log import open_log
    from serving.pipeline import Pipeline
    from serving.replica.replica import Replica
    from serving.replica.state_reader import StateReader
    from serving.request import Request

    with telling(told, 2):
        features, log = feature_set(task.config), open_log(task.config)
        replica = Replica(features, task.config)
        reader = StateReader(log, replica, task.config, wall_ms)
        reader.catch_up(stop.is_set)
        pipeline, session, known = Pipeline(replica), Session("u0", features), 0

        def turn() -> Any:
            nonlocal known
            reader.apply(reader.read())
            if replica.step == known:
                return None
            known = replica.step
            policy = reader.policies.resolve("u0")
            answer = pipeline.recommend(Request("u0"), session, policy, wall_ms(), f"r{known}")
            if answer.degraded or answer.stamp is None:
                raise RuntimeError(
                    f"an answer is degraded: {answer.degraded}, expected a whole one"
                )
            return answer.stamp.step

        _loop("applied", 2, turn, lambda: log.wait(DELTAS, 0.02), told, stop)


def learn(task: Task, ports: dict[int, int], told: Told, stop: Any) -> None:
    """The one worker; the shards note what it has done."""
    from parameter_server.rpc.parameter_client import ShardedClient, hello
    from parameter_server.rpc.parameter_client import Worker as WorkerId
    from parameter_server.rpc.transport import Address, SocketChannel
    from recsys.events.records import STEPS
    from recsys.features.feature_set_file import feature_set
    from recsys.model.model import build_model
    from recsys.process.open_log import open_log
    from training.continual.jagged import keyed_jagged
    from training.continual.learner import Learner
    from training.continual.worker import Worker
    from training.lines.line import spec_of

    with telling(told, 3):
        config, spec, who, log = (
            task.config,
            spec_of(task.config),
            WorkerId(0, 1, 1),
            open_log(task.config),
        )
        channels = [
            SocketChannel(
                lambda port=port: Address("127.0.0.1", port, task.token),  # type: ignore[misc]
                lambda token, part=part: hello(spec, part, who, token),  # type: ignore[misc]
            )
            for part, port in sorted(ports.items())
        ]
        client = ShardedClient(spec, channels, who)
        learner = Learner(build_model(feature_set(config), config.model), keyed_jagged)
        worker = Worker(0, 1, log, client, learner, config)

        def turn() -> Any:
            return worker.step if worker.turn() else None

        _loop("learned", 3, turn, lambda: log.wait(STEPS, _IDLE_S), told, stop)
        client.close()


def serve(task: Task, part: int, told: Told, stop: Any) -> None:
    """One shard with its write-ahead file; notes how many steps it has published."""
    from parameter_server.rpc.parameter_client import part_of
    from parameter_server.rpc.shard_service import ShardService
    from parameter_server.rpc.transport import SocketServer
    from parameter_server.storage.durable_shard import DurableShard, ShardStorage
    from parameter_server.table.kernels import warm
    from recsys.events.records import DELTAS
    from recsys.features.feature_set_file import feature_set
    from recsys.log.protocol import Append
    from recsys.model.model import build_model
    from recsys.process.open_log import open_log
    from training.lines.line import spec_of

    with telling(told, part):
        warm()
        config, log = task.config, open_log(task.config)
        spec, folder, notes = spec_of(config), Path(config.state), list[tuple[float, Any]]()

        def publish(deltas: Sequence[bytes]) -> None:
            log.append(DELTAS, [Append(0, b"", delta) for delta in deltas])
            notes.append((time.monotonic(), len(deltas) + (notes[-1][1] if notes else 0)))

        dense = build_model(feature_set(config), config.model).read_dense() if part == 0 else None
        home = ShardStorage(folder / "snapshots", folder / f"{part}.wal", config.step.snapshot_every)
        shard = DurableShard(part_of(spec, part), home, publish, dense, background=True)
        server = SocketServer(ShardService(shard, task.token))
        told.put(("shard", part, server.address.port))
        began_s = time.process_time()
        stop.wait()
        told.put(("noted", _SHARD + part, ("published", notes, time.process_time() - began_s)))
        server.close()
        shard.close()


def _loop(
    kind: str, number: int, turn: Callable[[], Any], wait: Callable[[], None], told: Told, stop: Any
) -> None:
    """Turns until asked to stop; then tells when ``turn`` said something, and what."""
    notes: Notes = []
    told.put(("ready", number, None))
    began_s = time.process_time()
    while not stop.is_set():
        said = turn()
        if said is None:
            wait()
        else:
            notes.append((time.monotonic(), said))
    told.put(("noted", number, (kind, notes, time.process_time() - began_s)))


def _figures(
    config: Config, sent: list[tuple[float, str, str]], notes: dict[str, list[Notes]]
) -> dict[str, Any]:
    """Percentiles of each stage, from the one before, and of all. A view that never arrived counts as having
    taken until the end."""
    examples, steps = _examples(config), _steps(config)
    ended = max(its[-1][0] for parts in notes.values() for its in parts if its)
    rows, unlearned = [], 0
    first: dict[tuple[str, str], float] = {}
    for at, request, item in sent:
        first.setdefault((request, item), at)  # some come twice
    for place, at in first.items():
        partition, offset = examples.get(place, (0, -1))
        step = _step_of(steps, partition, offset) if offset >= 0 else None
        joined = _when(notes["joined"][0], lambda ends, p=partition, o=offset: ends[p] > o)  # type: ignore[misc]
        times = [at, joined if offset >= 0 else None]
        for kind in STAGES[1:]:
            reached = [_when(its, lambda done, s=step: done >= s) for its in notes[kind]] if step else [None]  # type: ignore[misc] # fmt: skip
            times.append(None if None in reached else max(t for t in reached if t is not None))
        unlearned += times[-1] is None
        rows.append([ended if t is None else t for t in times])
    times_NS = np.array(rows)
    delays = {name: times_NS[:, n + 1] - times_NS[:, n] for n, name in enumerate(STAGES)}
    delays["view_to_answer"] = times_NS[:, -1] - times_NS[:, 0]
    return {
        "views": len(first),
        "views_per_s": round(len(first) / (sent[-1][0] - sent[0][0]), 1),
        "unlearned": unlearned,
        "examples_a_step": round(float(np.mean([step.examples for step in steps])), 1),
        **{name: _percentiles(its) for name, its in delays.items()},
    }


def _percentiles(delays_s: Any) -> dict[str, float]:
    return {f"p{p}": round(1000 * float(np.percentile(delays_s, p)), 1) for p in (50, 95, 99)}


def _when(notes: Notes, holds: Callable[[Any], bool]) -> float | None:
    """When what was noted first held: once it does, it does for good."""
    at = bisect.bisect_left(notes, True, key=lambda note: holds(note[1]))
    return notes[at][0] if at < len(notes) else None


def _examples(config: Config) -> dict[tuple[str, str], tuple[int, int]]:
    """Where each view's first example stands, by request and item."""
    from recsys.events.records import EXAMPLES, Example, unpack
    from recsys.process.open_log import open_log

    log, found = open_log(config), dict[tuple[str, str], tuple[int, int]]()
    for partition in range(config.log.partitions):
        at = 0
        while records := log.read(EXAMPLES, partition, at):
            for record in records:
                its = unpack(record.value, Example)
                place = its.request_id, str(its.item_id)
                if not its.correction:
                    found.setdefault(place, (partition, record.offset))
            at = records[-1].offset + 1
    log.close()
    return found


def _steps(config: Config) -> list[Any]:
    from recsys.events.records import STEPS, Step, unpack
    from recsys.process.open_log import open_log

    log = open_log(config)
    found, at = list[Any](), 0
    while records := log.read(STEPS, 0, at):
        found += [unpack(record.value, Step) for record in records]
        at = records[-1].offset + 1
    log.close()
    return found


def _step_of(steps: list[Any], partition: int, offset: int) -> int | None:
    """The step whose range of a partition reaches an offset first."""
    for step in steps:
        for part in step.ranges:
            if part.partition == partition and part.start <= offset < part.stop:
                return int(step.step)
    return None
