"""Experiments as the control room shows them: each a fold that reads on, for a moment, each half minute.

Days and segments are left to `recsys experiment report`: they take most of the time.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from experiments.definition import Experiment
from experiments.readout import Readout
from experiments.revision import each_of
from recsys.cli.experiment_story import began_ms, notes_of, row_of
from recsys.config import Config
from recsys.features import FeatureSet
from recsys.log import Log, LogLost, LogUnavailable
from recsys.records import Experiments
from recsys.schema import Schema
from training.measuring.trial_fold import TrialFold

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
        self._folds: dict[str, tuple[Experiment, TrialFold]] = {}
        self._due_s = 0.0
        self._thread: threading.Thread | None = None
        self._told: list[dict[str, Any]] = []

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
        """Reads on, and reads off every experiment."""
        labels, said = labels_of(self._config), revisions[-1]
        found, unread = each_of(said, self._config.policy, labels)
        until_s = time.thread_time() + CPU_S
        told = list[dict[str, Any]]()
        for its in found[:_MOST]:
            if its.interleaves:
                why = f"lists of its arms are drawn in turns: `recsys experiment report {its.name}`"
                told.append({"name": its.name, "unread": why})
                continue
            fold = self._fold_of(its, revisions, labels)
            behind = True
            while behind and time.thread_time() < until_s:
                behind = fold.read(polls=1) > 0
            told.append(
                row_of(its, said)
                | {"behind": behind, "until_ms": fold.until_ms, "report": _report(fold)}
            )
        return told + [{"name": name, "unread": why} for name, why in sorted(unread.items())]

    def _work(self, revisions: list[Experiments]) -> None:
        try:
            self._told = self.look(revisions)
        except (LogLost, LogUnavailable, ValueError, OSError):
            _LOG.exception("experiments can't be read")
            self._folds.clear()  # retention may have passed where they were: from what is left

    def _fold_of(
        self, its: Experiment, revisions: list[Experiments], labels: tuple[str, ...]
    ) -> TrialFold:
        known = self._folds.get(its.name)
        if known is None or known[0] != its:
            if self._log is None:
                self._log = self._open()
            began = began_ms(revisions, its.name)
            fold = TrialFold(self._log, self._config, labels, its, began, most_users=_USERS)
            known = self._folds[its.name] = its, fold
        return known[1]


def _report(fold: TrialFold) -> dict[str, Any]:
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
        "low": its.low, "high": its.high, "known": its.known, "tolerated": line.tolerated,
        "higher_is_better": line.higher_is_better,
    }  # fmt: skip


def labels_of(config: Config) -> tuple[str, ...]:
    """Of the state folder's feature set; those of the feed where none was decided. Read here, since the
    module that every process takes it from brings the model, and 400 MB, along."""
    file = Path(config.state) / "feature_set.json"
    if file.exists():
        return msgspec.json.decode(file.read_bytes(), type=FeatureSet).schema.labels
    return Schema().labels
