"""Measures forgetting in the running system: each newest live snapshot scores the panels of earlier ones.

Runs in a thread of the part `shadow`, with its own log client and a small state file. A run opens the
newest snapshot, takes the newest examples that it has learned as a panel, and scores that panel and the few
that are reported. All runs together take at most a hundredth of one core. Panels of earlier epochs measure
how much of them a promoted model retains.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError

from experiments.promotion.epoch_model import config_at, features_at
from parameter_server.storage import snapshots
from parameter_server.storage.snapshot_rows import rows_of
from recsys.config.system_config import Config, tables_of
from recsys.events.control_records import Erasure
from recsys.events.records import Step
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log, LogLost, LogUnavailable
from recsys.model.model import build_model
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat
from recsys.process.part_snapshot import PartState
from training.continual.learner import Lane, Learner
from training.forgetting import panel_log, panels
from training.forgetting.panel_log import LoggedPanel
from training.forgetting.panels import Floats, Panel, Retention
from training.lines.control import ControlReader
from training.lines.line import MAIN
from training.steps.lineage import Lineage, ancestors
from training.steps.step_reader import ExampleCheck, ServedExample

PART: Final = "panels"
_LOOK_EVERY_S: Final = 2.0
_PAUSE_S: Final = 10.0  # minimum after an error
_END_S: Final = 2.0
_AT_ONCE: Final = 256  # examples of a forward pass
_SHARE: Final = 0.01  # of one core, at most: after an expensive run the next one waits
_LOG: Final = logging.getLogger(__name__)


class Ended(Exception):
    """The thread must end in the middle of a run: the next process repeats it."""


class _Saved(msgspec.Struct, kw_only=True):
    epoch: int
    step: int
    panels: bytes
    scanned: dict[int, int]
    retention: dict[str, Retention]  # by age name


@dataclass(frozen=True)
class _Model:
    """The live line's model of a snapshot, as replicas have it but for rounding."""

    learner: Learner
    check: ExampleCheck
    snapshot: snapshots.Snapshot
    config: Config
    dense: Floats

    def probabilities(self, groups: Sequence[list[ServedExample]], ended: Callable[[], bool]) -> list[Floats]:
        """Probabilities of the first label, (N,) for each group. Raises Ended."""
        lanes = [self._lanes(examples, ended) for examples in groups]
        keys = [lane.lookup.keys["features"] for group in lanes for lane in group]
        every = np.unique(np.concatenate([np.empty(0, np.int64), *keys]))
        features = next(t for t in tables_of(self.config.model) if t.name == "features")
        rows = rows_of(self.snapshot, features, self.config.model.seed, every)
        scored = list[Floats]()
        for group in lanes:
            scores = [np.empty(0, np.float32)]
            for lane in group:
                _check_ended(ended)
                own = rows[np.searchsorted(every, lane.lookup.keys["features"])]
                scores.append(self.learner.predict(lane, {"features": own}, self.dense)[:, 0])
            scored.append(np.concatenate(scores))
        return scored

    def _lanes(self, examples: list[ServedExample], ended: Callable[[], bool]) -> list[Lane]:
        lanes = list[Lane]()
        for start in range(0, len(examples), _AT_ONCE):
            _check_ended(ended)
            lanes.append(self.learner.prepare(examples[start : start + _AT_ONCE]))
        return lanes


def _check_ended(ended: Callable[[], bool]) -> None:
    if ended():
        raise Ended


