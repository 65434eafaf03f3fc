"""Watches the live line for drift: the sums of its deltas and a share of the features go into the monitors,
and what these find becomes records of ``control``.

It keeps no state: where the director starts again, the first blocks tell nothing again, and reactions go on
from the newest one. Where another epoch is live, losses begin anew, as the model is another one.

It doesn't act: the director appends what it says, and the sequencer learns by it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.config.drift_config import DriftRules
from recsys.config.system_config import Config
from recsys.events.control_records import Alarm, Control, Reaction
from recsys.events.event_types import FeatureBlock
from recsys.events.hashing import uniform
from recsys.events.records import DELTAS, EXAMPLES
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost, Record, read_range
from recsys.process.log_consumer import UNREADABLE
from training.continual.progress import Told
from training.drift import monitors as drift
from training.drift.reaction import (
    PublishEvery,
    ReactionConfig,
    ReactionPolicy,
    SetRate,
    StartOffline,
)
from training.lines.control import ControlReader
from training.lines.line import MAIN

_DELTAS: Final = 200  # records read at once
_LOOK_MS: Final = 1_000  # between two looks at examples
_RUN: Final = 64  # examples that stand together are looked at together, or not at all …
_SHARE: Final = 0.25  # … so many of these runs, by a hash of their place …
_BEHIND: Final = 16  # … of the newest so many in a partition: what comes faster is passed over
_SEED: Final = 0
_SLOTS: Final = ("profile", "context", "duration")  # and the groups of items


class DriftWatch:
    """Feeds on the log; ``turn`` returns what is to be appended to ``control``. ``alarms``: how many it
    told; ``reaction``: how things are by its newest."""

    def __init__(self, log: Log, config: Config, features: FeatureSet, line: str = MAIN) -> None:
        self._log, self._line, self._labels = log, line, features.schema.labels
        self._rules = allowed(config.drift)
        self._react = config.drift.watch and config.drift.react
        self._control = ControlReader(log)
        offline = [s for s in self._control.turn() if isinstance(s, Reaction) and s.offline]
        self._epoch = self._control.live_epoch(line)
        self._reactor = ReactionPolicy(self._rules)
        its = self.reaction = self._within(self._control.reaction)
        self._unsaid = its is not self._control.reaction
        self._reactor.go_on(its.rate, its.publish_every, offline[-1].time_ms if offline else None)
        self._losses = drift.LossMonitor(self._labels)
        self._features = SampledFeatures(log, features)
        self._watches = config.drift.watch
        self._offset = log.end(DELTAS, 0)
        self._decoder = msgspec.msgpack.Decoder(Told)
        self._waiting: list[drift.Alarm] = []  # that the reactor has yet to hear of
        self.step = 0
        self.alarms = 0
        self.unreadable = 0  # deltas, and steps whose sums are no numbers

    def turn(self, now_ms: int) -> list[Control]:
        """Reads what is new; returns alarms, and after them the reaction to them."""
        self._follow()
        found: list[Control] = [self.reaction] if self._unsaid else []
        self._unsaid = False
        if not self._watches:
            return found
        found += self._told(self._features.turn(now_ms, self.step))
        for told in self._steps():
            found += self._told(self._judge(told))
            if self._reacts(told):
                found.append(self.reaction)
        return found

    def _follow(self) -> None:
        """Goes on with the epoch that is live."""
        self._control.turn()
        epoch = self._control.live_epoch(self._line, self._epoch)
        if epoch != self._epoch:
            self._epoch, self.step = epoch, 0
            self._losses = drift.LossMonitor(self._labels)

    def _within(self, its: Reaction) -> Reaction:
        """A reaction, or one that takes back what of it goes beyond what is allowed by now."""
        rules = self._rules
        rate, every = min(its.rate, rules.most_rate), min(its.publish_every, rules.most_gathered)
        if (rate, every) == (its.rate, its.publish_every):
            return its
        because = ["it is beyond what drift.react, most_rate and most_gathered allow"]
        return Reaction(rate=rate, publish_every=every, because=because, time_ms=its.time_ms)

    def _told(self, alarms: Sequence[drift.Alarm]) -> list[Control]:
        self._waiting += alarms
        self.alarms += len(alarms)
        return [record_of(alarm) for alarm in alarms]

    def _steps(self) -> Iterator[Told]:
        """The line's new steps, each once: a line that went back repeats some."""
        while records := self._deltas():
            for record in records:
                self._offset = record.offset + 1
                try:
                    told = self._decoder.decode(record.value)
                except UNREADABLE:
                    self.unreadable += 1
                    continue
                own = (told.line, told.epoch, told.part) == (self._line, self._epoch, 0)
                if own and told.step > self.step:
                    self.step = told.step
                    yield told

    def _deltas(self) -> list[Record]:
        try:
            return self._log.read(DELTAS, 0, self._offset, _DELTAS)
        except LogLost:  # trimmed: the monitors miss some steps
            self._offset = self._log.begin(DELTAS, 0)
            return self._log.read(DELTAS, 0, self._offset, _DELTAS)

    def _judge(self, told: Told) -> list[drift.Alarm]:
        try:
            return self._losses.step(told.metrics, told.time_ms, told.step)
        except ValueError:  # not finite: that is no drift
            self.unreadable += 1
            return []

    def _reacts(self, told: Told) -> bool:
        """Whether ``reaction`` is another one after a step."""
        if not self._react:
            self._waiting = []
            return False
        examples = told.metrics.get("examples", 0.0)
        values = self._reactor.step(self._waiting, examples, told.time_ms)
        self._waiting = []
        if not values:
            return False
        rate, every, offline = self.reaction.rate, self.reaction.publish_every, False
        because: dict[str, None] = {}
        for value in values:
            because |= dict.fromkeys(map(in_words, value.because))
            match value:
                case SetRate(factor):
                    rate = factor
                case PublishEvery(steps):
                    every = steps
                case StartOffline():
                    offline = True
        self.reaction = Reaction(
            rate=rate, publish_every=every, offline=offline, because=list(because),
            time_ms=told.time_ms,
        )  # fmt: skip
        return True


