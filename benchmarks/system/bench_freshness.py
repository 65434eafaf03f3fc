"""``recsys bench freshness``: time from the end of a view to the first answer that has learned it, under
load.

Events are appended at a steady rate to a SQLite log, or to an embedded Kafka broker. Joiner, sequencer,
worker, shard and replica are the classes of the running system, each in a process of its own; Ray, which
places some of them, and HTTP are left out. The replica makes an answer after each batch of steps, which
counts as "applied" only then.

All processes read one monotonic clock. The final log says which example a view became and which step learned
it; the notes of the processes say when.
"""

import bisect
import operator
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from benchmarks.harness.training_processes import shard_server, shard_worker
from benchmarks.harness.worker_processes import (
    Messages,
    collect,
    end_processes,
    process_starter,
    reporting_errors,
)
from benchmarks.system.synthetic_views import draw_items, draw_views
from recsys.clock import machine_ms
from recsys.config.system_config import Config, ParameterServerConfig, StepConfig
from recsys.events.event_types import Engagement, encode
from recsys.events.hashing import partition_of
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, ITEMS, STEPS, Example, Step, unpack
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.log.embedded_broker import EmbeddedBroker
from recsys.log.protocol import Append
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_snapshot import PartState
from serving.query import Query
from serving.request import Request
from serving.variants.model_variant import ModelVariant
from training.joining.joiner_loop import JoinerLoop
from training.steps.sequencer_loop import SequencerLoop

WARM_S: Final = 5.0  # before the clock starts
STAGES: Final = ("joined", "cut", "published", "applied")
AFTER_S: Final = 3.0  # for the last events to arrive
_BEAT_S: Final = 0.005  # between two appends
_IDLE_S: Final = 0.05  # as in the parts
_SHARD: Final = 10  # message number of the first shard
Notes = list[tuple[float, Any]]  # (time, progress), ascending


@dataclass(frozen=True)
class Task:
    """Arguments of a process of the bench."""

    config: Config
    token: str
    live: bool = True  # steps follow the trainer; else they are cut by ``step.every_ms`` alone


def measure_freshness(
    seconds: float,
    rate: float,
    every_ms: int,
    shards: int,
    seed: int,
    warm_s: float = WARM_S,
    after_s: float = AFTER_S,
    soonest_ms: int | None = None,
    kafka: bool = False,
) -> dict[str, Any]:
    """Delays in ms of the views of ``seconds``, at ``rate`` events a second; beside it, of steps that are cut
    by ``every_ms`` alone."""
    step = replace(StepConfig(), every_ms=every_ms)
    step = step if soonest_ms is None else replace(step, soonest_ms=soonest_ms)
    runs, log = list[dict[str, Any]](), "Kafka" if kafka else "SQLite"
    for live in (True, False):
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recsys-bench-"))
            server = ParameterServerConfig(shards=shards)
            config = replace(Config(), state=folder, step=step, parameter_server=server)
            if kafka:
                broker = EmbeddedBroker()
                broker.start()
                stack.callback(broker.stop)
                config = replace(config, log=replace(config.log, url=broker.url))
            task = Task(config, secrets.token_hex(16), live)
            run = _run(task, seconds + warm_s, rate, seed, after_s)
            begun = run.sent[0][0] + warm_s
            figures = _figures(config, [view for view in run.sent if view[0] >= begun], run.notes)
            passed = seconds + warm_s + after_s
            cores = {kind: round(cpu_s / passed, 3) for kind, cpu_s in run.cpu_s.items()}
            learning = sum(cores[kind] for kind in ("joined", "cut", "learned", "published"))
            runs.append(figures | {"cores_busy": cores, "cores_learning": round(learning, 3)})
    return {
        "what": f"{rate:.0f} events/s offered for {seconds:.0f} s after {warm_s:.0f} s; step.soonest_ms "
        f"{step.soonest_ms}, step.every_ms {every_ms}, {shards} shard(s), 1 worker, 1 replica, {log}; "
        "delays in ms",
        "figures": runs[0],
        "comparators": {"every_ms alone": runs[1]},
    }


@dataclass(frozen=True)
class Run:
    """Times of views by (request, item), notes of each kind of part, and their processor time."""

    sent: list[tuple[float, str, str]]
    notes: dict[str, list[Notes]]
    cpu_s: dict[str, float]


