"""The director: the one part that moves the live pointer, and that keeps the snapshots for rollbacks.

It also appends revisions of experiments and drift alarms, and swaps in epochs that unlearned users. A line
can go back no further than to its oldest kept snapshot, so the log keeps the examples from that on.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import experiments
from experiments.promotion.kinds.arm import arm_line_records, experiments_without_line
from experiments.promotion.line_guard import BEHIND, NO_POSITIVE
from experiments.statistics.readout import BROKEN, HARM
from recsys.clock import is_due, timer_of
from recsys.config.system_config import Config
from recsys.events.control_records import Alarm, Control, Live
from recsys.events.records import CONTROL, unpack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from recsys.process.clock_file import clock_of
from recsys.process.fold import PartFold, follow
from recsys.process.log_consumer import UNREADABLE, Consumer
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from training.candidates.line_watch import LineWatch
from training.candidates.promoter import Promoter
from training.candidates.rollback_impact import ImpactLister
from training.candidates.space_keeper import SnapshotKeeper
from training.deletion.live_unlearning import UnlearningDirector
from training.drift.watch import DriftWatch
from training.lines.control import append_control, append_live_record
from training.lines.line import MAIN
from training.outcomes.experiment_control import ExperimentController

CONFIGS: Final = Path(experiments.__file__).parent / "configs"
_KEEP_EVERY_MS: Final = 5_000
_LOG: Final = logging.getLogger(__name__)


class Director(PartFold):
    """Decides on the lines of one system. ``clock``: milliseconds."""

    def __init__(
        self, log: Log, config: Config, clock: Callable[[], int],
        experiments: Mapping[str, str] | None = None, open_again: Callable[[], Log] | None = None,
    ) -> None:  # fmt: skip
        """``experiments``: YAML texts by file name, refused before anything is appended if unreadable; None:
        keep the experiments on the log. ``open_again``: opens the same log again, for slow work."""
        self._log, self._clock, self._timer_ms = log, clock, timer_of(clock)
        features = feature_set(config)
        self.experiments = ExperimentController(log, config, features.schema.labels, experiments)
        self.promoter = Promoter(log, config, features, clock)
        self.unlearning = UnlearningDirector(log, config, clock)
        self.line_watch = LineWatch(log, config, features, clock)
        self.drift = DriftWatch(log, config, features)
        self._unsent: list[Alarm] = []  # alarms that aren't appended yet
        self._impacts = ImpactLister(log, Path(config.state), self._timer_ms, open_again)
        self.snapshots = SnapshotKeeper(log, config, clock)
        self._control = Consumer(log, CONTROL, [0])
        self._due_ms = 0
        self.live: Live | None = None

    def report(self, beat: Heartbeat, moved: int) -> None:
        """Reports counts since this director began, and experiments that ended by themselves."""
        beat.gauge("alarms", self.drift.alarms)
        beat.gauge("experiments_broken", self.experiments.stopped_for(BROKEN))
        beat.gauge("experiments_harmed", self.experiments.stopped_for(HARM))
        beat.gauge("snapshots_removed", self.snapshots.removed)
        for kind in (BEHIND, NO_POSITIVE):
            beat.gauge(f"line_holds.{kind}", self.line_watch.holds[kind])
        beat.gauge("scores_unread", self.promoter.unread)
        if self.snapshots.oldest is not None:
            beat.gauge("oldest_snapshot", self.snapshots.oldest)

    def wait(self) -> None:
        self._log.wait(CONTROL, 0.5)

    def _restore(self) -> None:
        """Nothing: all that it writes is due until it is read."""

    def _turn(self) -> int:
        """Folds ``control``, and does what is due; returns the number of records read and written."""
        moved = self._fold()
        if self.live is None:
            append_live_record(self._log, MAIN, 0, "the first line", self._clock())
            moved += 1 + self._fold()
        moved += self._publish_experiments() + self._promote() + self._unlearn()
        moved += self._watch_drift()
        if is_due(self._timer_ms(), self._due_ms, _KEEP_EVERY_MS):
            self._due_ms = self._timer_ms() + _KEEP_EVERY_MS
            self.unlearning.tidy(self.promoter.lifecycle)
            assert self.live is not None, "appended above"
            self.snapshots.turn(self.live.line, self.live.epoch)
        self._impacts.turn(self.promoter.lifecycle.lives)
        return moved

    def _fold(self) -> int:
        before = self._control.offsets[0]
        for record in self._control.drain():
            try:
                control: Any = unpack(record.value, Control)  # type: ignore[arg-type]
            except UNREADABLE as error:
                _LOG.error("control record %d can't be read: %s", record.offset, error)
                continue
            self._impacts.take(control, self.promoter.lifecycle)
            self.promoter.fold(control)
            self.line_watch.fold(control)
            self.experiments.fold(record.offset, control)
            if isinstance(control, Live):
                self.live = control
        self._impacts.forget()
        return self._control.offsets[0] - before

    def _publish_experiments(self) -> int:
        """Appends new revisions of the experiments: by files, requests, or readouts."""
        moved = 0
        self.experiments.lost = experiments_without_line(self.promoter.lifecycle.candidates.values())
        while (revision := self.experiments.turn(self._clock(), self._timer_ms())) is not None:
            append_control(self._log, revision)
            _LOG.info("experiments, revision %d: %s", revision.revision, revision.states)
            moved += 1 + self._fold()
        return moved

    def _promote(self) -> int:
        """Appends decisions on lines before any part acts on them."""
        lifecycle, refused = self.promoter.lifecycle, self.promoter.refused
        decided = [
            *self.promoter.turn(),
            *arm_line_records(
                self.experiments.running,
                lifecycle.candidates,
                None if self.live is None else self.live.size,
                refused,
                self._clock(),
            ),
        ]
        decided += [] if decided else self.line_watch.turn(self.promoter)
        for record in decided:
            append_control(self._log, record)
            _LOG.info("decided: %s", record, extra=_search_fields(record))
        return len(decided) and len(decided) + self._fold()

    def _unlearn(self) -> int:
        """Advances a request to unlearn users."""
        promoter = self.promoter
        decided = self.unlearning.turn(promoter.lifecycle, promoter.pointer.next_epoch)
        return decided and decided + self._fold()

    def _watch_drift(self) -> int:
        """Appends drift alarms."""
        self._unsent += self.drift.turn(self._timer_ms())
        records = list(self._unsent)
        if records:
            append_control(self._log, *records)
            self._unsent.clear()
        for record in records:
            _LOG.info("drift: %s", record)
        return len(records) and len(records) + self._fold()


def _search_fields(record: Control) -> dict[str, Any]:
    """Fields by which logs can be searched."""
    names = ("line", "epoch", "verdict", "to", "final")
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


def experiment_texts(folder: Path = CONFIGS) -> dict[str, str]:
    """YAML texts of the experiments that ship with the code, by file name."""
    return {file.name: file.read_text("utf-8") for file in sorted(folder.glob("*.yaml"))}


@contextmanager
def opened(config: Config) -> Iterator[Director]:
    """The part's fold."""
    with closing(open_log(config)) as log:
        yield Director(log, config, clock_of(config), experiment_texts(), lambda: open_log(config))


def run(config: Config, stop: Stop) -> None:
    """Runs the part until asked to stop."""
    with opened(config) as director:
        follow(director, stop, _LOG)
