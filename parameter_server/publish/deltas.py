"""Deltas: checksum, arrays, trace spans, and assembly of whole steps from the parts that shards publish.

The log may repeat parts, interleave shards, and hold other lines. The assembler yields a step only when all
its parts are intact and it builds on the step before. Anything that waiting can't repair is a ``Gap``.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from parameter_server.publish.rounding import FORMATS, dense_bytes, read_dense, read_rows, row_bytes
from parameter_server.table.dense import Vector
from parameter_server.table.routing import Keys, Rows
from recsys.events.records import DELTAS, Delta, unpack
from recsys.observability.spans import PUBLISH, Span, SpanAttributes, SpanRecorder, step_span


class Changed(NamedTuple):
    """Rows of one table after a step: keys (N,), values (N, D); keys of removed rows (M,)."""

    keys: Keys
    values: Rows
    removed: Keys


def checksum(delta: Delta) -> int:
    """CRC-32 of a delta without its ``checksum`` field."""
    head = (delta.epoch, delta.step, delta.base_step, delta.part, delta.parts, delta.time_ms)
    digest = b"" if delta.digest is None else struct.pack("<Q", delta.digest)
    crc = _add(zlib.crc32(struct.pack("<6q", *head)), delta.line.encode())
    crc = _add(_add(crc, delta.format.encode()), digest)
    for rows in delta.tables:
        crc = _add(crc, rows.table.encode())
        crc = zlib.crc32(struct.pack("<q", rows.dim), crc)
        for data in (rows.keys, rows.values, rows.removed):
            crc = _add(crc, data)
    crc = _add(crc, delta.dense)
    for name, value in sorted(delta.metrics.items()):
        crc = zlib.crc32(struct.pack("<d", value), _add(crc, name.encode()))
    return crc


def seal(delta: Delta) -> Delta:
    """The delta with its checksum."""
    return msgspec.structs.replace(delta, checksum=checksum(delta))


def is_sound(delta: Delta) -> bool:
    """Whether the checksum and the length of every array are right."""
    try:
        if not 0 <= (delta.digest or 0) < 2**64 or delta.checksum != checksum(delta):
            return False
    except struct.error:  # a damaged number out of range
        return False
    if not 0 <= delta.part < delta.parts or delta.format not in FORMATS:
        return False
    for rows in delta.tables:
        if rows.dim < 1 or len(rows.keys) % 8 or len(rows.removed) % 8:
            return False
        if len(rows.values) != row_bytes(rows.dim, delta.format) * (len(rows.keys) // 8):
            return False
    return len(delta.dense) % dense_bytes(delta.format) == 0


def to_arrays(delta: Delta) -> dict[str, Changed]:
    """Changed and removed rows by table, as float32."""
    return {
        rows.table: Changed(
            np.frombuffer(rows.keys, np.int64),
            read_rows(rows.values, rows.dim, delta.format),
            np.frombuffer(rows.removed, np.int64),
        )
        for rows in delta.tables
    }


@dataclass(frozen=True)
class StepDelta:
    """One step with all its parts, to be applied between two requests. ``digest``: of all published rows
    after the step, if given."""

    step: int
    time_ms: int
    tables: Mapping[str, Changed]
    dense: Vector | None
    metrics: Mapping[str, float]
    digest: int | None = None


@dataclass(frozen=True)
class Gap:
    """End of an assembly: load a snapshot and read on with a new assembler from its step."""

    expected: int
    got: int
    reason: str


@dataclass
class DeltaAssembler:
    """Assembles the parts of one (line, epoch) into whole steps, in order, starting after ``step``. A gap is
    final. ``patience``: later steps that may arrive before a missing one is a gap; two are enough on an
    ordered log, since shards are at most one step apart."""

    line: str
    epoch: int
    step: int
    patience: int = 8
    _gap: Gap | None = None
    _waiting: dict[tuple[int, int, int], dict[int, Delta]] = field(default_factory=dict)

    def feed(self, value: bytes) -> list[StepDelta] | Gap:
        """Adds one record of ``deltas``; returns the steps now complete, in order."""
        if self._gap:
            return self._gap
        try:
            delta = unpack(value, Delta)
        except msgspec.MsgspecError:
            return []
        return self.feed_delta(delta)

    def feed_delta(self, delta: Delta) -> list[StepDelta] | Gap:
        """As ``feed``, for a decoded delta."""
        if self._gap:
            return self._gap
        if not is_sound(delta) or delta.line != self.line or delta.epoch < self.epoch:
            return []
        if delta.epoch > self.epoch:
            reason = f"history was replaced: epoch {delta.epoch}, expected {self.epoch}"
            return self._end(delta.step, reason)
        if delta.step > self.step:
            self._keep(delta)
        return self._gap or self._take()

    def diverge(self, step: int) -> Gap:
        """Ends with a gap because the replica's rows after ``step`` differ from the published ones."""
        return self._end(step, f"the rows held after step {step} aren't those that were published")

    def _end(self, got: int, reason: str) -> Gap:
        self._gap = Gap(self.step + 1, got, reason)
        self._waiting.clear()
        return self._gap

    def _keep(self, delta: Delta) -> None:
        parts = self._waiting.setdefault((delta.step, delta.base_step, delta.parts), {})
        if parts.setdefault(delta.part, delta) != delta:
            reason = f"part {delta.part} of step {delta.step} came twice with other content"
            self._end(delta.step, reason)
            return
        if delta.step > self.step + self.patience and not self._next():
            self._end(delta.step, f"step {self.step + 1} is missing")

    def _next(self) -> tuple[int, int, int] | None:
        complete = (key for key, parts in self._waiting.items() if len(parts) == key[2])
        return min((key for key in complete if key[1] == self.step), default=None)

    def _take(self) -> list[StepDelta]:
        steps = []
        while (key := self._next()) is not None:
            parts = self._waiting.pop(key)
            steps.append(_join([parts[part] for part in sorted(parts)]))
            self.step = key[0]
            for old in [key for key in self._waiting if key[0] <= self.step]:
                del self._waiting[old]
        return steps


