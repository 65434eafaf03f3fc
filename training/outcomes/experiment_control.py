"""Decides the next revision of the experiments."""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from experiments.assignment.definition import Experiment, read_experiments
from experiments.statistics.readout import BROKEN, HARM, Readout
from experiments.statistics.revision import (
    RUNNING,
    STOPPED,
    apply_request,
    move,
    parse_each,
    stop,
    with_files,
)
from recsys.clock import is_due
from recsys.config.system_config import Config
from recsys.events.control_records import (
    TOO_LATE,
    Control,
    ExperimentRequest,
    Experiments,
    ExperimentState,
    is_too_late,
)
from recsys.log.protocol import Log
from training.outcomes.experiment_fold import ExperimentFold

READOUT_EVERY_MS: Final = 10_000
_MOST_USERS: Final = 100_000
_POLLS: Final = 4  # per turn: the director has other work
_LOG: Final = logging.getLogger(__name__)


class ExperimentController:
    """Fold every control record, then append what ``turn`` returns. ``files``: YAML texts by file name; None:
    keep the experiments on the log. Raises YamlError for unreadable files before anything is appended."""

    def __init__(
        self, log: Log, config: Config, labels: Sequence[str], files: Mapping[str, str] | None
    ) -> None:
        self._log, self._config, self._labels = log, config, tuple(labels)
        self._files = None if files is None else dict(files)
        read_experiments(self._files or {}, config.policy, labels)
        self.newest = Experiments(revision=0)
        self._requests: dict[int, ExperimentRequest] = {}  # by their offset on control
        self._folds: dict[str, ExperimentFold] = {}
        # Parsing YAML is slow: once for each revision.
        self._checked: Experiments | None = None  # the revision that the files were checked against
        self._parsed: tuple[Experiments, list[Experiment], dict[str, str]] | None = None
        self._due_ms = 0
        # Reasons by experiments that can't go on; set by the caller.
        self.lost: Mapping[str, str] = {}

    def fold(self, offset: int, record: Control) -> None:
        """Folds the record at an offset of ``control``."""
        if isinstance(record, ExperimentRequest):
            self._requests[offset] = record
        elif isinstance(record, Experiments):
            self.newest = record
            self._requests.pop(record.answers, None)

    def turn(self, now_ms: int, timer_ms: int | None = None) -> Experiments | None:
        """Returns the next revision, if any; fold it, then call again. ``timer_ms``: machine time, unless it
        is the same."""
        timer_ms = now_ms if timer_ms is None else timer_ms
        return (
            self._check_files(now_ms)
            or self._grant(now_ms, timer_ms)
            or self._check_running(now_ms, timer_ms)
        )

    @property
    def running(self) -> list[Experiment]:
        """Experiments that assign arms now and have a recorded state."""
        states = self.newest.states
        return [
            experiment
            for experiment in self._experiments()[0]
            if experiment.name in states and states[experiment.name].state == RUNNING
        ]

    def stopped_for(self, verdict: str) -> int:
        """Number of experiments that ended by themselves with a verdict, ``broken`` or ``harm``."""
        stopped = [current for current in self.newest.states.values() if current.state == STOPPED]
        return sum(current.why.startswith(f"{verdict}: ") for current in stopped)

    def _check_files(self, now_ms: int) -> Experiments | None:
        if self._files is None or self._checked is self.newest:
            return None
        self._checked = current = self.newest
        try:
            new = with_files(current, self._files, self._config, self._labels, now_ms)
        except ValueError as error:
            _LOG.error("experiment files conflict with the running experiments: %s", error)
            return None
        return None if new == current else self._revision(new, now_ms)

    def _grant(self, now_ms: int, timer_ms: int) -> Experiments | None:
        for offset, request in self._requests.items():
            if is_too_late(request, timer_ms):
                return self._revision(self.newest, now_ms, offset, TOO_LATE)
            try:
                new = apply_request(self.newest, request, self._config, self._labels, now_ms)
            except ValueError as error:
                return self._revision(self.newest, now_ms, offset, str(error))
            return self._revision(new, now_ms, offset)
        return None

    def _check_running(self, now_ms: int, timer_ms: int) -> Experiments | None:
        states = self.newest.states
        if not any(current.state != STOPPED for current in states.values()):
            self._folds.clear()
            return None
        due = is_due(timer_ms, self._due_ms, READOUT_EVERY_MS)
        if due:
            self._due_ms = timer_ms + READOUT_EVERY_MS
        changed = dict(states)
        readable, unreadable = self._experiments()
        for experiment in readable:
            name = experiment.name
            if name in states:
                changed[name] = self._moved(experiment, states[name], now_ms, due)
        for name, why in unreadable.items():
            if name in states:
                changed[name] = stop(states[name], now_ms, f"{BROKEN}: can't be read: {why}")
        if changed == states:
            return None
        for name, current in changed.items():
            if current.state != RUNNING:
                self._folds.pop(name, None)
            if current is not states[name] and current.why.startswith((f"{BROKEN}: ", f"{HARM}: ")):
                _LOG.warning("experiment %s is stopped: %s", name, current.why)
        return self._revision(replace(self.newest, states=changed), now_ms)

    def _moved(
        self, experiment: Experiment, current: ExperimentState, now_ms: int, due: bool
    ) -> ExperimentState:
        """The next state of an experiment. One that can't be judged stops; all others go on."""
        if experiment.name in self.lost and current.state == RUNNING:
            return stop(current, now_ms, f"{BROKEN}: {self.lost[experiment.name]}")
        try:
            # An interleaving has no ramp and no guardrails, so it needs no readout.
            running = current.state == RUNNING and not experiment.interleaves
            seen = self._readout(experiment, current.started_ms, due) if running else None
            return move(experiment, current, now_ms, seen)
        except (ValueError, ArithmeticError) as error:
            _LOG.exception("experiment %s can't be judged", experiment.name)
            return stop(current, now_ms, f"{BROKEN}: can't be judged: {error}")

    def _readout(self, experiment: Experiment, started_ms: int, due: bool) -> Readout | None:
        """Reads on in any case; returns a readout when one is due."""
        fold = self._folds.get(experiment.name)
        if fold is None:
            fold = self._folds[experiment.name] = ExperimentFold(
                self._log, self._config, self._labels, experiment, started_ms, _MOST_USERS
            )
        fold.read(_POLLS)
        return fold.readout(parts=False) if due else None

    def _experiments(self) -> tuple[list[Experiment], dict[str, str]]:
        """Experiments of the newest revision that aren't stopped, and by name why others can't be read."""
        if self._parsed is None or self._parsed[0] is not self.newest:
            parsed = parse_each(self.newest, self._config.policy, self._labels, stopped=False)
            self._parsed = (self.newest, *parsed)
        return self._parsed[1:]

    def _revision(self, state: Experiments, now_ms: int, answers: int = -1, refused: str = "") -> Experiments:
        number = self.newest.revision + 1
        return replace(state, revision=number, time_ms=now_ms, answers=answers, refused=refused)