def _run(task: Task, seconds: float, rate: float, seed: int, after_s: float) -> Run:
    """Sends at a steady rate, and waits for the last events to arrive."""
    config, shards = task.config, task.config.parameter_server.shards
    log = open_log(config)
    create_topics(log, config)
    items = draw_items(seed)
    log.append(ITEMS, [Append(0, str(item.item_id).encode(), encode(item)) for item in items])
    events = draw_views(config, items, int(seconds * rate), seed)[: int(seconds * rate)]
    messages, stop, start = process_starter()
    _, stop_shards, _ = process_starter(True)  # for the shards: a stopping worker may still call one
    with ExitStack() as stack:
        parts = [start(serve, task, part, messages, stop_shards) for part in range(shards)]
        stack.callback(end_processes, parts, stop_shards)
        stack.callback(stop.set)
        ports = collect(messages, "shard", shards, parts)
        parts += [start(part, task, messages, stop) for part in (join, cut, follow)]
        parts.append(start(learn, task, ports, messages, stop))
        collect(messages, "ready", 4, parts)
        sent = _send(log, config, events, rate)
        time.sleep(after_s)
        stop.set()
        notes: dict[str, list[Notes]] = {kind: [] for kind in STAGES}
        busy: dict[str, float] = {}
        reports = list(collect(messages, "noted", 4, parts).values())
        stop_shards.set()
        reports += collect(messages, "noted", shards, parts).values()
        for kind, noted, cpu_s in reports:
            notes.setdefault(kind, []).append(noted)
            busy[kind] = busy.get(kind, 0.0) + cpu_s
    log.close()
    return Run(sent, notes, busy)


def _send(log: Any, config: Config, events: Sequence[Any], rate: float) -> list[tuple[float, str, str]]:
    """Appends events when they are due; returns the views with the time just before their append."""
    due = [Append(partition_of(e.user_id, config.log.partitions), b"", encode(e)) for e in events]
    views = [isinstance(e, Engagement) and e.kind == "view" for e in events]
    sent: list[tuple[float, str, str]] = []
    started, done = time.monotonic(), 0
    while done < len(due):
        now = time.monotonic()
        until = min(len(due), int((now - started) * rate) + 1)
        if until > done:
            log.append(EVENTS, due[done:until])
            batch = zip(events[done:until], views[done:until], strict=True)
            sent += [(now, e.request_id, str(e.item_id)) for e, is_view in batch if is_view]
            done = until
        time.sleep(_BEAT_S)
    return sent


def join(task: Task, messages: Messages, stop: Any) -> None:
    """The joiner process; notes the number of examples in each partition."""
    with reporting_errors(messages, 0):
        config, log = task.config, open_log(task.config)
        state = PartState(config.state, "joiner")
        append, ends = log.append, [0] * config.log.partitions

        def noting(topic: str, records: Sequence[Append]) -> list[int]:
            offsets = append(topic, records)
            for record, offset in zip(records, offsets, strict=True):
                if topic == EXAMPLES:
                    ends[record.partition] = offset + 1
            return offsets

        # Asking the log for its ends would take longer, on Kafka, than joining.
        log.append = noting  # type: ignore[method-assign]
        loop = JoinerLoop(log, config, feature_set(config), machine_ms, state, open_log(config))

        def turn() -> Any:
            return tuple(ends) if loop.turn() else None

        _loop("joined", 0, turn, lambda: log.wait(EVENTS, _IDLE_S), messages, stop)


def cut(task: Task, messages: Messages, stop: Any) -> None:
    """The sequencer process; notes the newest step."""
    with reporting_errors(messages, 1):
        log = open_log(task.config)
        loop = SequencerLoop(log, task.config, feature_set(task.config), machine_ms, live=task.live)

        def turn() -> Any:
            before = loop.step
            loop.turn()
            return loop.step if loop.step > before else None

        _loop("cut", 1, turn, loop.wait, messages, stop)


def follow(task: Task, messages: Messages, stop: Any) -> None:
    """A process with a replica that follows the log as a serving one; notes the step of its newest answer."""
    with reporting_errors(messages, 2):
        features, log = feature_set(task.config), open_log(task.config)
        live = ModelVariant(task.config, log, features, machine_ms)
        live.followers.catch_up(stop.is_set)
        session, known_step = Session("u0", features), 0

        def turn() -> Any:
            nonlocal known_step
            live.followers.apply(live.followers.read())
            if live.replica.step == known_step:
                return None
            known_step = live.replica.step
            policy = live.control.policies.resolve("u0")
            query = Query(Request("u0"), session, policy, machine_ms(), f"r{known_step}")
            answer = live.pipeline.recommend(query)
            if answer.degraded or answer.stamp is None:
                raise RuntimeError(f"an answer is degraded: {answer.degraded}, expected a whole one")
            return answer.stamp.step

        _loop("applied", 2, turn, lambda: log.wait(DELTAS, 0.02), messages, stop)


