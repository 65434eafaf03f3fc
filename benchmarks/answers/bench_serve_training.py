"""How much training beside it costs an answer: the replica's p99 with events and a delta each second, and
without them, in interleaved pairs.

Joiner, sequencer, one worker and one shard are the classes of the running system, each in a process of its
own at nice 10, as in ``bench_freshness``. Events are appended to the log by another. Without training these
processes are there and idle: they look at the log some twenty times a second and find nothing.
"""

import os
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from benchmarks.answers.serve_load import Door, ServeOptions, send
from benchmarks.harness import serve_doors as doors
from benchmarks.harness.worker_processes import Told, answers, end, telling, ways
from benchmarks.system.bench_freshness import Task, cut, join, learn, serve
from recsys.config.system_config import Config
from recsys.process.process_priority import lower_session_priority

NICE: Final = 10
EVENTS_PER_S: Final = 1_000
EVERY_MS: Final = 1_000  # a step, and so a delta, each second
STEP_EXAMPLES: Final = 4_096  # more than come in a second: time cuts the step
PAIRS: Final = 5
RATE: Final = 100.0
_BEAT_S: Final = 0.005
_SETTLE_S: Final = 2.0  # until the first steps with events are learned, or the last without
_WARM_S: Final = 8.0  # of events before the first pair: what is compiled at first use


@dataclass(frozen=True)
class _Sender:
    """Who appends events while ``on`` is set."""

    told: Told
    stop: Any
    on: Any


def with_training(
    config: Config, door: Door, options: ServeOptions, say: Callable[[str], None]
) -> dict[str, Any]:
    """p99 with training beside it and without, by pair."""
    with _parts(config, options.seed) as (on, _):
        on.set()
        time.sleep(_WARM_S)
        pairs = _pairs(door, options, on, say)
        steps = _learned(door)
    return _figures(pairs, options, steps)


def with_shadow(config: Config, door: Door, options: ServeOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """p99 with a candidate that is scored on ``promotion.share`` of the stream, and without: training goes on
    in both."""
    with _parts(config, options.seed) as (on, scoring):
        on.set()
        time.sleep(_WARM_S)
        pairs = _pairs(door, options, scoring, say)
        steps = _learned(door)
    return _figures(pairs, options, steps) | {"share": config.promotion.share}


def _pairs(door: Door, options: ServeOptions, switch: Any, say: Callable[[str], None]) -> list[dict[str, float]]:
    """p99 while a switch is set, and while it isn't; which comes first changes from pair to pair."""
    pairs: list[dict[str, float]] = []
    for number in range(PAIRS):
        pair: dict[str, float] = {}
        for beside in (True, False) if number % 2 else (False, True):
            (switch.set if beside else switch.clear)()
            time.sleep(_SETTLE_S)
            seeded = replace(options, seed=options.seed + number)
            found = send(door, seeded, options.seconds, rate=options.rate or RATE)
            pair["with" if beside else "without"] = found["p99_ms"]
        pairs.append(pair)
        say(f"pair {number + 1}: p99 {pair['with']} ms with, {pair['without']} ms without")
    return pairs


def _learned(door: Door) -> int:
    """The step that the replica is at. Raises RuntimeError where nothing was learned meanwhile."""
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
        "rate": options.rate or RATE,
        "events_per_s": EVENTS_PER_S,
        "steps_served": steps,
        "nice": NICE,
    }


