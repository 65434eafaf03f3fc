"""Watches the live line for drift: feeds deltas' sums and a sample of the features to the monitors. The
director appends their alarms to ``control``.

It keeps no state: after a restart the warm-up repeats. When another epoch goes live, the loss monitors
restart.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.app.logged_sets import BlockReader
from recsys.clock import is_due
from recsys.config.system_config import Config
from recsys.events.control_records import Alarm
from recsys.events.event_types import FeatureBlock
from recsys.events.hashing import uniform
from recsys.events.records import EXAMPLES
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost, Record, read_range
from recsys.process.log_consumer import decoded
from training.drift.monitors import FeatureMonitor, LossMonitor
from training.lines.control import ControlReader
from training.lines.line import MAIN
from training.steps.delta_reader import DeltaMetrics, LearnedSteps

_SAMPLE_MS: Final = 1_000  # between two samples of examples
_RUN: Final = 64  # consecutive examples that are sampled together, or not at all
_SHARE: Final = 0.25  # fraction of runs sampled, by a hash of their offset
_BEHIND: Final = 16  # newest runs of a partition to sample from: faster traffic is skipped
_SEED: Final = 0
_SLOTS: Final = ("profile", "context", "duration")  # and the groups of items


class DriftWatch:
    """Reads the log; ``turn`` returns the alarms to append to ``control``. ``alarms``: their number."""

    def __init__(self, log: Log, config: Config, features: FeatureSet) -> None:
        self._labels, self._watches = features.schema.labels, config.drift.watch
        self._from_ms = config.drift.from_ms
        control = ControlReader(log)
        control.turn()
        self.learned = LearnedSteps(log, control, MAIN, control.live_epoch(MAIN))
        self._losses = LossMonitor(self._labels)
        self._features = SampledFeatures(log, features, self._from_ms)
        # For the next turn that reads the log to its end; monitors don't raise an alarm twice.
        self._found: list[Alarm] = []
        self.alarms = 0
        self.not_finite = 0  # steps whose sums aren't finite

    def turn(self, now_ms: int) -> list[Alarm]:
        """Reads new records; returns new alarms."""
        if self.learned.follow():
            self._losses = LossMonitor(self._labels)
        if self._watches:
            self._note(self._features.turn(now_ms, self.learned.step))
            for progress in self.learned.read():
                self._note(self._judge(progress))
        alarms, self._found = self._found, []
        return alarms

    def _note(self, alarms: Sequence[Alarm]) -> None:
        self._found += alarms
        self.alarms += len(alarms)

    def _judge(self, progress: DeltaMetrics) -> list[Alarm]:
        if progress.time_ms <= self._from_ms:
            return []
        try:
            return self._losses.step(progress.metrics, progress.time_ms, progress.step)
        except ValueError:  # not finite: that isn't drift
            self.not_finite += 1
            return []


class _SampledExample(msgspec.Struct):
    closed_ms: int
    correction: bool = False
    features: FeatureBlock | None = None


class SampledFeatures:
    """Feeds a FeatureMonitor with runs of new examples, at a bounded cost per second."""

    def __init__(self, log: Log, features: FeatureSet, from_ms: int = 0) -> None:
        self._log, self._digest, self._from_ms = log, features.digest, from_ms
        self._blocks = BlockReader(log, features)
        names = features.dense_names
        self._width = len(names)
        self._columns = np.array([n for n, name in enumerate(names) if is_steady(name)], np.int64)
        # Field of a block and place in it, by slot.
        slots = {s.name: ("user_keys", s.start) for s in features.user_slots}
        slots |= {s.name: ("item_keys", s.start) for s in features.item_slots}
        self._slots = {n: s for n, s in slots.items() if n in _SLOTS or n.startswith("item.")}
        self.monitor = FeatureMonitor([names[n] for n in self._columns], tuple(self._slots))
        partitions = range(log.partitions(EXAMPLES))
        self._next = {p: -(-log.end(EXAMPLES, p) // _RUN) for p in partitions}  # runs
        self._due_ms = 0
        self.watched = 0  # examples

    def turn(self, now_ms: int, step: int) -> list[Alarm]:
        """Samples at most one run of each partition; ``step``: the newest, to be named by alarms."""
        if not is_due(now_ms, self._due_ms, _SAMPLE_MS):
            return []
        self._due_ms = now_ms + _SAMPLE_MS
        alarms = []
        for partition in self._next:
            if sample := self._decoded(self._run(partition)):
                alarms += self._feed(sample, step)
        return alarms

    def _run(self, partition: int) -> list[Record]:
        """The next complete run in the sample."""
        end = self._log.end(EXAMPLES, partition) // _RUN
        for run in range(max(self._next[partition], end - _BEHIND), end):
            self._next[partition] = run + 1
            if uniform(_SEED, "drift", partition, run) < _SHARE:
                records = read_range(self._log, EXAMPLES, partition, run * _RUN, (run + 1) * _RUN)
                with suppress(LogLost):
                    return list(records)
                return []
        return []

    def _decoded(self, records: Sequence[Record]) -> list[tuple[int, FeatureBlock]]:
        """Times and features of shown items, without the examples that training leaves out."""
        sample = []
        for _, example in decoded(records, _SampledExample):
            counts = example.closed_ms > self._from_ms and not example.correction
            if example.features is None or not counts:
                continue
            block = self._blocks.read(example.features)
            if block.feature_set == self._digest and len(block.dense) == 4 * self._width:
                sample.append((example.closed_ms, block))
        return sample

    def _feed(self, sample: Sequence[tuple[int, FeatureBlock]], step: int) -> list[Alarm]:
        blocks = [block for _, block in sample]
        dense_BF = np.frombuffer(b"".join(b.dense for b in blocks), np.float32)
        dense_BF = dense_BF.reshape(len(blocks), -1)[:, self._columns]
        finite = np.isfinite(dense_BF).all(1)
        keys = {
            name: _column([getattr(block, field) for block in blocks], at)[finite]
            for name, (field, at) in self._slots.items()
        }
        self.watched += int(finite.sum())
        at_ms = max(time_ms for time_ms, _ in sample)
        return self.monitor.step(dense_BF[finite], keys, at_ms, step)


def is_steady(name: str) -> bool:
    """Whether a dense column is stationary in a stationary world: counts grow with the system, the hour
    cycles, and a component of a vector has no meaning of its own."""
    cycles = name in ("events", "hour.sin", "hour.cos")
    return not (cycles or "[" in name or name.endswith(("/shown.fast", "/shown.slow")))


def _column(arrays: Sequence[bytes], at: int) -> NDArray[np.int64]:
    """One key of each (B,)."""
    keys_B = [int.from_bytes(keys[8 * at : 8 * at + 8], "little", signed=True) for keys in arrays]
    return np.array(keys_B, np.int64)
