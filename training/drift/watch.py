"""Watches the live line for drift: feeds deltas' sums and a sample of the features to the monitors, and turns
alarms into records of ``control``.

It keeps no state: after a restart of the director the warm-up repeats, and reactions resume from the newest
one. When another epoch goes live, the loss monitors restart, as the model is another one. The director
appends the records, and the sequencer acts on them.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.config.part_configs import DriftConfig
from recsys.config.system_config import Config
from recsys.events.control_records import Alarm, Control, Reaction
from recsys.events.event_types import FeatureBlock
from recsys.events.hashing import uniform
from recsys.events.records import DELTAS, EXAMPLES
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost, Record, read_range
from recsys.process.log_consumer import UNREADABLE
from training.continual.progress import DeltaMetrics
from training.drift.monitors import DriftAlarm, FeatureMonitor, LossMonitor
from training.drift.reaction import ReactionConfig, ReactionPolicy
from training.lines.control import ControlReader
from training.lines.line import MAIN

_DELTAS: Final = 200  # records per read
_SAMPLE_MS: Final = 1_000  # between two samples of examples
_RUN: Final = 64  # consecutive examples that are sampled together, or not at all
_SHARE: Final = 0.25  # fraction of runs sampled, by a hash of their offset
_BEHIND: Final = 16  # newest runs of a partition to sample from: faster traffic is skipped
_SEED: Final = 0
_SLOTS: Final = ("profile", "context", "duration")  # and the groups of items


class DriftWatch:
    """Reads the log; ``turn`` returns the records to append to ``control``. ``alarms``: number of alarms;
    ``reaction``: the newest reaction."""

    def __init__(self, log: Log, config: Config, features: FeatureSet, line: str = MAIN) -> None:
        self._log, self._line, self._labels = log, line, features.schema.labels
        self._bounds = reaction_config(config.drift)
        self._react = config.drift.watch and config.drift.react
        self._control = ControlReader(log)
        offline = [s for s in self._control.turn() if isinstance(s, Reaction) and s.offline]
        self._epoch = self._control.live_epoch(line)
        reaction = self._bounded(self._control.reaction)
        self._unsent = reaction is not self._control.reaction
        offline_ms = offline[-1].time_ms if offline else None
        self._policy = ReactionPolicy(self._bounds, reaction, offline_ms)
        self._losses = LossMonitor(self._labels)
        self._features = SampledFeatures(log, features)
        self._watches = config.drift.watch
        self._offset = log.end(DELTAS, 0)
        self._decoder = msgspec.msgpack.Decoder(DeltaMetrics)
        self._pending: list[DriftAlarm] = []  # not seen by the policy yet
        self.step = 0
        self.alarms = 0
        self.unreadable = 0  # deltas, and steps whose sums aren't finite

    @property
    def reaction(self) -> Reaction:
        return self._policy.reaction

    def turn(self, now_ms: int) -> list[Control]:
        """Reads new records; returns alarms, each followed by the reaction to it."""
        self._follow()
        records: list[Control] = [self.reaction] if self._unsent else []
        self._unsent = False
        if not self._watches:
            return records
        records += self._records(self._features.turn(now_ms, self.step))
        for progress in self._steps():
            records += self._records(self._judge(progress))
            if self._reacts(progress):
                records.append(self.reaction)
        return records

    def _follow(self) -> None:
        """Follows the live epoch."""
        self._control.turn()
        epoch = self._control.live_epoch(self._line, self._epoch)
        if epoch != self._epoch:
            self._epoch, self.step = epoch, 0
            self._losses = LossMonitor(self._labels)

    def _bounded(self, reaction: Reaction) -> Reaction:
        """The reaction, or one that takes back what exceeds the current bounds."""
        bounds = self._bounds
        rate = min(reaction.rate, bounds.most_rate)
        every = min(reaction.publish_every, bounds.most_gathered)
        if (rate, every) == (reaction.rate, reaction.publish_every):
            return reaction
        because = ["it is beyond what drift.react, most_rate and most_gathered allow"]
        return Reaction(rate=rate, publish_every=every, because=because, time_ms=reaction.time_ms)

    def _records(self, alarms: Sequence[DriftAlarm]) -> list[Control]:
        self._pending += alarms
        self.alarms += len(alarms)
        return [record_of(alarm) for alarm in alarms]

    def _steps(self) -> Iterator[DeltaMetrics]:
        """New steps of the line, each once: a line that was rolled back repeats some."""
        while records := self._deltas():
            for record in records:
                self._offset = record.offset + 1
                try:
                    progress = self._decoder.decode(record.value)
                except UNREADABLE:
                    self.unreadable += 1
                    continue
                version = (progress.line, progress.epoch, progress.part)
                if version == (self._line, self._epoch, 0) and progress.step > self.step:
                    self.step = progress.step
                    yield progress

    def _deltas(self) -> list[Record]:
        try:
            return self._log.read(DELTAS, 0, self._offset, _DELTAS)
        except LogLost:  # trimmed: the monitors miss some steps
            self._offset = self._log.begin(DELTAS, 0)
            return self._log.read(DELTAS, 0, self._offset, _DELTAS)

    def _judge(self, progress: DeltaMetrics) -> list[DriftAlarm]:
        try:
            return self._losses.step(progress.metrics, progress.time_ms, progress.step)
        except ValueError:  # not finite: that isn't drift
            self.unreadable += 1
            return []

    def _reacts(self, progress: DeltaMetrics) -> bool:
        """Whether ``reaction`` changes after a step."""
        alarms, self._pending = self._pending, []
        if not self._react:
            return False
        examples = progress.metrics.get("examples", 0.0)
        return self._policy.step(alarms, examples, progress.time_ms)


def reaction_config(rules: DriftConfig) -> ReactionConfig:
    """Bounds of the reactions; with reactions off, nothing may change."""
    if not (rules.watch and rules.react):
        return ReactionConfig(most_rate=1.0, most_gathered=1)
    return ReactionConfig(
        most_rate=rules.most_rate,
        calm_examples=rules.calm_examples,
        most_gathered=rules.most_gathered,
    )


def record_of(alarm: DriftAlarm) -> Alarm:
    """An alarm as a record of ``control``."""
    evidence = alarm.evidence
    return Alarm(
        kind=alarm.kind, what=alarm.what, at_ms=alarm.at_ms, step=alarm.step,
        expected=evidence.expected, found=evidence.observed, scale=evidence.scale,
        detector=evidence.detector,
    )  # fmt: skip


class _SampledExample(msgspec.Struct):
    closed_ms: int
    correction: bool = False
    features: FeatureBlock | None = None


class SampledFeatures:
    """Feeds a FeatureMonitor with runs of examples that come after its construction, at a bounded cost per
    second whatever the traffic."""

    def __init__(self, log: Log, features: FeatureSet) -> None:
        self._log, self._digest = log, features.digest
        names = features.dense_names
        self._width = len(names)
        self._columns = np.array([n for n, name in enumerate(names) if is_steady(name)], np.int64)
        self._user = {s.name: s.start for s in features.user_slots if s.name in _SLOTS}
        self._item = {
            s.name: s.start
            for s in features.item_slots
            if s.name in _SLOTS or s.name.startswith("item.")
        }
        slots = (*self._user, *self._item)
        self.monitor = FeatureMonitor([names[n] for n in self._columns], slots)
        partitions = range(log.partitions(EXAMPLES))
        self._next = {p: -(-log.end(EXAMPLES, p) // _RUN) for p in partitions}  # runs
        self._decoder = msgspec.msgpack.Decoder(_SampledExample)
        self._due_ms = 0
        self.watched = 0  # examples

    def turn(self, now_ms: int, step: int) -> list[DriftAlarm]:
        """Samples at most one run of each partition; ``step``: the newest, to be named by alarms."""
        if now_ms < self._due_ms:
            return []
        self._due_ms = now_ms + _SAMPLE_MS
        alarms = []
        for partition in self._next:
            if sample := self._decoded(self._run(partition)):
                alarms += self._feed(sample, step)
        return alarms

    def _run(self, partition: int) -> list[bytes]:
        """The next complete run in the sample."""
        end = self._log.end(EXAMPLES, partition) // _RUN
        for run in range(max(self._next[partition], end - _BEHIND), end):
            self._next[partition] = run + 1
            if uniform(_SEED, "drift", partition, run) < _SHARE:
                records = read_range(self._log, EXAMPLES, partition, run * _RUN, (run + 1) * _RUN)
                with suppress(LogLost):
                    return [record.value for record in records]
                return []
        return []

    def _decoded(self, values: Sequence[bytes]) -> list[tuple[int, FeatureBlock]]:
        """Times and features of shown items, without the examples that training leaves out."""
        sample = []
        for value in values:
            try:
                example = self._decoder.decode(value)
            except UNREADABLE:
                continue
            block = example.features
            if example.correction or block is None or block.feature_set != self._digest:
                continue
            if len(block.dense) == 4 * self._width:
                sample.append((example.closed_ms, block))
        return sample

    def _feed(self, sample: Sequence[tuple[int, FeatureBlock]], step: int) -> list[DriftAlarm]:
        blocks = [block for _, block in sample]
        dense_BF = np.frombuffer(b"".join(b.dense for b in blocks), np.float32)
        dense_BF = dense_BF.reshape(len(blocks), -1)[:, self._columns]
        finite = np.isfinite(dense_BF).all(1)
        user_keys, item_keys = [b.user_keys for b in blocks], [b.item_keys for b in blocks]
        keys = {name: _column(user_keys, at)[finite] for name, at in self._user.items()}
        keys |= {name: _column(item_keys, at)[finite] for name, at in self._item.items()}
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