def learn(task: Task, ports: dict[int, int], messages: Messages, stop: Any) -> None:
    """The worker process; the shards report its steps."""
    with reporting_errors(messages, 3):
        log = open_log(task.config)
        with shard_worker(task.config, feature_set(task.config), task.token, ports) as worker:

            def turn() -> Any:
                return worker.step if worker.turn() else None

            _loop("learned", 3, turn, lambda: log.wait(STEPS, _IDLE_S), messages, stop)


def serve(task: Task, part: int, messages: Messages, stop: Any) -> None:
    """One shard process; reports when it published its steps."""
    with reporting_errors(messages, part):
        notes = list[tuple[float, Any]]()

        def note(deltas: int) -> None:
            notes.append((time.monotonic(), deltas + (notes[-1][1] if notes else 0)))

        features = feature_set(task.config)
        with shard_server(task.config, features, task.token, part, note) as (_, port):
            messages.put(("shard", part, port))
            began_s = time.process_time()
            stop.wait()
            busy_s = time.process_time() - began_s
            messages.put(("noted", _SHARD + part, ("published", notes, busy_s)))


def _loop(
    kind: str, number: int, turn: Callable[[], Any], wait: Callable[[], None], messages: Messages, stop: Any
) -> None:
    """Turns until asked to stop; then sends its notes."""
    notes: Notes = []
    messages.put(("ready", number, None))
    began_s = time.process_time()
    while not stop.is_set():
        reached = turn()
        if reached is None:
            wait()
        else:
            notes.append((time.monotonic(), reached))
    messages.put(("noted", number, (kind, notes, time.process_time() - began_s)))


def _figures(
    config: Config, sent: list[tuple[float, str, str]], notes: dict[str, list[Notes]]
) -> dict[str, Any]:
    """Percentiles of each stage, counted from the previous one, and of the whole. A view that never arrived
    counts as taking until the end."""
    examples, steps = _examples(config), _steps(config)
    ended = max(notes_of_part[-1][0] for parts in notes.values() for notes_of_part in parts if notes_of_part)
    rows, unlearned = [], 0
    joined = [[(at, ends[p]) for at, ends in notes["joined"][0]] for p in range(config.log.partitions)]
    first: dict[tuple[str, str], float] = {}
    for at, request, item in sent:
        first.setdefault((request, item), at)  # some are repeated
    for place, at in first.items():
        partition, offset = examples.get(place, (0, -1))
        step = _step_of(steps, partition, offset) if offset >= 0 else None
        joined_s = _when(joined[partition], partial(operator.lt, offset)) if offset >= 0 else None
        times = [at, joined_s]
        for kind in STAGES[1:]:
            reached = (
                [None]
                if step is None
                else [_when(part_notes, partial(operator.le, step)) for part_notes in notes[kind]]
            )
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
        **{name: _percentiles(notes_of_part) for name, notes_of_part in delays.items()},
    }


def _percentiles(delays_s: Any) -> dict[str, float]:
    return {f"p{p}": round(1000 * float(np.percentile(delays_s, p)), 1) for p in (50, 95, 99)}


def _when(notes: Notes, holds: Callable[[Any], bool]) -> float | None:
    """Time of the first note that satisfies a monotonic condition."""
    at = bisect.bisect_left(notes, True, key=lambda note: holds(note[1]))
    return notes[at][0] if at < len(notes) else None


def _examples(config: Config) -> dict[tuple[str, str], tuple[int, int]]:
    """Place of each view's first example, by request and item."""
    log, places = open_log(config), dict[tuple[str, str], tuple[int, int]]()
    for partition in range(config.log.partitions):
        at = 0
        while records := log.read(EXAMPLES, partition, at):
            for record in records:
                example = unpack(record.value, Example)
                place = example.request_id, str(example.item_id)
                if not example.correction:
                    places.setdefault(place, (partition, record.offset))
            at = records[-1].offset + 1
    log.close()
    return places


def _steps(config: Config) -> list[Any]:
    log = open_log(config)
    steps, at = list[Any](), 0
    while records := log.read(STEPS, 0, at):
        steps += [unpack(record.value, Step) for record in records]
        at = records[-1].offset + 1
    log.close()
    return steps


def _step_of(steps: list[Any], partition: int, offset: int) -> int | None:
    """First step whose range of a partition contains an offset."""
    for step in steps:
        for part in step.ranges:
            if part.partition == partition and part.start <= offset < part.stop:
                return int(step.step)
    return None
