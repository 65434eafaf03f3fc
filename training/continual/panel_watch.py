"""Measures forgetting in the running system: each newest snapshot of live scores the panels of those before.

It has a thread of the part `shadow`, a client of the log of its own, and a small file in the state folder, so
whatever dies, it goes on from there. A sitting opens the newest snapshot, takes the newest examples that it
has learned as a panel, and scores that and the few that are told of. Sittings together take no more than a
share of one core: after one that took long the next waits, and meets a later snapshot.

An epoch's panels stay as long as they are part of the live line's history: after a promotion they say what
is left of them in the model that was promoted.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError

from experiments.epoch_model import config_at
from parameter_server import snapshots
from parameter_server.snapshot_rows import rows_of
from recsys.blueprint import build_model
from recsys.config import Config
from recsys.control_records import Erasure
from recsys.feature_sets import feature_set
from recsys.features import FeatureSet
from recsys.log import Log, LogLost, LogUnavailable
from recsys.loops import Heartbeat
from recsys.model_tables import tables_of
from recsys.open_log import open_log
from recsys.part_state import PartState
from training.continual import panel_log, panels
from training.continual.learner import Learner
from training.continual.panel_log import Found, PanelExample
from training.continual.panels import Floats, Kept, Panel
from training.continual.step_reader import ExampleCheck
from training.control import ControlReader
from training.line import MAIN
from training.lineage import Lineage, ancestors

PART: Final = "forgetting"
_LOOK_EVERY_S: Final = 2.0
_AT_ONCE: Final = 256  # examples of a forward pass
_LOG: Final = logging.getLogger(__name__)


class _Saved(msgspec.Struct, kw_only=True):
    """``told``: by the name of an age, as ``Kept``."""

    epoch: int
    step: int
    panels: bytes
    scanned: dict[int, int]
    told: dict[str, Kept]


@dataclass(frozen=True)
class _Model:
    """The live line's model as replicas were given it with a snapshot, but for what rounding takes."""

    learner: Learner
    check: ExampleCheck
    snapshot: snapshots.Snapshot
    config: Config
    dense: Floats

    def probabilities(self, examples: list[PanelExample]) -> Floats:
        """Of the first label, (N,)."""
        features = next(t for t in tables_of(self.config.model) if t.name == "features")
        found = [np.empty(0, np.float32)]
        for start in range(0, len(examples), _AT_ONCE):
            lane = self.learner.prepare(examples[start : start + _AT_ONCE])
            keys = lane.lookup.keys["features"]
            rows = rows_of(self.snapshot, features, self.config.model.seed, keys)
            found.append(self.learner.predict(lane, {"features": rows}, self.dense)[:, 0])
        return np.concatenate(found)


