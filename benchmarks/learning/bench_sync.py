"""``recsys bench sync``: cost of a step on its way from a shard to a replica, by format and budget.

One shard learns the examples of ``recsys bench train`` in steps of the usual size. Its updates are applied
again for each way of publishing, so all publish the same changes of the same rows. Measured are the
publishing work of a step (look up the changed rows, choose, round, digest, checksum, pack), and the replica's
work on the bytes (read, check, assemble, set rows, remove rows, take the dense parameters).

Comparators: the whole table each step, and the touched rows, by common serializers.
"""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from safetensors.numpy import load, save

from benchmarks.learning.synthetic_examples import FEATURES, append_examples, draw_examples
from parameter_server.publish.deltas import DeltaAssembler, Gap, StepDelta
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.lanes import StepSum
from parameter_server.shard.shard import Shard, ShardSpec
from parameter_server.table.table import Table
from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, StepConfig
from recsys.events.records import EXAMPLES, TrainingExample, pack, topics, unpack_all
from recsys.log.protocol import MemoryLog
from recsys.model.model import build_model, with_missing_row
from recsys.model.prediction_metrics import auc
from serving.replica.row_store import RowStore
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.lines.line import spec_of
from training.steps.sequencer_loop import SequencerLoop

EXAMPLES_A_STEP: Final = 256
EVENTS_PER_S: Final = 1_000  # rate of the bytes_per_s figures, an example each
_HELD_OUT: Final = 8  # steps whose examples are scored and not learned
_WHOLE: Final = 5  # steps at which the whole table is pushed, always the same work
Floats = NDArray[np.float32]


class _Kept(Shard):
    """A shard that keeps its step sums."""

    def __init__(self, spec: ShardSpec, dense: Floats) -> None:
        super().__init__(spec, dense)
        self.totals: list[StepSum] = []

    def apply(self, total: StepSum) -> Any:
        self.totals.append(total)
        return super().apply(total)


class _Timed(Shard):
    """A shard that measures its publishing work (processor seconds)."""

    publishing_s = 0.0

    def _apply_table(self, total: StepSum, table: Table) -> Any:
        change, undo = super()._apply_table(total, table)
        started = time.process_time()
        # A shard knows the slots of the rows that it has just learned. Here they are looked up as in the
        # comparators, so that all clocks include the same work.
        table.lookup(change.keys)
        self.publishing_s += time.process_time() - started
        return change, undo

    def _delta(self, *step: Any) -> Any:
        started = time.process_time()
        delta = super()._delta(*step)
        self.publishing_s += time.process_time() - started
        return delta


@dataclass(frozen=True)
class _Learned:
    """Learned step sums, and held-out examples."""

    spec: ShardSpec
    dense: Floats
    totals: Sequence[StepSum]
    config: Config
    held_out: Sequence[TrainingExample]


class _Reader:
    """A replica's rows and dense parameters."""

    def __init__(self, spec: ShardSpec, dense: Floats) -> None:
        self.rows = {table.name: RowStore(table, spec.seed) for table in spec.tables}
        self.dense = dense

    def take(self, delta: StepDelta) -> None:
        for name, changed in delta.tables.items():
            self.rows[name].set(changed.keys, changed.values)
            self.rows[name].remove(changed.removed)
        if delta.dense is not None:
            self.dense = delta.dense
        if delta.digest is not None:
            digest = sum(store.digest for store in self.rows.values()) % 2**64
            assert digest == delta.digest, f"replica and shard differ after step {delta.step}"


