"""Cost of training for an answer: the replica's p99 with events and a delta each second, and without, in
interleaved pairs.

Joiner, sequencer, one worker and one shard are the classes of the running system, each in a process of its
own at nice 10, as in ``bench_freshness``; another process appends events. Without training these processes
are idle: they poll the log some twenty times a second.
"""

import os
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from msgspec.structs import replace as changed

from benchmarks.answers.serve_load import Door, ServeOptions, send
from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Log
from benchmarks.harness.worker_processes import (
    Messages,
    collect,
    end_processes,
    process_starter,
    reporting_errors,
)
from benchmarks.system.bench_freshness import Task, cut, join, learn, serve
from benchmarks.system.synthetic_views import draw_items, draw_views
from parameter_server.shard.shard import Shard
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Live
from recsys.events.event_types import Engagement, Impression, Stamp, encode
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS, SCORES, STEPS, pack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append
from recsys.model.model import build_model
from recsys.process.open_log import open_log
from recsys.process.process_priority import lower_session_priority
from training.candidates.shadow import Shadow
from training.lines.line import MAIN, whole_spec
from training.steps.sequencer_loop import last_position

NICE: Final = 10
EVENTS_PER_S: Final = 1_000
EVERY_MS: Final = 1_000  # a step, and so a delta, each second
STEP_EXAMPLES: Final = 4_096  # more than a second brings: time cuts the step
PAIRS: Final = 5
_BEAT_S: Final = 0.005
_SETTLE_S: Final = 2.0  # until steps reflect the new state of the switch
_WARM_S: Final = 8.0  # of events before the first pair, for compilation


@dataclass(frozen=True)
class _Switch:
    """Event that turns a process's work on and off, with its message queue and stop event."""

    messages: Messages
    stop: Any
    on: Any


def with_training(
    config: Config, door: Door, options: ServeOptions, log_progress: Log, shadow: bool = False
) -> dict[str, Any]:
    """p99 at ``options.rate`` with and without training, by pair; or, with ``shadow``, with and without a
    candidate that scores ``promotion.share`` of the stream, while training runs in both."""
    with _parts(config, options.seed) as (on, scoring):
        on.set()
        time.sleep(_WARM_S)
        pairs = _pairs(door, options, scoring if shadow else on, log_progress)
        steps = _learned(door)
    return _figures(pairs, options, steps) | ({"share": config.promotion.share} if shadow else {})


def _pairs(
    door: Door, options: ServeOptions, switch: Any, log_progress: Log
) -> list[dict[str, float]]:
    """p99 with a switch on and off; the order alternates from pair to pair."""
    pairs: list[dict[str, float]] = []
    for number in range(PAIRS):
        pair: dict[str, float] = {}
        for beside in (True, False) if number % 2 else (False, True):
            (switch.set if beside else switch.clear)()
            time.sleep(_SETTLE_S)
            seeded = replace(options, seed=options.seed + number)
            figures = send(door, seeded, options.seconds, rate=options.rate)
            pair["with" if beside else "without"] = figures["p99_ms"]
        pairs.append(pair)
        log_progress(f"pair {number + 1}: p99 {pair['with']} ms with, {pair['without']} ms without")
    return pairs


def _learned(door: Door) -> int:
    """The replica's step. Raises RuntimeError when nothing was learned."""
    steps = doors.served_step(door.port)
    if steps < PAIRS:
        raise RuntimeError(
            f"the replica is at step {steps}, expected one a second: no training was measured"
        )
    return steps


def _figures(pairs: list[dict[str, float]], options: ServeOptions, steps: int) -> dict[str, Any]:
    ratios = [pair["with"] / pair["without"] for pair in pairs]
    return {
        "p99_ratio": round(statistics.median(ratios), 3),
        "p99_pairs_ms": pairs,
        "rate": options.rate,
        "events_per_s": EVENTS_PER_S,
        "steps_served": steps,
        "nice": NICE,
    }