class PanelWatch:
    """The panels of the live line. ``turn`` is called now and then; ``seconds`` says what time has passed,
    and ``spent`` what this thread took of a processor."""

    def __init__(
        self,
        log: Log,
        config: Config,
        features: FeatureSet,
        seconds: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._log, self._config, self._features = log, config, features
        self._seconds, self._spent = seconds, spent
        self._folder = Path(config.state) / "snapshots"
        self._state = PartState(config.state, PART)
        self._control = ControlReader(log)
        self._erased: dict[str, int] = {}  # by user, the offset of ``events`` before which all goes
        self._due_s = 0.0
        self.panels: list[Panel] = []  # youngest first
        self.told: dict[str, Kept] = {}
        self.cpu_s = self.sitting_s = 0.0  # of all sittings; of the newest
        self._at, self._scanned = (0, 0), dict[int, int]()
        self._restore()

    @property
    def step(self) -> int:
        """Of the snapshot that is meant by now."""
        return self._at[1]

    def turn(self) -> bool:
        """Whether there was a sitting. Raises LogUnavailable."""
        for said in self._control.turn():
            if isinstance(said, Erasure) and said.user_id != "":
                self._erased[str(said.user_id)] = said.offset
        epoch = self._control.live_epoch(MAIN)
        steps = snapshots.complete_steps(self._folder, MAIN, epoch)
        if not steps or (epoch, steps[-1]) == self._at or self._seconds() < self._due_s:
            return False
        began_s = self._spent()
        try:
            self._sit(epoch, steps[-1])
            return True
        except (
            OSError,
            LogLost,
            LookupError,
            SafetensorError,
            ValueError,
        ) as error:  # pruned, damaged
            _LOG.warning("panels aren't scored by step %d: %s", steps[-1], error)
            self._at = (epoch, steps[-1])
            return False
        finally:
            self.sitting_s = self._spent() - began_s
            self.cpu_s += self.sitting_s
            self._due_s = self._seconds() + self.sitting_s / self._config.drift.panel_share

    def _sit(self, epoch: int, number: int) -> None:
        model = self._open(epoch, number)
        lineage = Lineage(self._log, MAIN, self._control.lifecycle.lives)
        step = lineage.record(number)
        if step is None:
            raise LookupError(f"step {number} has no record on the log")
        read = partial(panel_log.again, self._log, check=model.check, gone=self._gone)
        older = [read(panel) for panel in self._standing(lineage, epoch, number)]
        wanted = self._config.drift.panel_examples
        fresh = panel_log.newest(self._log, lineage, step, wanted, model.check, self._gone)
        fresh = fresh._replace(panel=fresh.panel.learned(model.probabilities(fresh.examples)))
        every = self._labelled([its for its in (fresh, *older) if len(its.panel)])
        ages_ms = [max(0, step.time_ms - its.panel.time_ms) for its in every]
        every = [every[n] for n in panels.thinned(ages_ms)]
        self._tell(every, model, step.time_ms)
        self.panels, self._at = [its.panel for its in every], (epoch, number)
        self._save()

    def _open(self, epoch: int, number: int) -> _Model:
        """Raises NoSnapshot, ValueError."""
        found, reasons = snapshots.latest(self._folder, MAIN, epoch, number)
        if found is None:
            raise snapshots.NoSnapshot(f"{self._folder}/{MAIN} of epoch {epoch}", reasons)
        config = config_at(self._config, self._control.lifecycle, MAIN, epoch)
        learner = Learner(build_model(self._features, config.model))
        width = learner.model.ranker.shape.dense
        check = ExampleCheck(self._features, width, PanelExample)
        dense = found.read(0, lambda name: name == "dense/averaged")["dense/averaged"]
        return _Model(learner, check, found, config, dense)

    def _standing(self, lineage: Lineage, epoch: int, number: int) -> list[Panel]:
        """The panels of earlier snapshots whose steps are part of the live line's history."""
        history = ancestors(self._control.lifecycle.lives, epoch)
        return [
            its
            for its in self.panels
            if its.epoch in history
            and its.step < number
            and lineage.epoch_of(its.step) == its.epoch
        ]

    def _labelled(self, found: list[Found]) -> list[Found]:
        """With what came to correct their labels until now."""
        starts = dict[int, int]()
        for its in found[:1]:
            rows = its.panel.rows_N
            for p in np.unique(rows["partition"]):
                starts[int(p)] = int(rows["offset"][rows["partition"] == p].min())
        for partition, offset in self._scanned.items():
            starts[partition] = min(offset, starts.get(partition, offset))
        labels, self._scanned = panel_log.corrections(self._log, starts)
        return [its._replace(panel=its.panel.corrected(labels)) for its in found]

    def _tell(self, every: list[Found], model: _Model, time_ms: int) -> None:
        places = panels.told([max(0, time_ms - its.panel.time_ms) for its in every])
        scored = {n: model.probabilities(every[n].examples) for n in set(places.values())}
        said = {name: panels.kept(every[n].panel, scored[n], time_ms) for name, n in places.items()}
        self.told = {name: its for name, its in said.items() if its is not None}

    def _gone(self, example: PanelExample) -> bool:
        return example.offset < self._erased.get(str(example.user_id), 0)

    def _restore(self) -> None:
        try:
            saved = self._state.load(self._log.id)
            its = saved and msgspec.msgpack.decode(saved.blob, type=_Saved)
            if its:
                self.panels, self.told = panels.unpack(its.panels), its.told
                self._at, self._scanned = (its.epoch, its.step), its.scanned
        except (LogLost, ValueError) as error:  # they are of use to nobody else: begun anew
            _LOG.warning("panels begin anew: %s", error)

    def _save(self) -> None:
        epoch, step = self._at
        its = _Saved(
            epoch=epoch, step=step, panels=panels.pack(self.panels), scanned=self._scanned,
            told=self.told,
        )  # fmt: skip
        self._state.save(self._log.id, {}, msgspec.msgpack.encode(its))


class PanelThread:
    """Turns a ``PanelWatch`` beside a part's loop, and puts into the part's heartbeat what it says."""

    def __init__(self, config: Config, beat: Heartbeat) -> None:
        self._config, self._beat = config, beat
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=PART, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        torch.set_num_threads(1)  # of this thread, too
        log = open_log(self._config)
        try:
            watch = PanelWatch(log, self._config, feature_set(self._config))
            tell(watch, self._beat)
            while not self._over.wait(_LOOK_EVERY_S):
                try:
                    if watch.turn():
                        _LOG.info("panels scored", extra={"step": watch.step, **_ages(watch)})
                    tell(watch, self._beat)
                except LogUnavailable as error:
                    _LOG.warning("log unavailable, trying again: %s", error)
        except Exception:  # what learns and is judged beside it goes on
            _LOG.exception("forgetting isn't measured any more")
        finally:
            log.close()


def tell(watch: PanelWatch, beat: Heartbeat) -> None:
    """What is not told any more leaves the heartbeat."""
    said = {"panels": float(len(watch.panels)), "panel_cpu_s": watch.cpu_s}
    if watch.told:
        said["panel_step"] = float(watch.step)
    for age, its in watch.told.items():
        said |= {
            f"panel_age_s.{age}": its.age_ms / 1000,
            f"panel_examples.{age}": float(its.examples),
            f"panel_auc_learned.{age}": round(its.learned, 4),
            f"panel_auc_now.{age}": round(its.now, 4),
            f"panel_forgotten.{age}": round(its.forgotten, 4),
        }
        if its.before == its.before:  # not NaN
            said[f"panel_auc_before.{age}"] = round(its.before, 4)
    beat.only("panel", said)


def _ages(watch: PanelWatch) -> dict[str, float]:
    return {f"forgotten_{age}": round(its.forgotten, 4) for age, its in watch.told.items()}