def measure_sync(ids: int, batches: int, seed: int, budget_kb: int = 64) -> dict[str, Any]:
    """Bytes, time and error of each way. ``batches``: number of learned steps."""
    learned = _learn(ids, batches, seed)
    spec = learned.spec
    ways = {name: replace(spec, delta_format=name) for name in ("fp32", "fp16", "int8")}
    bounded = replace(ways["fp16"], delta_bytes=1024 * budget_kb, settle_every=10**9)
    unordered = replace(learned, totals=[_without_traffic(total) for total in learned.totals])
    return {
        "what": f"steps of {EXAMPLES_A_STEP} examples, {len(learned.dense)} dense parameters; bytes a second "
        f"at {EVENTS_PER_S} events/s",
        "figures": {name: _published(learned, way) for name, way in ways.items()}
        | {f"fp16, {budget_kb} KiB of rows": _published(learned, bounded)},
        "comparators": {
            f"fp16, {budget_kb} KiB of rows, any first": _published(unordered, bounded),
            "whole table, safetensors": _baseline(learned, _safe, _unsafe, whole=True),
            "touched rows, safetensors": _baseline(learned, _safe, _unsafe),
            "touched rows, safetensors and zstd": _baseline(learned, _squeezed, _unsqueezed),
            "touched rows, torch.save": _baseline(learned, _torch_save, _torch_load),
        },
    }


def _learn(ids: int, steps: int, seed: int) -> _Learned:
    config = replace(
        Config(),
        step=StepConfig(examples=EXAMPLES_A_STEP, lanes=1, every_ms=10**9),
        model=ModelConfig(features="ids"),
        parameter_server=ParameterServerConfig(shards=1, dense_ms=0),
    )
    log = MemoryLog()
    for topic in topics(config.log.partitions):
        log.create(topic)
    append_examples(log, draw_examples((steps + _HELD_OUT) * EXAMPLES_A_STEP, ids, seed))
    sequencer = SequencerLoop(log, config, FEATURES, lambda: 0)
    while sequencer.turn():
        pass
    model, spec = build_model(FEATURES, config.model), spec_of(config)
    dense = model.read_dense()
    shard = _Kept(spec, dense)
    worker = Worker(0, 1, log, LocalClient([shard]), Learner(model), config)
    while worker.step < steps:
        worker.turn()
    share = steps * EXAMPLES_A_STEP // config.log.partitions
    values = [r.value for p in range(config.log.partitions) for r in log.read(EXAMPLES, p, share)]
    return _Learned(spec, dense, shard.totals, config, unpack_all(values, TrainingExample))


def _without_traffic(total: StepSum) -> StepSum:
    """The same sum with equal counts, so that rows are chosen by their hashed key instead of their
    traffic."""
    tables = {
        n: rows._replace(counts=np.zeros_like(rows.counts)) for n, rows in total.tables.items()
    }
    return replace(total, tables=tables)


