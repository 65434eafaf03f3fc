"""``recsys bench shadow``: cost of judging a candidate, beside the cost of training the live line.

All three process the same steps of the same log, one after the other in this process: the trainer (worker and
two shards with write-ahead files and published deltas), a candidate that only scores a share of the stream,
and one that also learns the stream. The figures are processor time. Examples come from the simulated world,
with all features.

A second part compares a large snapshot of a candidate, memory-mapped and read: memory, and time to look up
rows. A frozen candidate stays mapped; one that learns takes the memory of an ordinary one for each changed
row.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec.structs import replace as changed

from benchmarks.harness.local_system import DurableShards
from examples.short_video.demo_data import warmup_from_world
from examples.short_video.feature_replay import FeatureReplay
from parameter_server.shard.lanes import RowGradients, StepSum
from parameter_server.shard.shard import Shard, ShardSpec, part_of
from parameter_server.storage import snapshots
from parameter_server.storage.durable_shard import DurableShard, ShardStorage, load_shard
from parameter_server.storage.mmap_shard import open_mmap_shard
from parameter_server.table.kernels import warm
from recsys.config.system_config import Config, ModelConfig, StepConfig, tables_of
from recsys.events.control_records import Live
from recsys.events.event_types import Impression, Stamp
from recsys.events.records import DELTAS, EXAMPLES, pack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log
from recsys.model.model import build_model
from recsys.process.latency_tuning import freeze_gc
from recsys.process.open_log import create_topics, open_log
from replay.direct_loop import Joiners
from training.candidates.shadow import Shadow
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.lines.line import MAIN, spec_of, whole_spec
from training.steps.sequencer_loop import SequencerLoop

_START_MS: Final = 1_790_000_000_000
_WARM: Final = 8  # steps before the clock starts
_LOOKED_UP: Final = 4_000  # rows at once, about as a step does


def measure_shadow(lists: int, share: float, rows: int, seed: int) -> dict[str, Any]:
    """Processor microseconds an example: of the trainer, and of either candidate relative to it."""
    warm()
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder, ExitStack() as stack:
        config = _config(folder, share)
        log = open_log(config)
        stack.callback(log.close)
        create_topics(log, config)
        steps, examples = _write(log, config, lists, seed)
        freeze_gc()
        trainer = _trainer(log, config, stack)
        trainer_us = _timed(trainer.turn, steps, examples)
        candidates = {}
        for name, learns in (("scored", False), ("learning", True)):
            candidate = fresh_candidate(log, config, learns)
            candidates[name] = _timed(candidate.turn, steps, examples)
    return {
        "what": f"{steps} steps of {config.step.examples} examples; {share:.0%} of the stream is scored; "
        f"a snapshot of {rows} rows of the table features",
        "figures": {
            "trainer_cpu_us_per_example": round(trainer_us, 2),
            "scored_cpu_us_per_example": round(candidates["scored"], 2),
            "learning_cpu_us_per_example": round(candidates["learning"], 2),
            "scored_of_trainer": round(candidates["scored"] / trainer_us, 3),
            "learning_of_trainer": round(candidates["learning"] / trainer_us, 3),
        }
        | measure_mapped(rows, seed),
        "comparators": {},
    }


def measure_mapped(rows: int, seed: int) -> dict[str, float]:
    """Bytes a row of a mapped and of a read candidate, before either learns, and microseconds a row to look
    up existing ids."""
    (table,) = (t for t in tables_of(ModelConfig()) if t.name == "features")
    spec, draw = ShardSpec((replace(table, ttl_s=0),), 1, line="cand"), np.random.default_rng(seed)
    keys = np.unique(draw.integers(-(2**63), 2**63 - 1, rows, dtype=np.int64))
    whole = RowGradients(keys, draw.normal(size=(len(keys), table.dim)).astype(np.float32),
                         np.ones(len(keys), np.int32))  # fmt: skip
    line = Shard(spec)
    line.apply(StepSum(1, 1, {table.name: whole}, None, {}))
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        snapshots.write_part(Path(folder), "cand", 0, 1, 0, 1, *line.export())
        snapshot = snapshots.latest(Path(folder), "cand").snapshot
        assert snapshot is not None, "it was written just now"
        ordinary, mapped = Shard(spec), open_mmap_shard(spec, None, snapshot)
        load_shard(ordinary, snapshot)
        sizes = {shard: shard.nbytes / len(keys) for shard in (ordinary, mapped)}
        chosen = [draw.choice(keys, min(_LOOKED_UP, len(keys)), replace=False) for _ in range(64)]
        us = {shard: 1e9 for shard in (ordinary, mapped)}
        for _ in range(3):  # in turns, so that disturbances hit both
            for shard in us:
                began = time.process_time()
                for batch in chosen:
                    shard.lookup(1, {table.name: batch})
                spent = 1e6 * (time.process_time() - began) / sum(map(len, chosen))
                us[shard] = min(us[shard], spent)
    return {
        "mapped_bytes_per_row": round(sizes[mapped], 1),
        "ordinary_bytes_per_row": round(sizes[ordinary], 1),
        "mapped_lookup_us_per_row": round(us[mapped], 4),
        "ordinary_lookup_us_per_row": round(us[ordinary], 4),
    }


def _config(folder: str, share: float) -> Config:
    config = replace(Config(), state=folder, model=ModelConfig())
    rules = replace(config.promotion, share=share)
    return replace(config, promotion=rules, step=StepConfig(every_ms=10**9, snapshot_every=10**6))


def _write(log: Log, config: Config, lists: int, seed: int) -> tuple[int, int]:
    """Appends examples as the joiner writes them, each with live predictions, then the records of their
    steps."""
    features = feature_set(config)
    past = warmup_from_world(_START_MS, requests=lists, seed=seed)
    served = FeatureReplay(features)
    joiners = Joiners(config.log.partitions, features.schema, config.join)
    outputs = len(features.schema.labels) + 1
    for past_event in past.events():
        for event in served.play(past_event):
            if isinstance(event, Impression):
                predicted = np.full((len(event.items), outputs), 0.3, np.float32)
                event = changed(event, stamp=Stamp(), predicted=predicted.tobytes())
            if made := joiners.feed(event):
                log.append(
                    EXAMPLES, [Append(example.partition, b"", pack(example)) for example in made]
                )
    sequencer = SequencerLoop(log, config, features, lambda: 0)
    while sequencer.turn():
        pass
    return sequencer.step, config.step.examples


def _trainer(log: Log, config: Config, stack: ExitStack) -> Worker:
    model, folder = build_model(feature_set(config), config.model), Path(config.state)

    def publish(deltas: Sequence[bytes]) -> None:
        log.append(DELTAS, [Append(0, b"", delta) for delta in deltas])

    shards = [
        DurableShard(
            part_of(spec_of(config), part),
            ShardStorage(folder / "snapshots", folder / f"{part}.wal", config.step.snapshot_every),
            publish,
            model.read_dense() if part == 0 else None,
        )
        for part in range(config.parameter_server.shards)
    ]
    for shard in shards:
        stack.callback(shard.close)
    return Worker(0, 1, log, DurableShards(shards), Learner(model), config)


def fresh_candidate(log: Log, config: Config, learns: bool) -> Shadow:
    """A line that begins with the first step of the log."""
    features = feature_set(config)
    shard = Shard(whole_spec(config, "cand"), build_model(features, config.model).read_dense())
    return Shadow(log, config, features, "cand", shard, [Live(line=MAIN, epoch=0)], learns)


def _timed(turn: Callable[[], Any], steps: int, examples: int) -> float:
    """Processor microseconds an example, over all steps but the first few."""
    for _ in range(_WARM):
        turn()
    began, timed = time.process_time(), 0
    while timed < steps - _WARM - 1 and turn():
        timed += 1
    return 1e6 * (time.process_time() - began) / max(1, timed * examples)
