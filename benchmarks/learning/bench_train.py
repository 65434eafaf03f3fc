"""``recsys bench train``: the trainer's own path over shards, beside loops of one process.

Two shards behind sockets and two workers, each a process, with step records, write-ahead files and deltas.
The examples and the step records are on a SQLite log before the clock starts, so the bench measures reading,
decoding, lookups, learning, write-ahead, updates and publishing. Ray places these same parts in a running
system, but no row passes it; it is left out here.
"""

import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.worker_processes import (
    Messages,
    collect,
    end_processes,
    process_starter,
    reporting_errors,
)
from benchmarks.learning.single_process_loops import embedding_bag, fused
from benchmarks.learning.synthetic_examples import FEATURES, FIELDS, append_examples, draw_examples
from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, StepConfig
from recsys.process.latency_tuning import freeze_gc
from recsys.process.malloc_tuning import BESIDE_TABLES, keep_freed_memory
from recsys.process.open_log import create_topics, open_log
from training.steps.sequencer_loop import SequencerLoop

WORKERS: Final = 2
SHARDS: Final = 2
BATCH: Final = 1024  # examples of one worker in a step, or of a one-process loop in a step
WARM: Final = 4  # steps before the clock starts


@dataclass(frozen=True)
class Job:
    """Arguments of a process of the bench. ``steps`` are on the log; the first ``WARM`` aren't timed."""

    config: Config
    steps: int
    token: str


def measure_train(
    ids: int, batches: int, seed: int, batch: int = BATCH, apart: bool = True, rounds: int = 1
) -> dict[str, Any]:
    """Examples per second of all variants. ``apart``: as processes, else as threads. In each of ``rounds``
    ours and the loops of one process take turns; the median round of each counts."""
    steps = WARM + batches
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        config = _config(folder, batch)
        _write(config, draw_examples(steps * batch * WORKERS, ids, seed))
        sizes = ids, batch, batches * WORKERS
        turns: dict[str, Callable[[], dict[str, Any]]] = {
            "ours": lambda: ours(Job(config, steps, secrets.token_hex(16)), apart),
            "torchrec": lambda: fused(config, *sizes),
            "torchrec_our_layers": lambda: fused(config, *sizes, our_layers=True),
            "embedding_bag": lambda: embedding_bag(config, *sizes),
        }
        runs = [{name: measure() for name, measure in turns.items()} for _ in range(rounds)]
        figures = {name: _median([run[name] for run in runs]) for name in turns}
        for name in turns.keys() - {"ours"}:
            ratios = [run["ours"]["examples_per_s"] / run[name]["examples_per_s"] for run in runs]
            figures[name]["ours_of_it"] = round(statistics.median(ratios), 3)
        return {
            "what": f"{FIELDS} one-hot fields, zipf over {ids} ids each; {WORKERS} workers of {batch} "
            f"examples a step, {SHARDS} shards; one process: {batch} examples a step",
            "figures": figures.pop("ours"),
            "comparators": figures,
        }


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of the median rate, and the rates of all."""
    by_rate = sorted(runs, key=lambda run: float(run["examples_per_s"]))
    rates = [run["examples_per_s"] for run in runs]
    return by_rate[len(runs) // 2] | ({"rounds": rates} if len(runs) > 1 else {})


def ours(job: Job, apart: bool = True) -> dict[str, float]:
    """Learns all steps through new shards; the clock runs from the end of the last warm step."""
    for part in range(SHARDS):
        Path(job.config.state, f"{part}.wal").unlink(missing_ok=True)  # of the round before
    messages, stop, start = process_starter(apart)
    with ExitStack() as stack:
        shards = [start(serve, job, part, messages, stop) for part in range(SHARDS)]
        stack.callback(end_processes, shards, stop)
        ports = collect(messages, "shard", SHARDS, shards)
        workers = [start(work, job, rank, ports, messages) for rank in range(WORKERS)]
        stack.callback(end_processes, workers, stop)
        spans = list(collect(messages, "worker", WORKERS, [*shards, *workers]).values())
        stop.set()
        busy = [*collect(messages, "served", SHARDS, []).values(), *(cpu_s for *_, cpu_s in spans)]
    passed = max(ended for _, ended, _ in spans) - min(begun for begun, *_ in spans)
    timed = (job.steps - WARM) * job.config.step.examples
    figures = {
        "examples_per_s": round(timed / passed, 1),
        "step_ms": round(1000 * passed / (job.steps - WARM), 2),
    }
    # Threads share the process's CPU clock, so their times can't be added.
    return figures | ({"cpu_us_per_example": round(1e6 * sum(busy) / timed, 2)} if apart else {})


def serve(job: Job, part: int, messages: Messages, stop: Any) -> None:
    """One shard process: runs until asked to stop, and reports its processor time after the warm steps."""
    with reporting_errors(messages, part):
        import torch

        from benchmarks.harness.training_processes import shard_server

        torch.set_num_threads(1)
        keep_freed_memory(BESIDE_TABLES)
        published, warm_s = 0, 0.0

        def count(deltas: int) -> None:
            nonlocal published, warm_s
            published += deltas
            if published == WARM:
                warm_s = time.process_time()

        with shard_server(job.config, FEATURES, job.token, part, count) as (shard, port):
            freeze_gc()
            messages.put(("shard", part, port))
            stop.wait()
            shard.flush()  # the last step's delta belongs to the measurement
            messages.put(("served", part, time.process_time() - warm_s))


def work(job: Job, rank: int, ports: dict[int, int], messages: Messages) -> None:
    """One worker process: learns to the last step, and reports the ends of the warm steps and of the last."""
    with reporting_errors(messages, rank):
        from benchmarks.harness.training_processes import shard_worker

        with shard_worker(job.config, FEATURES, job.token, ports, rank, WORKERS) as worker:
            freeze_gc()
            keep_freed_memory()
            begun = warm_s = 0.0
            while worker.step < job.steps:
                worker.turn()
                if worker.step == WARM:
                    begun, warm_s = time.monotonic(), time.process_time()
            times = begun, time.monotonic(), time.process_time() - warm_s
            messages.put(("worker", rank, times))


def _config(folder: str, batch: int) -> Config:
    return replace(
        Config(),
        state=folder,
        # One lane for each worker; a step is WORKERS batches.
        step=StepConfig(examples=batch * WORKERS, lanes=WORKERS, every_ms=10**9),
        model=ModelConfig(features="ids"),
        parameter_server=ParameterServerConfig(shards=SHARDS),
    )


def _write(config: Config, drawn: Any) -> None:
    """Appends examples, then the records of their steps, as the sequencer cuts them."""
    log = open_log(config)
    create_topics(log, config)
    append_examples(log, drawn)
    sequencer = SequencerLoop(log, config, FEATURES, lambda: 0)
    while sequencer.turn():
        pass
    log.close()