def _published(learned: _Learned, spec: ShardSpec) -> dict[str, float]:
    shard, reader = _Timed(spec, learned.dense), _Reader(spec, learned.dense)
    assembler = DeltaAssembler(spec.line, spec.epoch, 0)
    size = rows = dense = 0
    packing_s = reading_s = 0.0
    for total in learned.totals:
        delta = shard.apply(total)
        started = time.process_time()
        value = pack(delta)
        packed = time.process_time()
        steps = assembler.feed(value)
        assert not isinstance(steps, Gap), steps
        for step in steps:
            reader.take(step)
        packing_s += packed - started
        reading_s += time.process_time() - packed
        size, dense = size + len(value), dense + len(delta.dense)
        rows += sum(len(table.keys) // 8 for table in delta.tables)
    figures = _cost(len(learned.totals), size, rows, shard.publishing_s + packing_s, reading_s)
    figures["dense_bytes_per_step"] = dense // len(learned.totals)
    figures["held_back_at_the_end"] = sum(shard.published.withheld.values())
    return figures | _errors(learned, shard, reader)


def _cost(steps: int, size: int, rows: int, writing_s: float, reading_s: float) -> dict[str, float]:
    per_s = EVENTS_PER_S / EXAMPLES_A_STEP
    return {
        "bytes_per_step": size // steps,
        "bytes_per_s": round(size / steps * per_s),
        "rows_per_step": round(rows / steps, 1),
        "write_ms": round(1000 * writing_s / steps, 3),
        "read_ms": round(1000 * reading_s / steps, 3),
        "rows_per_s": round(rows / (writing_s + reading_s)),
    }


def _errors(learned: _Learned, shard: Shard, reader: _Reader) -> dict[str, float]:
    """Error of the served rows, dense parameters, and scores of held-out examples."""
    keys = {name: table.export()["keys"] for name, table in shard.tables.items()}
    differ = [
        np.abs(
            shard.tables[name].lookup(table_keys) - reader.rows[name].lookup(table_keys)
        ).reshape(-1)
        for name, table_keys in keys.items()
        if len(table_keys)
    ]
    rows = np.concatenate(differ)
    assert shard.dense is not None
    true, served = (
        _logits(learned, lookup, dense)
        for lookup, dense in (
            (shard.tables["features"].lookup, shard.dense.averaged),
            (reader.rows["features"].lookup, reader.dense),
        )
    )
    labels = [example.labels[0] for example in learned.held_out]
    return {
        "row_error_max": float(rows.max()),
        "row_error_mean": float(rows.mean()),
        "dense_error_max": float(np.abs(shard.dense.averaged - reader.dense).max()),
        "logit_error_max": float(np.abs(true - served).max()),
        "logit_error_mean": float(np.abs(true - served).mean()),
        "auc_of_true": auc(true, labels),
        "auc_of_served": auc(served, labels),
    }


def _logits(learned: _Learned, lookup: Callable[[Any], Floats], dense: Floats) -> Floats:
    model = build_model(FEATURES, learned.config.model)
    model.write_dense(dense)
    lane = Learner(model).prepare(learned.held_out)
    with torch.no_grad():
        rows = with_missing_row(lookup(lane.lookup.keys["features"]))
        out: Floats = model.rank(lane.batch, lane.lookup, rows)[:, 0].numpy()
    return out


Arrays = dict[str, NDArray[Any]]


def _baseline(
    learned: _Learned,
    write: Callable[[Arrays], bytes],
    read: Callable[[bytes], Arrays],
    whole: bool = False,
) -> dict[str, float]:
    """Touched rows (or all) and dense parameters as float32, by a common serializer. Neither side checks,
    chooses or keeps a digest: a reader that misses a step goes wrong unnoticed."""
    shard, reader = Shard(learned.spec, learned.dense), _Reader(learned.spec, learned.dense)
    steps = size = rows = 0
    writing_s = reading_s = 0.0
    for number, total in enumerate(learned.totals):
        shard.apply(total)
        if whole and number < len(learned.totals) - _WHOLE:
            continue
        assert shard.dense is not None
        started = time.process_time()
        arrays: Arrays = {"dense": shard.dense.averaged}
        for name, table in shard.tables.items():
            keys = total.tables[name].keys if name in total.tables else np.empty(0, np.int64)
            if whole:
                export = table.export()
                arrays |= {f"{name}/keys": export["keys"], f"{name}/values": export["values"]}
            elif len(keys):
                arrays |= {f"{name}/keys": keys, f"{name}/values": table.lookup(keys)}
        value = write(arrays)
        written = time.process_time()
        read_arrays = read(value)
        for name, keys in read_arrays.items():
            if name.endswith("/keys"):
                table_name, values = name.removesuffix("/keys"), read_arrays[f"{name[:-5]}/values"]
                if whole:
                    its_config = reader.rows[table_name].config
                    fresh = RowStore.filled(its_config, learned.spec.seed, keys, values)
                    reader.rows[table_name] = fresh
                else:
                    reader.rows[table_name].set(keys, values)
                rows += len(keys)
        reader.dense = read_arrays["dense"]
        writing_s += written - started
        reading_s += time.process_time() - written
        steps, size = steps + 1, size + len(value)
    return _cost(steps, size, rows, writing_s, reading_s)


def _safe(arrays: Arrays) -> bytes:
    return bytes(save(arrays))


def _unsafe(value: bytes) -> Arrays:
    return dict(load(value))


def _squeezed(arrays: Arrays) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(_safe(arrays))


def _unsqueezed(value: bytes) -> Arrays:
    return _unsafe(zstandard.ZstdDecompressor().decompress(value))


def _torch_save(arrays: Arrays) -> bytes:
    out = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, out)
    return out.getvalue()


def _torch_load(value: bytes) -> Arrays:
    tensors = torch.load(io.BytesIO(value), weights_only=True)
    return {name: tensor.numpy() for name, tensor in tensors.items()}
