"""Caches the examples of an offline job in a folder, which each epoch reads.

    FOLDER/{examples.parquet, corrections.safetensors, about.json}

``examples.parquet`` holds columns in event time, a row group to a block. Corrections are applied to a block
when it is read, so one pass over the data suffices. The folder is built under another name and renamed.
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from recsys.events.records import TrainingExample
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from training.offline.examples import BLOCKS, Examples, concatenated, examples_of, id_hash
from training.steps.step_reader import ExampleCheck

DAY_MS: Final = 86_400_000
BLOCK: Final = 16_384  # examples: about 40 MB of features
FORMAT: Final = 2  # of the files; since 2 with the predictions at serving time
_EXAMPLES, _CORRECTIONS, _ABOUT = "examples.parquet", "corrections.safetensors", "about.json"


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a cache. ``blocks``: (row group, start, stop), in event time; from number ``last`` on
    they are the last day. ``forgotten``: keys of users who asked to be forgotten. ``gaps``: of the archive.
    ``predicted``: number of examples with predictions, by line/epoch of the live line."""

    format: int = 1
    feature_set: str
    from_ms: int
    until_ms: int
    last_ms: int
    blocks: list[tuple[int, int, int]]
    last: int
    examples: int
    log_id: str = ""
    offsets: dict[int, int] = {}
    counts: dict[str, int] = {}
    forgotten: list[int] = []
    gaps: list[str] = []
    predicted: dict[str, int] = {}


