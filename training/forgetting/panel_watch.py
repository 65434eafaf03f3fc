"""Panels in the running system: each newest snapshot of live scores the panels of those before.

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError

from experiments.promotion.epoch_model import config_at
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
from training.forgetting.panel_log import Found, PanelExample
from training.forgetting.panels import Floats, Kept, Panel
from training.lines.control import ControlReader
from training.lines.line import MAIN
from training.steps.lineage import Lineage, ancestors
from training.steps.step_reader import ExampleCheck

PART: Final = "panels"
_LOOK_EVERY_S: Final = 2.0
_PAUSE_S: Final = 10.0  # after an error, at least
_END_S: Final = 2.0
_AT_ONCE: Final = 256  # examples of a forward pass
_LOG: Final = logging.getLogger(__name__)


class Ended(Exception):
    """It was asked to end in the middle of a sitting: the next process does that again."""


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

    def probabilities(
        self, groups: Sequence[list[PanelExample]], ended: Callable[[], bool]
    ) -> list[Floats]:
        """Of the first label, (N,) of each group. The snapshot's keys are looked through once, since that
        takes longer than all else. Raises Ended."""
        lanes = [self._lanes(examples, ended) for examples in groups]
        keys = [lane.lookup.keys["features"] for its in lanes for lane in its]
        every = np.unique(np.concatenate([np.empty(0, np.int64), *keys]))
        features = next(t for t in tables_of(self.config.model) if t.name == "features")
        rows = rows_of(self.snapshot, features, self.config.model.seed, every)
        scored = list[Floats]()
        for its in lanes:
            found = [np.empty(0, np.float32)]
            for lane in its:
                _go_on(ended)
                its_rows = rows[np.searchsorted(every, lane.lookup.keys["features"])]
                found.append(self.learner.predict(lane, {"features": its_rows}, self.dense)[:, 0])
            scored.append(np.concatenate(found))
        return scored

    def _lanes(self, examples: list[PanelExample], ended: Callable[[], bool]) -> list[Lane]:
        lanes = list[Lane]()
        for start in range(0, len(examples), _AT_ONCE):
            _go_on(ended)
            lanes.append(self.learner.prepare(examples[start : start + _AT_ONCE]))
        return lanes


def _go_on(ended: Callable[[], bool]) -> None:
    if ended():
        raise Ended


class PanelWatch:
    """The panels of the live line. ``turn`` is called now and then; ``seconds`` says what time has passed,
    ``spent`` what this thread took of a processor, ``ended`` whether it is to end. After an error that
    ``turn`` doesn't expect another one goes on from the file."""

    def __init__(
        self,
        log: Log,
        config: Config,
        features: FeatureSet,
        seconds: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        self._log, self._config, self._features = log, config, features
        self._seconds, self._spent, self._ended = seconds, spent, ended
        self._folder = Path(config.state) / "snapshots"
        self._state = PartState(config.state, PART)
        self._control = ControlReader(log)
        self._erased: dict[str, int] = {}  # by user, the offset of ``events`` before which all goes
        self._due_s = 0.0
        self.panels: list[Panel] = []  # youngest first
        self.told: dict[str, Kept] = {}
        self.cpu_s = self.sitting_s = 0.0  # of all sittings; of the newest
        self.skipped = 0  # records that weren't looked through for corrections
        self._at, self._scanned = (0, 0), dict[int, int]()
        self._tried = (0, 0)  # a snapshot that couldn't score them
        self._restore()

    @property
    def step(self) -> int:
        """Of the snapshot that is meant by now."""
        return self._at[1]

    def turn(self) -> bool:
        """Whether there was a sitting. Raises LogUnavailable, and Ended."""
        for said in self._control.turn():
            if isinstance(said, Erasure) and said.user_id != "":
                self._erased[str(said.user_id)] = said.offset
        epoch = self._control.live_epoch(MAIN)
        steps = snapshots.complete_steps(self._folder, MAIN, epoch)
        if not steps or (epoch, steps[-1]) in (self._at, self._tried):
            return False
        if self._seconds() < self._due_s:
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
            self._tried = (epoch, steps[-1])
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
        found = [its for its in (fresh, *older) if len(its.panel)]
        came = panel_log.corrections(self._log, self._starts(found))
        found = [its._replace(panel=its.panel.corrected(came.labels)) for its in found]
        ages_ms = [max(0, step.time_ms - its.panel.time_ms) for its in found]
        stay = panels.thinned(ages_ms)
        found, ages_ms = [found[n] for n in stay], [ages_ms[n] for n in stay]
        every, told = self._scored(found, panels.told(ages_ms), model, step)
        # All at once: a sitting that breaks off before this is as if it had never been.
        self.panels, self.told, self._at = every, told, (epoch, number)
        self._scanned = came.ends
        self.skipped += came.skipped
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

    def _starts(self, found: list[Found]) -> dict[int, int]:
        """From where corrections are looked for: the first place of the youngest panel, and where the last
        sitting ended."""
        starts = dict[int, int]()
        for its in found[:1]:
            rows = its.panel.rows_N
            for p in np.unique(rows["partition"]):
                starts[int(p)] = int(rows["offset"][rows["partition"] == p].min())
        for partition, offset in self._scanned.items():
            starts[partition] = min(offset, starts.get(partition, offset))
        return starts

    def _scored(
        self, found: list[Found], places: dict[str, int], model: _Model, step: Step
    ) -> tuple[list[Panel], dict[str, Kept]]:
        """The panels, of which a fresh one has been scored, and what is left of those that are told of."""
        every = [its.panel for its in found]
        fresh = [0] if every and every[0].step == step.step else []
        which = sorted({*fresh, *places.values()})
        scores = model.probabilities([found[n].examples for n in which], self._ended)
        scored = dict(zip(which, scores, strict=True))
        every[:1] = [every[0].learned(scored[0])] if fresh else every[:1]
        said = {name: panels.kept(every[n], scored[n], step.time_ms) for name, n in places.items()}
        return every, {name: its for name, its in said.items() if its is not None}

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
    """Turns a ``PanelWatch`` beside a part's loop, and puts into the part's heartbeat what it says. After an
    error it begins anew, from the file that it keeps."""

    def __init__(self, config: Config, beat: Heartbeat, pause_s: float = _PAUSE_S) -> None:
        self._config, self._beat, self._pause_s = config, beat, pause_s
        self._watch: PanelWatch | None = None
        self._clock: int | None = None  # of what this thread takes of a processor
        self._thread_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=PART, daemon=True)
        self._thread.start()

    def thread_s(self) -> float:
        """What the thread has taken of a processor by now; another thread asks."""
        with suppress(OSError):  # it has ended
            if self._clock is not None:
                self._thread_s = time.clock_gettime(self._clock)
        return self._thread_s

    def close(self) -> None:
        """Waits for less than the supervisor gives a part to end in (runtime/supervision/supervisor.py)."""
        self._over.set()
        self._thread.join(_END_S)

    def _run(self) -> None:
        if hasattr(time, "pthread_getcpuclockid"):  # not on macOS
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        torch.set_num_threads(1)  # of this thread, too
        self._beat.add("panel_failures", 0)
        while not self._over.is_set():
            try:
                self._turns()
            except Ended:
                return
            except LogUnavailable as error:
                _LOG.warning("log unavailable, trying again: %s", error)
            except Exception:  # what learns and is judged beside it goes on
                _LOG.exception("panels couldn't be scored: they begin anew")
                self._beat.only("panel", {})  # what they said last isn't what is so now
                self._beat.add("panel_failures")
            self._over.wait(self._pause())

    def _pause(self) -> float:
        """A sitting that failed counts into the share of the processor as any other."""
        took_s = self._watch.sitting_s if self._watch else 0.0
        return max(self._pause_s, took_s / self._config.drift.panel_share)

    def _turns(self) -> None:
        """Until it is to end. Raises LogUnavailable, Ended, and what nobody thought of."""
        spent_s = self._watch.cpu_s if self._watch else 0.0
        log = open_log(self._config)
        try:
            features = feature_set(self._config)
            watch = PanelWatch(log, self._config, features, ended=self._over.is_set)
            watch.cpu_s, self._watch = spent_s, watch
            tell(watch, self._beat)
            while not self._over.wait(_LOOK_EVERY_S):
                if watch.turn():
                    _LOG.info("panels scored", extra={"step": watch.step, **_ages(watch)})
                tell(watch, self._beat)
        finally:
            log.close()


def tell(watch: PanelWatch, beat: Heartbeat) -> None:
    """What is not told any more leaves the heartbeat."""
    said = {"panels": float(len(watch.panels)), "panel_cpu_s": watch.cpu_s}
    said["panel_skipped"] = float(watch.skipped)
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