@contextmanager
def _parts(config: Config, seed: int) -> Iterator[tuple[Any, Any]]:
    """Starts the training parts and a shadow, and waits until all are ready; yields the switches of events
    and of shadow scoring."""
    step = replace(config.step, every_ms=EVERY_MS, examples=STEP_EXAMPLES, snapshot_every=10**6)
    task = Task(replace(config, step=step), secrets.token_hex(16))
    messages, stop, start = process_starter()
    # A stopping worker may still be calling the shard.
    shard_messages, stop_shards, _ = process_starter()
    (_, on, _), (_, scoring, _) = process_starter(), process_starter()
    parts: list[Any] = []
    shards = [start(_nicely, serve, (task, 0, shard_messages, stop_shards))]
    try:
        ports = collect(shard_messages, "shard", 1, shards)
        parts += [start(_nicely, part, (task, messages, stop)) for part in (join, cut)]
        parts.append(start(_nicely, learn, (task, ports, messages, stop)))
        sender = _Switch(messages, stop, on)
        parts.append(start(_nicely, _send_events, (task, seed, sender)))
        parts.append(start(_nicely, _score, (task, _Switch(messages, stop, scoring))))
        collect(messages, "ready", 5, parts)
        yield on, scoring
    finally:
        for queue in (messages, shard_messages):
            threading.Thread(target=_drain, args=(queue,), daemon=True).start()
        end_processes(parts, stop)
        end_processes(shards, stop_shards)


def _drain(messages: Messages) -> None:
    """Drops the parts' notes: a process doesn't end before its queue is read."""
    while True:
        messages.get()


def _nicely(part: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Runs a part in a session of its own at low priority, as the running system does: Linux may share
    processors between sessions first, and the replica is in another one."""
    os.setsid()
    lower_session_priority(NICE)
    part(*arguments)


def _send_events(task: Task, seed: int, sender: _Switch) -> None:
    """Appends events while switched on; when they are used up, they repeat under new request ids."""

    with reporting_errors(sender.messages, 4):
        config, log = task.config, open_log(task.config)
        events = draw_views(config, draw_items(seed), 20 * EVENTS_PER_S, seed)
        predicted = (
            b"\0" * 4 * (len(feature_set(config).schema.labels) + 1)
        )  # predictions by live for each item
        span_ms, round_ = events[-1].time_ms - events[0].time_ms + 1, 0
        # The load's own lists are of today, and the joiner skips events years older than them.
        shift_ms = machine_ms() - events[0].time_ms
        sender.messages.put(("ready", 4, None))
        at = 0
        while not sender.stop.is_set():
            if not sender.on.wait(0.2):
                continue
            began, sent = time.monotonic(), 0
            while sender.on.is_set() and not sender.stop.is_set():
                due = int((time.monotonic() - began) * EVENTS_PER_S) - sent
                batch = []
                for _ in range(due):
                    event: Any = events[at]
                    if isinstance(event, Engagement | Impression):
                        event = changed(
                            event,
                            request_id=f"{event.request_id}.{round_}",
                            time_ms=event.time_ms + shift_ms + round_ * span_ms,
                        )
                    if isinstance(event, Impression):
                        block = predicted * len(event.items)
                        event = changed(event, stamp=Stamp(), predicted=block)
                    user = event.user_id
                    batch.append(
                        Append(partition_of(user, config.log.partitions), b"", encode(event))
                    )
                    at += 1
                    if at == len(events):
                        at, round_ = 0, round_ + 1
                if batch:
                    log.append(EVENTS, batch)
                sent += due
                time.sleep(_BEAT_S)
        log.close()


def _score(task: Task, sender: _Switch) -> None:
    """Scores learned steps as a candidate that doesn't learn, while switched on."""
    with reporting_errors(sender.messages, 5):
        config, log = task.config, open_log(task.config)
        features = feature_set(config)
        dense = build_model(features, config.model).read_dense()
        shadow: Shadow | None = None
        sender.messages.put(("ready", 5, None))
        while not sender.stop.is_set():
            if not sender.on.wait(0.2):
                shadow = None
                continue
            if shadow is None:  # from the newest step on, without the missed ones
                shard = Shard(whole_spec(config, "cand"), dense)
                shard.applied = last_position(log, MAIN, 0, config.log.partitions).step
                lives = [Live(line=MAIN, epoch=0)]
                shadow = Shadow(log, config, features, "cand", shard, lives, learns=False)
            taken = shadow.turn()
            if taken is None:
                log.wait(STEPS, 0.05)
            elif taken[1] is not None:
                log.append(SCORES, [Append(0, b"cand", pack(taken[1]))])
        log.close()