def _join(parts: list[Delta]) -> StepDelta:
    tables: dict[str, list[Changed]] = {}
    for part in parts:
        for name, changed in to_arrays(part).items():
            tables.setdefault(name, []).append(changed)
    joined = {
        name: Changed(*(np.concatenate(column) for column in zip(*changes, strict=True)))
        for name, changes in tables.items()
    }
    dense = [read_dense(part.dense, part.format) for part in parts if part.dense]
    metrics = {name: value for part in parts for name, value in part.metrics.items()}
    digests = [part.digest for part in parts if part.digest is not None]
    whole = sum(digests) % 2**64 if len(digests) == len(parts) else None
    first = parts[0]
    return StepDelta(first.step, first.time_ms, joined, dense[0] if dense else None, metrics, whole)


class _Head(msgspec.Struct):
    """Fields of a delta that its span needs; decoding skips the rows."""

    line: str
    epoch: int
    step: int
    part: int


_head_decoder = msgspec.msgpack.Decoder(_Head)


def record_publish_spans(tracer: SpanRecorder, deltas: Iterable[bytes], began_ns: int, ended_ns: int) -> None:
    """Records the span of each delta's append to the log."""
    for delta in deltas:
        head = _head_decoder.decode(delta)
        step = (head.line, head.epoch, head.step)
        attributes: SpanAttributes = {"line": head.line, "epoch": head.epoch, "step": head.step}
        attributes |= {"part": head.part, "topic": DELTAS, "bytes": len(delta)}
        span = step_span(*step, PUBLISH, head.part)
        tracer.record(Span(span, PUBLISH, began_ns, ended_ns, step_span(*step), (), attributes))


def _add(crc: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(struct.pack("<q", len(data)), crc))
