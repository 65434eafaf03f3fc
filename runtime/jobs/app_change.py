"""Takes up a changed definition in a running system: ``recsys app apply``. Each step is a record on
``control``, so a command that was interrupted goes on where it is given again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from experiments.promotion.epoch_model import config_at, features_at, sets_in_use
from experiments.promotion.kinds.features import newest_change, proposal
from recsys.app.app_file import APP_FILE, read_app, text_of
from recsys.app.change import read_change
from recsys.app.set_loops import SetsInUse
from recsys.config.part_configs import ONE_WORKER, WorkersConfig
from recsys.config.system_config import Config, ModelConfig
from recsys.events.control_records import ALONE, ANSWERS, FOLDED, Definition
from recsys.events.records import EVENTS
from recsys.features.feature_set import FeatureSet, set_text
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from recsys.model.widening import check_widens
from recsys.model.wider_set import covers, united
from recsys.process.clock_file import clock_of
from recsys.process.part_process import read_beat, run_folder, write_atomically
from runtime.parts.restart import request_restart, wait
from training.archive.whole_log import whole_log
from training.lines.control import ControlReader, append_control
from training.lines.line import MAIN

_FOLDS: Final = ("session-fold", "counters")
_NEAR: Final = 500  # records: a fold is about as far as the one that answers
_POLL_S: Final = 0.2


class Parts:
    """The parts of a running system that a change needs."""

    def __init__(self, state: Path, timeout_s: float, workers: WorkersConfig = ONE_WORKER) -> None:
        self._state, self._timeout_s = state, timeout_s
        self._folds = [name for part in _FOLDS for name in workers.names(part)]

    def await_folds(self, sets: int) -> None:
        """Waits until each of so many sets is folded about as far as the one that answers. Raises
        TimeoutError."""
        until_s = time.monotonic() + self._timeout_s
        while not all(self._is_folded(part, sets) for part in self._folds):
            if time.monotonic() > until_s:
                raise TimeoutError(
                    f"the new features aren't computed yet after {self._timeout_s:g} s, and the parts go on: "
                    "give the command again to continue, or the old definition to stop"
                )
            time.sleep(_POLL_S)

    def _is_folded(self, part: str, sets: int) -> bool:
        beat = read_beat(run_folder(self._state) / f"{part}.json")
        gauges = {} if beat is None else beat.gauges
        return gauges.get("sets") == sets and gauges.get("sets_behind", _NEAR) < _NEAR

    def restart(self) -> None:
        """Replaces the replicas without a failed request. Raises ValueError, TimeoutError."""
        wait(self._state, request_restart("serve", self._state), self._timeout_s)


class AppChange:
    """A changed definition for a system. ``note``: shows progress, a line a time."""

    def __init__(
        self, log: Log, config: Config, file: Path, parts: Parts, note: Callable[[str], None]
    ) -> None:
        """Checks the definition; nothing is changed if that raises ValueError."""
        self._log, self._config, self._parts, self._note = log, config, parts, note
        self._clock = clock_of(config)
        self._stored = Path(config.state) / APP_FILE
        if not self._stored.exists():
            raise ValueError(
                f"{config.state} was started without a definition, whose features are fixed: start a system "
                f"with `recsys up --app {file}` in a new state folder"
            )
        self._control, self._first = ControlReader(log), feature_set(config)
        self._control.turn()
        in_use = SetsInUse.of(log, self._first)
        read, *others = sets_in_use(self._control.lifecycle, self._first)
        for features in others:
            read = united(read, features)
        self._text = text_of(file)
        self.app, wanted = read_change(self._text, file, read_app(self._stored), read)
        self.features = self.app.feature_set(read.kind)
        reads, model = self._live()
        if reads != self.features:
            check_widens(model)
        self._before = in_use.answers
        self.logged = self._before if covers(self._before, wanted) else wanted
        if self.logged is not self._before:
            self._check_reach()

    def _check_reach(self) -> None:
        """Raises ValueError if events are gone: counters of new columns begin with the first."""
        log = whole_log(self._log, self._config.state)
        if gone := [p for p in range(log.partitions(EVENTS)) if log.begin(EVENTS, p)]:
            raise ValueError(
                f"events of partitions {gone} are no longer all on the log or in the archive, and new "
                "columns count from the beginning: remove features only, or begin a new state folder"
            )

    def run(self) -> str:
        """Takes the definition up; returns the candidate's name, empty if live reads these features."""
        if self.logged is not self._before:
            self._say(FOLDED)
            self._note("features are computed from the log, beside those that answer")
            self._parts.await_folds(len(SetsInUse.of(self._log, self._first).sets))
            self._say(ANSWERS)
        if len(SetsInUse.of(self._log, self._first).sets) > 1:
            self._note("new replicas log them; an old one leaves once a new one has caught up")
            self._parts.restart()
        self._say(ALONE)
        write_atomically(self._stored, self._text.encode(), sync=True)
        return self._propose()

    def _say(self, stage: str) -> None:
        sets = {"reads": self.features, "logged": self.logged, "before": self._before}
        texts = {name: set_text(features) for name, features in sets.items()}
        app, digest = self._text, self.app.digest
        change = Definition(digest=digest, stage=stage, app=app, time_ms=self._clock(), **texts)
        append_control(self._log, change)

    def _live(self) -> tuple[FeatureSet, ModelConfig]:
        """The features that live reads, and its model."""
        at = self._control.lifecycle, MAIN, self._control.live_epoch(MAIN)
        return features_at(self._first, *at), config_at(self._config, *at).model

    def _propose(self) -> str:
        self._control.turn()
        reads, model = self._live()
        if reads == self.features:
            return ""
        lines = self._control.lifecycle.candidates
        state = newest_change(lines.values(), set_text(self.features))
        if state is not None and state.active:
            return state.line
        candidate = proposal(self.features, model, len(lines), self._clock())
        append_control(self._log, candidate)
        return candidate.line
