"""Experiments as the control room shows them: each a fold that reads on, for a moment, each half minute.

Days and segments are left to `recsys experiment report`: they take most of the time.
"""

import logging
import threading
import time
from collections.abc import Callable, Set
from typing import Any, Final

import msgspec

from experiments.assignment.definition import Experiment
from experiments.statistics.ramp import STOPPED
from experiments.statistics.readout import Readout
from experiments.statistics.revision import parse_each
from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Experiments, ExperimentState
from recsys.features.feature_set_file import labels_of
from recsys.log.protocol import Log
from runtime.reports.experiment_summary import began_ms, notes_of, row_of
from training.outcomes.experiment_fold import ExperimentFold

EVERY_S: Final = 30.0
CPU_S: Final = 0.15  # of the processor, for all experiments at one look
_MOST: Final = 12  # experiments
_USERS: Final = 20_000  # of whom outcomes are kept: a page, not a verdict
_LOG: Final = logging.getLogger(__name__)


class Trials:
    """``panel`` is asked each second; once in half a minute that starts a look, in a thread."""

    def __init__(self, config: Config, open_: Callable[[], Log]) -> None:
        self._config, self._open = config, open_
        self._log: Log | None = None
        self._folds: dict[str, tuple[Experiment, ExperimentFold]] = {}
        self._rows: dict[str, dict[str, Any]] = {}  # what was read off, by name; ``read_ms``: when
        self._takes_s: dict[str, float] = {}  # to read it off, the last time
        self._turns: dict[str, int] = {}  # the look that was the last to come to it
        self._looks = 0
        self._due_s = 0.0
        self._thread: threading.Thread | None = None
        self._told: list[dict[str, Any]] = []
        self.left_out = 0

    def panel(self, revisions: list[Experiments]) -> list[dict[str, Any]]:
        """What the newest look found."""
        resting = self._thread is None or not self._thread.is_alive()
        if revisions and resting and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + EVERY_S
            work = threading.Thread(target=self._work, args=(revisions,), daemon=True)
            self._thread = work
            work.start()
        return self._told

    def look(self, revisions: list[Experiments]) -> list[dict[str, Any]]:
        """Reads on, and reads off. Who runs comes first, and of those the newest; who is stopped isn't read,
        and said as it was read last."""
        labels, said = labels_of(self._config), revisions[-1]
        found, unread = parse_each(said, self._config.policy, labels, stopped=False)
        found.sort(key=lambda its: (-began_ms(revisions, its.name), its.name))
        over = {name: its for name, its in said.stands.items() if its.state == STOPPED}
        self._read([its for its in found[:_MOST] if not its.interleaves], revisions, labels)
        rows = [self._row(its, said) for its in found]
        rows += [{"name": name, "unread": why} for name, why in sorted(unread.items())]
        rows += [
            self._ended(name, stand)
            for name, stand in sorted(over.items(), key=lambda its: -its[1].since_ms)
        ]
        self.left_out, rows = max(0, len(rows) - _MOST), rows[:_MOST]
        self._keep({row["name"] for row in rows}, over.keys())
        return rows

    def _work(self, revisions: list[Experiments]) -> None:
        try:
            self._told = self.look(revisions)
        except (
            Exception
        ):  # whatever it is, the next look tries again, and rows say how old they are
            _LOG.exception("experiments can't be read")
            self._folds.clear()

    def _read(
        self, shown: list[Experiment], revisions: list[Experiments], labels: tuple[str, ...]
    ) -> None:
        """The one that had no turn for the longest time first; each has its share of what is left."""
        self._looks += 1
        until_s = time.thread_time() + CPU_S
        waiting = sorted(shown, key=lambda its: self._turns.get(its.name, 0))
        for number, its in enumerate(waiting):
            left_s = until_s - time.thread_time()
            if number and left_s <= 0:
                return
            self._turns[its.name] = self._looks
            try:
                self._read_one(its, revisions, labels, left_s / (len(waiting) - number))
            except Exception as error:
                _LOG.exception("experiment %s can't be read", its.name)
                self._folds.pop(its.name, None)  # retention may have passed it: from what is left
                why = f"can't be read now: {type(error).__name__}"
                self._rows[its.name] = self._rows.get(its.name, {}) | {"failed": why}

    def _read_one(
        self, its: Experiment, revisions: list[Experiments], labels: tuple[str, ...], share_s: float
    ) -> None:
        """At least one poll, where there is any time, and whoever had something new is read off."""
        until_s = time.thread_time() + share_s - self._takes_s.get(its.name, 0.0)
        fold, row = self._fold_of(its, revisions, labels), self._rows.get(its.name, {})
        moved, behind = "report" not in row or "failed" in row, True
        if share_s > 0:
            moved |= (behind := fold.read(polls=1) > 0)
        while behind and time.thread_time() < until_s:
            behind = fold.read(polls=1) > 0
        if moved:
            began_s = time.thread_time()
            row = {"report": _report(fold)}
            self._takes_s[its.name] = time.thread_time() - began_s
        now = {"behind": behind, "until_ms": fold.until_ms, "read_ms": wall_ms()}
        self._rows[its.name] = row | now

    def _row(self, its: Experiment, said: Experiments) -> dict[str, Any]:
        if its.interleaves:
            why = f"lists of its arms are drawn in turns: `recsys experiment report {its.name}`"
            return {"name": its.name, "unread": why}
        row = self._rows.get(its.name, {})
        if "report" not in row:
            return {"name": its.name, "unread": row.get("failed", "not read yet")}
        return row_of(its, said) | row

    def _ended(self, name: str, stand: ExperimentState) -> dict[str, Any]:
        row = {"name": name, "state": stand.state, "why": stand.why}
        if "report" in self._rows.get(name, {}):
            return {"hypothesis": ""} | self._rows[name] | row | {"behind": False}
        return row | {"unread": f"stopped: {stand.why}. `recsys experiment report {name}`"}

    def _keep(self, shown: Set[str], over: Set[str]) -> None:
        self._folds = {n: its for n, its in self._folds.items() if n in shown and n not in over}
        self._rows = {n: row for n, row in self._rows.items() if n in shown}
        self._takes_s = {n: took_s for n, took_s in self._takes_s.items() if n in self._folds}
        self._turns = {n: look for n, look in self._turns.items() if n in shown}

    def _fold_of(
        self, its: Experiment, revisions: list[Experiments], labels: tuple[str, ...]
    ) -> ExperimentFold:
        known = self._folds.get(its.name)
        if known is None or known[0] != its:
            if self._log is None:
                self._log = self._open()
            began = began_ms(revisions, its.name)
            fold = ExperimentFold(self._log, self._config, labels, its, began, most_users=_USERS)
            known = self._folds[its.name] = its, fold
            self._rows.pop(its.name, None)
        return known[1]


def _report(fold: ExperimentFold) -> dict[str, Any]:
    seen = fold.readout(parts=False)
    return {
        "verdict": seen.verdict,
        "why": list(seen.why),
        "arms": [msgspec.to_builtins(arm) for arm in seen.arms],
        "ratio_p": seen.sample_ratio.p,
        "alarm": seen.sample_ratio.alarm,
        "lines": [_line(seen, number) for number in range(len(seen.lines))],
        "notes": notes_of(fold, seen),
    }


def _line(seen: Readout, number: int) -> dict[str, Any]:
    line = seen.lines[number]
    its = line.effect
    return {
        "metric": line.metric, "role": line.role, "arm": line.arm, "said": line.said, "p": line.p,
        "control": its.control, "treatment": its.treatment, "relative": its.relative,
        "low": its.low, "high": its.high, "known": its.excludes_zero, "tolerated": line.tolerated,
        "higher_is_better": line.higher_is_better,
    }  # fmt: skip