def allowed(rules: DriftRules) -> ReactionConfig:
    """How far reactions may go: not at all where there are none."""
    if not (rules.watch and rules.react):
        return ReactionConfig(most_rate=1.0, most_gathered=1)
    return ReactionConfig(
        most_rate=rules.most_rate,
        calm_examples=rules.calm_examples,
        most_gathered=rules.most_gathered,
    )


def record_of(alarm: drift.Alarm) -> Alarm:
    """An alarm as it stands on ``control``."""
    its = alarm.evidence
    return Alarm(
        kind=alarm.kind, what=alarm.what, at_ms=alarm.at_ms, step=alarm.step, expected=its.expected,
        found=its.found, scale=its.scale, detector=its.detector,
    )  # fmt: skip


def in_words(alarm: drift.Alarm) -> str:
    its = alarm.evidence
    return f"{alarm.kind} {alarm.what}: {its.found:.4g}, expected {its.expected:.4g}"


class _Shown(msgspec.Struct):
    """What is read of an example; most of it is passed over."""

    closed_ms: int
    correction: bool = False
    features: FeatureBlock | None = None


class SampledFeatures:
    """Feeds a FeatureMonitor with runs of examples, from those that come after this was made. It costs so much
    a second and no more, however many come."""

    def __init__(self, log: Log, features: FeatureSet) -> None:
        self._log, self._digest = log, features.digest
        names = features.dense_names
        self._width = len(names)
        self._columns = np.array([n for n, name in enumerate(names) if steady(name)], np.int64)
        self._user = {s.name: s.start for s in features.user_slots if s.name in _SLOTS}
        self._item = {
            s.name: s.start
            for s in features.item_slots
            if s.name in _SLOTS or s.name.startswith("item.")
        }
        slots = (*self._user, *self._item)
        self.watch = drift.FeatureMonitor([names[n] for n in self._columns], slots)
        partitions = range(log.partitions(EXAMPLES))
        self._next = {p: -(-log.end(EXAMPLES, p) // _RUN) for p in partitions}  # runs
        self._decoder = msgspec.msgpack.Decoder(_Shown)
        self._due_ms = 0
        self.watched = 0  # examples

    def turn(self, now_ms: int, step: int) -> list[drift.Alarm]:
        """Looks at a run of each partition at most; ``step``: the newest, for alarms to name."""
        if now_ms < self._due_ms:
            return []
        self._due_ms = now_ms + _LOOK_MS
        alarms = []
        for partition in self._next:
            shown = self._shown(self._run(partition))
            if shown:
                alarms += self._feed(shown, step)
        return alarms

    def _run(self, partition: int) -> list[bytes]:
        """The next run that is whole and among the share."""
        end = self._log.end(EXAMPLES, partition) // _RUN
        for run in range(max(self._next[partition], end - _BEHIND), end):
            self._next[partition] = run + 1
            if uniform(_SEED, "drift", partition, run) < _SHARE:
                its = read_range(self._log, EXAMPLES, partition, run * _RUN, (run + 1) * _RUN)
                with suppress(LogLost):
                    return [record.value for record in its]
                return []
        return []

    def _shown(self, values: Sequence[bytes]) -> list[tuple[int, FeatureBlock]]:
        """Times and features of what was shown, without what learning leaves out too."""
        found = []
        for value in values:
            try:
                its = self._decoder.decode(value)
            except UNREADABLE:
                continue
            block = its.features
            if its.correction or block is None or block.feature_set != self._digest:
                continue
            if len(block.dense) == 4 * self._width:
                found.append((its.closed_ms, block))
        return found

    def _feed(self, shown: Sequence[tuple[int, FeatureBlock]], step: int) -> list[drift.Alarm]:
        blocks = [block for _, block in shown]
        dense_BF = np.frombuffer(b"".join(b.dense for b in blocks), np.float32)
        dense_BF = dense_BF.reshape(len(blocks), -1)[:, self._columns]
        sound = np.isfinite(dense_BF).all(1)
        keys = {name: _column([b.user_keys for b in blocks], at) for name, at in self._user.items()}
        keys |= {
            name: _column([b.item_keys for b in blocks], at) for name, at in self._item.items()
        }
        self.watched += int(sound.sum())
        at_ms = max(time_ms for time_ms, _ in shown)
        keys = {name: column[sound] for name, column in keys.items()}
        return self.watch.step(dense_BF[sound], keys, at_ms, step)


def steady(name: str) -> bool:
    """Whether a dense column says something about the world: counts grow as a system does, the hour turns,
    and of a vector no number stands for itself."""
    grows = name.endswith(("/shown.fast", "/shown.slow")) or name in (
        "events",
        "hour.sin",
        "hour.cos",
    )
    return not grows and "[" not in name


def _column(arrays: Sequence[bytes], at: int) -> NDArray[np.int64]:
    """One key of each (B,)."""
    keys_B = [int.from_bytes(keys[8 * at : 8 * at + 8], "little", signed=True) for keys in arrays]
    return np.array(keys_B, np.int64)
