"""Experiments for the control room: incremental folds, updated in a thread every half minute.

Effects by day and segment, the most expensive part, are left to `recsys experiment report`.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from typing import Any, Final

import msgspec

from experiments.assignment.definition import Experiment
from experiments.statistics.readout import MetricEffect
from experiments.statistics.revision import STOPPED, parse_each
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Experiments, ExperimentState
from recsys.features.feature_set_file import labels_of
from recsys.log.protocol import Log
from runtime.reports.experiment_summary import notes_of, summary_row
from training.outcomes.experiment_fold import ExperimentFold

EVERY_S: Final = 30.0
CPU_S: Final = 0.15  # CPU time of one update, for all experiments
_MAX_EXPERIMENTS: Final = 12
_MAX_USERS: Final = 20_000  # users with outcomes in memory: enough for a page, not for a verdict
_LOG: Final = logging.getLogger(__name__)


class ExperimentPanel:
    """Rows of experiments. ``panel`` is called each second, and starts an update every half minute."""

    def __init__(self, config: Config, open_: Callable[[], Log]) -> None:
        self._config, self._open = config, open_
        self._log: Log | None = None
        self._folds: dict[str, tuple[Experiment, int, ExperimentFold]] = {}  # with the start
        self._rows: dict[str, dict[str, Any]] = {}  # latest report by name; ``read_ms``: its time
        self._report_s: dict[str, float] = {}  # CPU time of the latest report
        self._read_in: dict[str, int] = {}  # number of the latest update that read the experiment
        self._updates = 0
        self._due_s = 0.0
        self._thread: threading.Thread | None = None
        self._latest: list[dict[str, Any]] = []
        self.left_out = 0

    def panel(self, revision: Experiments, starts: Mapping[str, int]) -> list[dict[str, Any]]:
        """Rows of the latest update. ``starts``: when experiments began, by name."""
        idle = self._thread is None or not self._thread.is_alive()
        if revision.revision and idle and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + EVERY_S
            thread = threading.Thread(target=self._run, args=(revision, starts), daemon=True)
            self._thread = thread
            thread.start()
        return self._latest

    def update(self, revision: Experiments, starts: Mapping[str, int]) -> list[dict[str, Any]]:
        """Reads new records and returns the rows: running experiments first, the newest before older ones.

        Stopped experiments aren't read; they keep their last report.
        """
        labels = labels_of(self._config)
        experiments, unreadable = parse_each(revision, self._config.policy, labels, stopped=False)
        experiments.sort(key=lambda e: (-starts.get(e.name, 0), e.name))
        stopped = {n: current for n, current in revision.states.items() if current.state == STOPPED}
        shown = [e for e in experiments[:_MAX_EXPERIMENTS] if not e.interleaves]
        self._read(shown, starts, labels)
        rows = [self._row(experiment, revision) for experiment in experiments]
        rows += [{"name": name, "unread": why} for name, why in sorted(unreadable.items())]
        newest_first = sorted(stopped.items(), key=lambda pair: -pair[1].since_ms)
        rows += [self._stopped_row(name, current) for name, current in newest_first]
        self.left_out, rows = max(0, len(rows) - _MAX_EXPERIMENTS), rows[:_MAX_EXPERIMENTS]
        self._forget_others({row["name"] for row in rows}, stopped.keys())
        return rows

    def _run(self, revision: Experiments, starts: Mapping[str, int]) -> None:
        try:
            self._latest = self.update(revision, starts)
        except Exception:  # any error: the next update retries, and rows show their age
            _LOG.exception("experiments can't be read")
            self._folds.clear()

    def _read(self, shown: list[Experiment], starts: Mapping[str, int], labels: tuple[str, ...]) -> None:
        """Reads experiments, the least recently read first; each gets an equal share of the time left."""
        self._updates += 1
        until_s = time.thread_time() + CPU_S
        queue = sorted(shown, key=lambda experiment: self._read_in.get(experiment.name, 0))
        for number, experiment in enumerate(queue):
            name, left_s = experiment.name, until_s - time.thread_time()
            if number and left_s <= 0:
                return
            self._read_in[name] = self._updates
            try:
                self._read_one(experiment, starts, labels, left_s / (len(queue) - number))
            except Exception as error:
                _LOG.exception("experiment %s can't be read", name)
                # Retention may have passed it: starts from what is left.
                self._folds.pop(name, None)
                why = f"can't be read now: {type(error).__name__}"
                self._rows[name] = self._rows.get(name, {}) | {"failed": why}

    def _read_one(
        self, experiment: Experiment, starts: Mapping[str, int], labels: tuple[str, ...], share_s: float
    ) -> None:
        """Polls at least once, if there is any time, and renews the report if there was something new."""
        name = experiment.name
        until_s = time.thread_time() + share_s - self._report_s.get(name, 0.0)
        fold, row = self._fold_of(experiment, starts, labels), self._rows.get(name, {})
        outdated, behind = "report" not in row or "failed" in row, True
        if share_s > 0:
            outdated |= (behind := fold.read(polls=1) > 0)
        while behind and time.thread_time() < until_s:
            behind = fold.read(polls=1) > 0
        if outdated:
            began_s = time.thread_time()
            row = {"report": _report(fold)}
            self._report_s[name] = time.thread_time() - began_s
        progress = {"behind": behind, "until_ms": fold.until_ms, "read_ms": machine_ms()}
        self._rows[name] = row | progress

    def _row(self, experiment: Experiment, revision: Experiments) -> dict[str, Any]:
        name = experiment.name
        if experiment.interleaves:
            why = f"its arms share interleaved lists: `recsys experiment report {name}`"
            return {"name": name, "unread": why}
        row = self._rows.get(name, {})
        if "report" not in row:
            return {"name": name, "unread": row.get("failed", "not read yet")}
        return summary_row(experiment, revision) | row

    def _stopped_row(self, name: str, current: ExperimentState) -> dict[str, Any]:
        row = {"name": name, "state": current.state, "why": current.why}
        if "report" in self._rows.get(name, {}):
            return {"hypothesis": ""} | self._rows[name] | row | {"behind": False}
        return row | {"unread": f"stopped: {current.why}. `recsys experiment report {name}`"}

    def _forget_others(self, shown: Set[str], stopped: Set[str]) -> None:
        self._folds = {n: f for n, f in self._folds.items() if n in shown and n not in stopped}
        self._rows = {n: row for n, row in self._rows.items() if n in shown}
        self._report_s = {n: s for n, s in self._report_s.items() if n in self._folds}
        self._read_in = {n: update for n, update in self._read_in.items() if n in shown}

    def _fold_of(
        self, experiment: Experiment, starts: Mapping[str, int], labels: tuple[str, ...]
    ) -> ExperimentFold:
        cached, began_ms = self._folds.get(experiment.name), starts.get(experiment.name, 0)
        if cached is None or cached[:2] != (experiment, began_ms):
            if self._log is None:
                self._log = self._open()
            fold = ExperimentFold(
                self._log, self._config, labels, experiment, began_ms, most_users=_MAX_USERS
            )
            cached = self._folds[experiment.name] = experiment, began_ms, fold
            self._rows.pop(experiment.name, None)
        return cached[2]


def _report(fold: ExperimentFold) -> dict[str, Any]:
    readout = fold.readout(parts=False)
    return {
        "verdict": readout.verdict,
        "arms": [msgspec.to_builtins(arm) for arm in readout.arms],
        "lines": [_line(line) for line in readout.lines],
        "notes": notes_of(fold, readout),
    }


def _line(line: MetricEffect) -> dict[str, Any]:
    effect = line.effect
    return {
        "metric": line.metric, "role": line.role, "arm": line.arm, "finding": line.finding,
        "relative": effect.relative, "low": effect.low, "high": effect.high,
    }  # fmt: skip