class PanelWatch:
    """Scores the panels of the live line; call ``turn`` now and then. ``spent``: this thread's CPU time.
    ``ended``: whether to end. After an unexpected error of ``turn`` a new instance resumes from the file."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet,
        seconds: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time, ended: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._log, self._config, self._features = log, config, features
        self._seconds, self._spent, self._ended = seconds, spent, ended
        self._folder = Path(config.state) / "snapshots"
        self._state = PartState(config.state, PART)
        self._control = ControlReader(log)
        # By user, the offset of ``events`` before which all is erased.
        self._erased: dict[str, int] = {}
        self._due_s = 0.0
        self.panels: list[Panel] = []  # youngest first
        self.retention: dict[str, Retention] = {}
        self.cpu_s = self.run_s = 0.0  # of all runs; of the newest
        self.skipped = 0  # records that weren't searched for corrections
        self._at, self._scanned = (0, 0), dict[int, int]()
        self._tried = (0, 0)  # a snapshot that couldn't score the panels
        self._restore()

    @property
    def step(self) -> int:
        """The step of the snapshot scored last."""
        return self._at[1]

    def turn(self) -> bool:
        """Runs if it is time; returns whether it did. Raises LogUnavailable, and Ended."""
        for message in self._control.turn():
            if isinstance(message, Erasure) and message.user_id != "":
                self._erased[str(message.user_id)] = message.offset
        epoch = self._control.live_epoch(MAIN)
        steps = snapshots.complete_steps(self._folder, MAIN, epoch)
        if not steps or (epoch, steps[-1]) in (self._at, self._tried):
            return False
        if self._seconds() < self._due_s:
            return False
        began_s = self._spent()
        try:
            self._run(epoch, steps[-1])
            return True
        except (OSError, LogLost, LookupError, SafetensorError, ValueError) as error:
            _LOG.warning("panels aren't scored by step %d: %s", steps[-1], error)  # pruned, damaged
            self._tried = (epoch, steps[-1])
            return False
        finally:
            self.run_s = self._spent() - began_s
            self.cpu_s += self.run_s
            self._due_s = self._seconds() + self.run_s / _SHARE

    def _run(self, epoch: int, number: int) -> None:
        model = self._open(epoch, number)
        lineage = Lineage(self._log, MAIN, self._control.lifecycle.lives)
        step = lineage.record(number)
        if step is None:
            raise LookupError(f"step {number} has no record on the log")
        check, count = model.check, self._config.drift.panel_examples
        read = partial(panel_log.read_again, self._log, check=check, is_erased=self._is_erased)
        older = [read(panel) for panel in self._older_panels(lineage, epoch, number)]
        fresh = panel_log.read_newest(self._log, lineage, step, count, check, self._is_erased)
        logged = [one for one in (fresh, *older) if len(one.panel)]
        corrections = panel_log.read_corrections(self._log, self._starts(logged))
        labels = corrections.labels
        logged = [one._replace(panel=one.panel.corrected(labels)) for one in logged]
        ages_ms = [max(0, step.time_ms - one.panel.time_ms) for one in logged]
        stay = panels.thinned(ages_ms)
        logged, ages_ms = [logged[n] for n in stay], [ages_ms[n] for n in stay]
        every, retention = self._scored(logged, panels.reported(ages_ms), model, step)
        # All at once: a run that is interrupted earlier has no effect.
        self.panels, self.retention, self._at = every, retention, (epoch, number)
        self._scanned = corrections.ends
        self.skipped += corrections.skipped
        self._save()

    def _open(self, epoch: int, number: int) -> _Model:
        """Raises NoSnapshot, ValueError."""
        snapshot = snapshots.require(self._folder, MAIN, epoch, number)
        lifecycle = self._control.lifecycle
        config = config_at(self._config, lifecycle, MAIN, epoch)
        features = features_at(self._features, lifecycle, MAIN, epoch)
        learner = Learner(build_model(features, config.model))
        width = learner.model.ranker.shape.dense
        check = ExampleCheck(features, width, ServedExample, self._log)
        dense = snapshot.read(0, lambda name: name == "dense/averaged")["dense/averaged"]
        return _Model(learner, check, snapshot, config, dense)

    def _older_panels(self, lineage: Lineage, epoch: int, number: int) -> list[Panel]:
        """The panels of earlier snapshots whose steps are part of the live line's history."""
        history = ancestors(self._control.lifecycle.lives, epoch)
        return [
            panel
            for panel in self.panels
            if panel.epoch in history and panel.step < number and lineage.epoch_of(panel.step) == panel.epoch
        ]

    def _starts(self, logged: list[LoggedPanel]) -> dict[int, int]:
        """Offsets to search corrections from: first place of the youngest panel, end of the last run."""
        starts = dict[int, int]()
        for youngest in logged[:1]:
            rows = youngest.panel.rows_N
            for p in np.unique(rows["partition"]):
                starts[int(p)] = int(rows["offset"][rows["partition"] == p].min())
        for partition, offset in self._scanned.items():
            starts[partition] = min(offset, starts.get(partition, offset))
        return starts

    def _scored(
        self, logged: list[LoggedPanel], places: dict[str, int], model: _Model, step: Step
    ) -> tuple[list[Panel], dict[str, Retention]]:
        """The panels, a fresh one with its scores, and the retention of the reported ones."""
        every = [logged_panel.panel for logged_panel in logged]
        fresh = [0] if every and every[0].step == step.step else []
        which = sorted({*fresh, *places.values()})
        scores = model.probabilities([logged[n].examples for n in which], self._ended)
        scored = dict(zip(which, scores, strict=True))
        every[:1] = [every[0].learned(scored[0])] if fresh else every[:1]
        now_ms = step.time_ms
        retention = {age: panels.retention(every[n], scored[n], now_ms) for age, n in places.items()}
        return every, {name: value for name, value in retention.items() if value is not None}

    def _is_erased(self, example: ServedExample) -> bool:
        return example.offset < self._erased.get(str(example.user_id), 0)

    def _restore(self) -> None:
        try:
            blob = self._state.load(self._log.id)
            if blob:
                saved = msgspec.msgpack.decode(blob.blob, type=_Saved)
                self.panels, self.retention = panels.unpack(saved.panels), saved.retention
                self._at, self._scanned = (saved.epoch, saved.step), saved.scanned
        except (LogLost, ValueError) as error:  # nothing else depends on them
            _LOG.warning("panels begin anew: %s", error)

    def _save(self) -> None:
        epoch, step = self._at
        saved = _Saved(
            epoch=epoch, step=step, panels=panels.pack(self.panels), scanned=self._scanned,
            retention=self.retention,
        )  # fmt: skip
        self._state.save(self._log.id, {}, msgspec.msgpack.encode(saved))


