"""``recsys bench train``: the trainer's own path over shards, beside loops of one process.

Two shards behind sockets and two workers, each a process: step records, write-ahead files and deltas are on.
The examples and the step records stand on a SQLite log before the clock starts, so what is measured is
reading, decoding, looking up, learning, writing down, applying and publishing. Ray places these same parts in
a running system, and no row goes through it; here it is left out.
"""

import secrets
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.worker_processes import Told, answers, end, telling, ways
from benchmarks.learning.synthetic_examples import FEATURES, FIELDS, append_examples, draw_examples
from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, StepConfig
from recsys.process.latency_tuning import freeze_gc
from recsys.process.malloc_tuning import BESIDE_TABLES, keep_freed_memory

WORKERS: Final = 2
SHARDS: Final = 2
BATCH: Final = 1024  # examples of one worker in a step; of a loop in one process, in a step
WARM: Final = 4  # steps before the clock starts


@dataclass(frozen=True)
class Job:
    """What a process of the bench is told. ``steps`` stand on the log; the first ``WARM`` aren't timed."""

    config: Config
    steps: int
    token: str


def measure_train(
    ids: int, batches: int, seed: int, batch: int = BATCH, apart: bool = True
) -> dict[str, Any]:
    """Examples per second, ours beside the others. ``apart``: as processes, else as threads."""
    from benchmarks.learning.linear_learners import river, vowpal_wabbit
    from benchmarks.learning.single_process_loops import embedding_bag, fused

    steps = WARM + batches
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        config = _config(folder, batch)
        _write(config, draw_examples(steps * batch * WORKERS, ids, seed))
        return {
            "what": f"{FIELDS} one-hot fields, zipf over {ids} ids each; {WORKERS} workers of {batch} "
            f"examples a step, {SHARDS} shards; one process: {batch} examples a step",
            "figures": ours(Job(config, steps, secrets.token_hex(16)), apart),
            "comparators": {
                "torchrec": fused(config, ids, batch, batches * WORKERS),
                "torchrec_our_layers": fused(
                    config, ids, batch, batches * WORKERS, our_layers=True
                ),
                "embedding_bag": embedding_bag(config, ids, batch, batches * WORKERS),
                "vowpalwabbit": vowpal_wabbit(config, batch * batches),
                "river": river(config, min(5_000, batch * batches)),
            },
        }


def ours(job: Job, apart: bool = True) -> dict[str, float]:
    """Learns all steps through the shards; the clock runs from the end of the last warm step."""
    told, stop, start = ways(apart)
    with ExitStack() as stack:
        shards = [start(serve, job, part, told, stop) for part in range(SHARDS)]
        stack.callback(end, shards, stop)
        ports = answers(told, "shard", SHARDS, shards)
        workers = [start(work, job, rank, ports, told) for rank in range(WORKERS)]
        stack.callback(end, workers, stop)
        spans = list(answers(told, "worker", WORKERS, [*shards, *workers]).values())
        stop.set()
        busy = [*answers(told, "served", SHARDS, []).values(), *(cpu_s for *_, cpu_s in spans)]
    passed = max(ended for _, ended, _ in spans) - min(begun for begun, *_ in spans)
    timed = (job.steps - WARM) * job.config.step.examples
    found = {
        "examples_per_s": round(timed / passed, 1),
        "step_ms": round(1000 * passed / (job.steps - WARM), 2),
    }
    # Threads share one clock of the processor, so that their times can't be added.
    return found | ({"cpu_us_per_example": round(1e6 * sum(busy) / timed, 2)} if apart else {})


def serve(job: Job, part: int, told: Told, stop: Any) -> None:
    """One shard with its write-ahead file, until asked to stop."""
    with telling(told, part):
        import torch

        from parameter_server.rpc.parameter_client import part_of
        from parameter_server.rpc.shard_service import ShardService
        from parameter_server.rpc.transport import SocketServer
        from parameter_server.storage.durable_shard import DurableShard, ShardStorage
        from parameter_server.table.kernels import warm
        from recsys.events.records import DELTAS
        from recsys.log.protocol import Append
        from recsys.model.model import build_model
        from recsys.process.open_log import open_log
        from training.lines.line import spec_of

        torch.set_num_threads(1)
        warm()
        keep_freed_memory(BESIDE_TABLES)
        spec, folder, log = spec_of(job.config), Path(job.config.state), open_log(job.config)
        published, warm_s = 0, 0.0

        def publish(deltas: Sequence[bytes]) -> None:
            nonlocal published, warm_s
            log.append(DELTAS, [Append(0, b"", delta) for delta in deltas])
            published += len(deltas)
            if published == WARM:
                warm_s = time.process_time()

        shard = DurableShard(
            part_of(spec, part),
            ShardStorage(folder / "snapshots", folder / f"{part}.wal", job.config.step.snapshot_every),
            publish,
            build_model(FEATURES, job.config.model).read_dense() if part == 0 else None,
            background=True,
        )
        server = SocketServer(ShardService(shard, job.token))
        freeze_gc()
        told.put(("shard", part, server.address.port))
        stop.wait()
        shard.flush()  # the last step's delta belongs to what is measured
        told.put(("served", part, time.process_time() - warm_s))
        server.close()
        shard.close()
        log.close()


def work(job: Job, rank: int, ports: dict[int, int], told: Told) -> None:
    """One worker: learns to the last step, and tells when the warm steps and the last one ended."""
    with telling(told, rank):
        from parameter_server.rpc.parameter_client import ShardedClient, hello
        from parameter_server.rpc.parameter_client import Worker as WorkerId
        from parameter_server.rpc.transport import Address, SocketChannel
        from recsys.model.model import build_model
        from recsys.process.open_log import open_log
        from training.continual.jagged import keyed_jagged, load
        from training.continual.learner import Learner
        from training.continual.worker import Worker
        from training.lines.line import spec_of

        config, spec = job.config, spec_of(job.config)
        who = WorkerId(rank, WORKERS, 1)
        channels = [
            SocketChannel(
                lambda port=port: Address("127.0.0.1", port, job.token),  # type: ignore[misc]
                lambda token, part=part: hello(spec, part, who, token),  # type: ignore[misc]
            )
            for part, port in sorted(ports.items())
        ]
        log, client = open_log(config), ShardedClient(spec, channels, who)
        learner = Learner(build_model(FEATURES, config.model), keyed_jagged)
        worker = Worker(rank, WORKERS, log, client, learner, config)
        load()
        freeze_gc()
        keep_freed_memory()
        begun = warm_s = 0.0
        while worker.step < job.steps:
            worker.turn()
            if worker.step == WARM:
                begun, warm_s = time.monotonic(), time.process_time()
        told.put(("worker", rank, (begun, time.monotonic(), time.process_time() - warm_s)))
        client.close()
        log.close()


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
    """Examples, then the records of their steps, as the sequencer cuts them."""
    from recsys.process.open_log import create_topics, open_log
    from training.steps.sequencer_loop import SequencerLoop

    log = open_log(config)
    create_topics(log, config)
    append_examples(log, drawn)
    sequencer = SequencerLoop(log, config, FEATURES, lambda: 0)
    while sequencer.turn():
        pass
    log.close()