def last_day(from_ms: int, until_ms: int) -> int:
    """Start of the held-out end: the last day, or the last fifth of a range shorter than five days."""
    return until_ms - min(DAY_MS, (until_ms - from_ms) // 5)


class Cache:
    """Blocks of examples, by number. Raises ValueError for an incomplete cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.about = msgspec.json.decode((folder / _ABOUT).read_bytes(), type=About)
            self._corrections = load_file(folder / _CORRECTIONS)
            self._file = pq.ParquetFile(folder / _EXAMPLES)
        except (OSError, msgspec.MsgspecError, pa.ArrowInvalid) as error:
            raise ValueError(f"{folder} isn't a complete cache of examples: {error}; remove it") from None
        if self.about.format != FORMAT:
            raise ValueError(
                f"{folder} is a cache of format {self.about.format}, expected {FORMAT}; remove it"
            )

    def __len__(self) -> int:
        return len(self.about.blocks)

    def read(self, number: int) -> Examples:
        """One block, with final labels."""
        group, start, stop = self.about.blocks[number]
        rows = self._file.read_row_group(group).slice(start, stop - start)
        return self._corrected(_columns(rows))

    def _corrected(self, block: Examples) -> Examples:
        ids = self._corrections["ids"]
        if not len(ids):
            return block
        at = np.minimum(np.searchsorted(ids, block.ids), len(ids) - 1)
        rows = np.flatnonzero(ids[at] == block.ids)
        labels, watch, arrived = block.labels.copy(), block.watch_ms.copy(), block.arrived.copy()
        labels[rows] = self._corrections["labels"][at[rows]]
        watch[rows] = self._corrections["watch_ms"][at[rows]]
        arrived[rows] = 1.0
        return replace(block, labels=labels, watch_ms=watch, arrived=arrived)


class CacheWriter:
    """Writes a cache from examples and corrections in their order of arrival."""

    def __init__(
        self, folder: Path, features: FeatureSet, dense_width: int, horizon_ms: int, until_ms: int,
        log: Log | None = None,
    ) -> None:  # fmt: skip
        """``horizon_ms``: how long after an example its labels may be corrected. ``log``: names other sets,
        whose examples are read where they have all features."""
        self._folder, self._partial = folder, folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)  # of a job that was killed
        self._partial.mkdir(parents=True)
        self._features, self._labels = features, len(features.schema.labels)
        self._check = ExampleCheck(features, dense_width, log=log)
        self._final_ms, self._until_ms = until_ms - horizon_ms, until_ms
        self._schema = _schema(self._check.widths, self._labels)
        self._file = pq.ParquetWriter(
            self._partial / _EXAMPLES, self._schema, compression="zstd", compression_level=1
        )
        self._waiting: list[Examples] = []
        self._corrections: dict[tuple[int, int, int], tuple[list[float], int]] = {}
        self._times: list[NDArray[np.int64]] = []  # by row group
        self._predicted: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def add(self, examples: Sequence[TrainingExample], time_ms: Sequence[int]) -> None:
        """Takes examples and corrections in event time. Raises ValueError for another feature set."""
        first: list[TrainingExample] = []
        times: list[int] = []
        learned = [n for n, example in enumerate(examples) if not example.measured]
        examples = self._check.read([examples[n] for n in learned])
        all_fit = self._check.all_fit(examples)
        for n, example in zip(learned, examples, strict=True):
            time = time_ms[n]
            if not all_fit and (reason := self._check.reason(example)):
                self._leave_out(example, reason)
            elif example.correction:
                example_id = (example.partition, example.offset, example.index)
                self._corrections[example_id] = (example.labels, example.watch_ms)
            else:
                first.append(example)
                times.append(time)
        if not first:
            return
        at = np.array(times, np.int64)
        block = examples_of(first, at, self._labels, at <= self._final_ms)
        self._waiting.append(block)
        is_predicted = np.isfinite(block.taught[:, 0]).tolist()
        self._predicted.update(e.served_by for e, p in zip(first, is_predicted, strict=True) if p)
        if sum(map(len, self._waiting)) >= BLOCK:
            self._write()

    def _leave_out(self, example: TrainingExample, reason: str) -> None:
        block = example.features
        if block is None or block.feature_set != self._features.digest:
            raise ValueError(
                f"the example {example.partition}/{example.offset}/{example.index} can't be learned: "
                f"{reason}. Begin after the change (--from), name the feature set of the examples "
                "(--state of the system, --features), or fill features in first"
            )
        self.counts["left_out"] += 1

    def close(
        self, from_ms: int | None = None, log_id: str = "", offsets: dict[int, int] | None = None,
        forgotten: Sequence[int] = (), gaps: Sequence[str] = (),
    ) -> Cache:  # fmt: skip
        """Completes the cache and moves it into place. Raises ValueError if it has no examples."""
        self._write(all_=True)
        self._file.close()
        if not self._times:
            raise ValueError(
                f"there is no example before {self._until_ms} ms to learn from; give a later --until, or "
                "an earlier --from"
            )
        self._write_corrections()
        start = int(self._times[0][0]) if from_ms is None else from_ms
        last_ms = last_day(start, self._until_ms)
        blocks, last = _cut(self._times, last_ms)
        about = About(
            format=FORMAT, feature_set=self._features.digest, from_ms=start, until_ms=self._until_ms,
            last_ms=last_ms, blocks=blocks, last=last, examples=sum(map(len, self._times)),
            log_id=log_id, offsets=offsets or {}, counts=dict(self.counts), forgotten=list(forgotten),
            gaps=list(gaps), predicted=dict(self._predicted),
        )  # fmt: skip
        (self._partial / _ABOUT).write_bytes(msgspec.json.encode(about))
        shutil.rmtree(self._folder, ignore_errors=True)
        os.rename(self._partial, self._folder)
        return Cache(self._folder)

    def _write(self, all_: bool = False) -> None:
        if not self._waiting:
            return
        waiting = concatenated(self._waiting)
        stop = len(waiting) if all_ else len(waiting) // BLOCK * BLOCK
        for block in waiting.take(slice(stop)).cut(BLOCK):
            self._file.write_table(_table(block, self._schema), row_group_size=len(block))
            self._times.append(block.time_ms)
        self._waiting = [waiting.take(slice(stop, None))] if stop < len(waiting) else []

    def _write_corrections(self) -> None:
        ids = id_hash(np.array(list(self._corrections), np.int64).reshape(-1, 3))
        corrections = list(self._corrections.values())
        order = np.argsort(ids)
        labels = np.array([labels for labels, _ in corrections], np.float32)
        arrays: dict[str, NDArray[Any]] = {
            "ids": ids[order],
            "labels": labels.reshape(-1, self._labels)[order],
            "watch_ms": np.array([watch for _, watch in corrections], np.float32)[order],
        }
        self.counts["corrections"] = len(ids)
        save_file(arrays, self._partial / _CORRECTIONS)


def _cut(times: Sequence[NDArray[np.int64]], last_ms: int) -> tuple[list[tuple[int, int, int]], int]:
    """Blocks, one of them cut where the last day begins, and the number of the last day's first."""
    blocks: list[tuple[int, int, int]] = []
    last: int | None = None
    for group, time_ms in enumerate(times):
        at = int(np.searchsorted(time_ms, last_ms)) if last is None else 0
        if at:
            blocks.append((group, 0, at))
        if at < len(time_ms):
            last = len(blocks) if last is None else last
            blocks.append((group, at, len(time_ms)))
    return blocks, len(blocks) if last is None else last


def _schema(widths: dict[str, int], labels: int) -> pa.Schema:
    """A column of no bytes isn't written."""
    packed = [(name, pa.binary(width)) for name, width in widths.items() if width]
    packed += [(name, pa.binary(4 * labels)) for name in ("labels", "arrived")]
    packed += [("taught", pa.binary(4 * (labels + 1)))]
    plain = [("time_ms", pa.int64()), ("ids", pa.uint64()), ("watch_ms", pa.float32()),
             ("sampling_rate", pa.float32())]  # fmt: skip
    return pa.schema(plain + packed)


def _table(block: Examples, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        array = np.ascontiguousarray(getattr(block, field.name))
        if pa.types.is_fixed_size_binary(field.type):
            buffers = [None, pa.py_buffer(array.tobytes())]
            column = pa.FixedSizeBinaryArray.from_buffers(field.type, len(block), buffers)
        else:
            column = pa.array(array, field.type)
        columns.append(column)
    return pa.table(columns, schema=schema)


def _columns(table: pa.Table) -> Examples:
    """Writable copies, as tensors want them."""
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_binary(column.type):
            width = column.type.byte_width
            data = np.frombuffer(column.buffers()[1], np.uint8)
            data = data[column.offset * width : (column.offset + len(column)) * width]
            columns[name] = data.reshape(len(column), width).copy()
        else:
            columns[name] = column.to_numpy(zero_copy_only=False).copy()
    for name in ("labels", "arrived", "taught"):
        columns[name] = columns[name].view(np.float32)
    empty = np.zeros((table.num_rows, 0), np.uint8)
    return Examples(**({name: empty for name in BLOCKS} | columns))