class PanelThread:
    """Turns a ``PanelWatch`` beside a part's loop and its heartbeat; after an error from the file again."""

    def __init__(self, config: Config, beat: Heartbeat, pause_s: float = _PAUSE_S) -> None:
        self._config, self._beat, self._pause_s = config, beat, pause_s
        self._watch: PanelWatch | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=PART, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits for less time than the supervisor gives a part to end (runtime/supervision/supervisor.py)."""
        self._over.set()
        self._thread.join(_END_S)

    def _run(self) -> None:
        torch.set_num_threads(1)  # of this thread, too
        self._beat.add("panel_failures", 0)
        while not self._over.is_set():
            try:
                self._turns()
            except Ended:
                return
            except LogUnavailable as error:
                _LOG.warning("log unavailable, trying again: %s", error)
            except Exception:  # training and evaluation in this process continue
                _LOG.exception("panels couldn't be scored: they begin anew")
                self._beat.replace_gauges("panel", {})  # the last figures are outdated
                self._beat.add("panel_failures")
            # A run that failed counts into the share of the processor as any other.
            took_s = self._watch.run_s if self._watch else 0.0
            self._over.wait(max(self._pause_s, took_s / _SHARE))

    def _turns(self) -> None:
        """Turns until the end. Raises LogUnavailable, Ended, and unexpected errors."""
        spent_s = self._watch.cpu_s if self._watch else 0.0
        log = open_log(self._config)
        try:
            features = feature_set(self._config)
            watch = PanelWatch(log, self._config, features, ended=self._over.is_set)
            watch.cpu_s, self._watch = spent_s, watch
            report(watch, self._beat)
            while not self._over.wait(_LOOK_EVERY_S):
                if watch.turn():
                    ages = watch.retention.items()
                    forgotten = {f"forgotten_{age}": round(r.forgotten, 4) for age, r in ages}
                    _LOG.info("panels scored", extra={"step": watch.step, **forgotten})
                report(watch, self._beat)
        finally:
            log.close()


def report(watch: PanelWatch, beat: Heartbeat) -> None:
    """Writes the figures to the heartbeat, and removes those that aren't reported any more."""
    figures = {"panels": float(len(watch.panels)), "panel_cpu_s": watch.cpu_s}
    figures["panel_skipped"] = float(watch.skipped)
    if watch.retention:
        figures["panel_step"] = float(watch.step)
    for age, retention in watch.retention.items():
        figures |= {
            f"panel_age_s.{age}": retention.age_ms / 1000,
            f"panel_examples.{age}": float(retention.examples),
            f"panel_auc_learned.{age}": round(retention.learned, 4),
            f"panel_auc_now.{age}": round(retention.now, 4),
            f"panel_forgotten.{age}": round(retention.forgotten, 4),
        }
        if retention.before == retention.before:  # not NaN
            figures[f"panel_auc_before.{age}"] = round(retention.before, 4)
    beat.replace_gauges("panel", figures)