@contextmanager
def _parts(config: Config, seed: int) -> Iterator[tuple[Any, Any]]:
    """The training parts and a shadow, all ready; what is yielded has events come, and the shadow score,
    while it is set."""
    step = replace(config.step, every_ms=EVERY_MS, examples=STEP_EXAMPLES, snapshot_every=10**6)
    task = Task(replace(config, step=step), secrets.token_hex(16))
    told, stop, start = ways(True)
    told_shard, over, _ = ways(True)  # a worker may be asking the shard when it is told to stop
    _, on, _ = ways(True)
    _, scoring, _ = ways(True)
    parts: list[Any] = []
    shards = [start(_nicely, serve, (task, 0, told_shard, over))]
    try:
        ports = answers(told_shard, "shard", 1, shards)
        parts += [start(_nicely, part, (task, told, stop)) for part in (join, cut)]
        parts.append(start(_nicely, learn, (task, ports, told, stop)))
        sender = _Sender(told, stop, on)
        parts.append(start(_nicely, _send_events, (task, seed, sender)))
        parts.append(start(_nicely, _score, (task, _Sender(told, stop, scoring))))
        for number in (0, 1, 3, 4, 5):
            _ready(told, number, parts)
        yield on, scoring
    finally:
        for queue in (told, told_shard):
            threading.Thread(target=_drain, args=(queue,), daemon=True).start()
        end(parts, stop)
        end(shards, over)


def _drain(told: Told) -> None:
    """Takes what the parts noted, which nobody wants here: a process doesn't end before that is read."""
    while True:
        told.get()


def _ready(told: Told, number: int, parts: Sequence[Any]) -> None:
    del number  # they come in any order; each says so once
    kind, who, value = told.get(timeout=120.0)
    if kind != "ready":
        raise RuntimeError(f"part {who} of the bench failed: {value}")


def _nicely(part: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In a session of its own that steps back, as the parts of the running system do: Linux may share
    processors between sessions first, and the replica is in another."""
    os.setsid()
    lower_session_priority(NICE)
    part(*arguments)


def _send_events(task: Task, seed: int, sender: _Sender) -> None:
    """Appends events while it is asked for; once used up, the same come again under other requests."""
    from msgspec.structs import replace as changed

    from benchmarks.system.synthetic_views import draw_items, draw_views
    from recsys.clock import wall_ms
    from recsys.events.event_types import Engagement, Impression, Stamp, encode
    from recsys.events.hashing import partition_of
    from recsys.events.records import EVENTS
    from recsys.features.feature_set_file import feature_set
    from recsys.log.protocol import Append
    from recsys.process.open_log import open_log

    with telling(sender.told, 4):
        config, log = task.config, open_log(task.config)
        events = draw_views(config, draw_items(seed), 20 * EVENTS_PER_S, seed)
        said = b"\0" * 4 * (len(feature_set(config).schema.labels) + 1)  # by live, of each item
        span_ms, round_ = events[-1].time_ms - events[0].time_ms + 1, 0
        # The load's own lists are of today: what is years behind them, the joiner passes over.
        shift_ms = wall_ms() - events[0].time_ms
        sender.told.put(("ready", 4, None))
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
                        told = said * len(event.items)
                        event = changed(event, stamp=Stamp(), predicted=told)
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


def _score(task: Task, its: _Sender) -> None:
    """Scores the steps that are learned, as a candidate that doesn't learn, while it is asked for."""
    from parameter_server.shard.shard import Shard
    from recsys.events.control_records import Live
    from recsys.events.records import SCORES, STEPS, pack
    from recsys.features.feature_set_file import feature_set
    from recsys.log.protocol import Append
    from recsys.model.model import build_model
    from recsys.process.open_log import open_log
    from training.candidates.shadow import Shadow
    from training.lines.line import MAIN, whole_spec
    from training.steps.sequencer_loop import last_place

    with telling(its.told, 5):
        config, log = task.config, open_log(task.config)
        features = feature_set(config)
        dense = build_model(features, config.model).read_dense()
        shadow: Shadow | None = None
        its.told.put(("ready", 5, None))
        while not its.stop.is_set():
            if not its.on.wait(0.2):
                shadow = None
                continue
            if shadow is None:  # from the newest step on: what was missed is of no interest
                shard = Shard(whole_spec(config, "cand"), dense)
                shard.applied = last_place(log, MAIN, 0, config.log.partitions).step
                lives = [Live(line=MAIN, epoch=0)]
                shadow = Shadow(log, config, features, "cand", shard, lives, learns=False)
            taken = shadow.turn()
            if taken is None:
                log.wait(STEPS, 0.05)
            elif taken[1] is not None:
                log.append(SCORES, [Append(0, b"cand", pack(taken[1]))])
        log.close()
