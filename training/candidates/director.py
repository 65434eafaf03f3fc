"""The director: the one part that moves the live pointer, and that keeps the snapshots for rollbacks.

It also appends revisions of experiments and drift alarms, and swaps in epochs that unlearned users. A line
can go back no further than to its oldest kept snapshot, so the log keeps the examples from that on.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import experiments
from experiments.promotion.kinds.arm import arm_line_records, experiments_without_line
from experiments.promotion.line_guard import BEHIND, NO_POSITIVE
from experiments.statistics.readout import BROKEN, HARM
from parameter_server.storage import snapshots
from recsys.clock import is_due, timer_of
from recsys.config.system_config import Config
from recsys.events.control_records import Alarm, Control, Decision, Erasure, Live
from recsys.events.records import CONTROL, EXAMPLES, STEPS, Step, unpack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log, LogLost, LogUnavailable, newest_first
from recsys.process.clock_file import clock_of
from recsys.process.fold import PartFold, follow
from recsys.process.log_consumer import UNREADABLE, Consumer, decoded
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from training.candidates import rollback_impact
from training.candidates.line_watch import LineWatch
from training.candidates.promoter import Promoter
from training.candidates.space_keeper import SpaceKeeper
from training.deletion.live_unlearning import UnlearningDirector
from training.drift.watch import DriftWatch
from training.lines.control import append_control, append_live_record, live_epochs
from training.lines.line import MAIN
from training.outcomes.experiment_control import ExperimentController
from training.steps.lineage import starts_after
from training.steps.step_reader import StepReader

CONFIGS: Final = Path(experiments.__file__).parent / "configs"
_KEEP_EVERY_MS: Final = 5_000
_LIST_AFTER_MS: Final = 10_000  # replicas have switched by then
_AHEAD: Final = 256  # steps per read when searching for the end of a partition
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
        self._state = Path(config.state)
        self._folder = self._state / "snapshots"
        self._open = open_again
        self._lister: threading.Thread | None = None
        self._to_list: list[tuple[int, str, int]] = []  # due time, line/epoch, start of its answers
        self._forgotten: set[str] = set()  # users, whom lists of impacts must not name
        self._kept = config.step.snapshots_kept
        self._space = SpaceKeeper(log, self._state, clock)
        self._control = Consumer(log, CONTROL, [0])
        self._due_ms = 0
        self.live: Live | None = None
        self._searched = 0  # offset of steps before which ends are held already
        self.removed = 0  # snapshots
        self.oldest: int | None = None  # step of the oldest kept snapshot of the live line

    def report(self, beat: Heartbeat, moved: int) -> None:
        """Reports counts since this director began, and experiments that ended by themselves."""
        beat.gauge("alarms", self.drift.alarms)
        beat.gauge("experiments_broken", self.experiments.stopped_for(BROKEN))
        beat.gauge("experiments_harmed", self.experiments.stopped_for(HARM))
        beat.gauge("snapshots_removed", self.removed)
        for kind in (BEHIND, NO_POSITIVE):
            beat.gauge(f"line_holds.{kind}", self.line_watch.holds[kind])
        beat.gauge("scores_unread", self.promoter.unread)
        if self.oldest is not None:
            beat.gauge("oldest_snapshot", self.oldest)

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
            self._keep()
        self._list_impact()
        return moved

    def _fold(self) -> int:
        before, forgotten = self._control.offsets[0], len(self._forgotten)
        for record in self._control.drain():
            try:
                control: Any = unpack(record.value, Control)  # type: ignore[arg-type]
            except UNREADABLE as error:
                _LOG.error("control record %d can't be read: %s", record.offset, error)
                continue
            self._note_end(control)
            if isinstance(control, Erasure) and control.user_id != "":
                self._forgotten.add(str(control.user_id))
            self.promoter.fold(control)
            self.line_watch.fold(control)
            self.experiments.fold(record.offset, control)
            if isinstance(control, Live):
                self.live = control
        if len(self._forgotten) > forgotten:
            rollback_impact.forget(self._state, self._forgotten)
        return self._control.offsets[0] - before

    def _note_end(self, control: Control) -> None:
        """Schedules the impact list of a line that no longer answers."""
        states, due_ms = self.promoter.lifecycle.candidates, self._timer_ms() + _LIST_AFTER_MS
        if isinstance(control, Decision) and control.verdict == "rollback":
            state = states.get(control.line)
            if state is not None and state.is_candidate:  # it answered requests
                self._to_list.append((due_ms, f"{control.line}/0", state.candidate.time_ms))
        elif isinstance(control, Live) and self.live and control.parent_epoch != self.live.epoch:
            left = f"{self.live.line}/{self.live.epoch}"
            self._to_list.append((due_ms, left, self.live.time_ms))
            state = states.get(self.live.candidate)
            if state is not None:  # its answers as a canary are excluded, too
                self._to_list.append((due_ms, f"{state.line}/0", state.candidate.time_ms))

    def _list_impact(self) -> None:
        """Lists the impact of an ended line, once its last answers are on the log; each once. That takes as
        long as the line had answered, so it runs in a thread if the log can be opened again."""
        if not self._to_list or not is_due(self._timer_ms(), self._to_list[0][0], _LIST_AFTER_MS):
            return
        if self._lister is not None and self._lister.is_alive():
            return
        _, served_by, since_ms = self._to_list.pop(0)
        file = rollback_impact.impact_file(self._state, served_by)
        if rollback_impact.read_impact(file) is not None:
            return
        lives = list(self.promoter.lifecycle.lives)
        log = self._open or (lambda: self._log)
        work = partial(_write_impact, log, self._state, lives, self._forgotten)
        if self._open is None:
            work(served_by, since_ms)
            return
        self._lister = threading.Thread(target=work, args=(served_by, since_ms), daemon=True)
        self._lister.start()

    def _publish_experiments(self) -> int:
        """Appends new revisions of the experiments: by files, requests, or readouts."""
        moved, self.experiments.lost = (
            0,
            experiments_without_line(self.promoter.lifecycle.candidates.values()),
        )
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

    def _keep(self) -> None:
        """Removes old snapshots, then holds the log from the oldest one left."""
        assert self.live is not None
        self.unlearning.tidy(self.promoter.lifecycle)
        line, epoch = self.live.line, self.live.epoch
        most = self._space.snapshots_kept(self._kept)
        self.removed += len(snapshots.prune(self._folder, line, most, epoch))
        steps = snapshots.complete_steps(self._folder, line, epoch)
        self._space.turn(line, epoch, steps)
        if not steps or steps[0] == self.oldest:
            return
        reader = StepReader(self._log, line, epoch)
        partitions = range(self._log.partitions(EXAMPLES))
        place = reader.place(steps[0] + 1)
        stop = self._log.end(STEPS, 0) if place is None else place
        starts = starts_after(reader, steps[0])
        quiet = {p for p in partitions if p not in starts and self._log.end(EXAMPLES, p) > 0}
        if quiet:
            lived = {e for e in live_epochs(self._log, line) if e < epoch} | {epoch}
            among = range(self._searched, stop)
            starts |= ends_before(self._log, line, lived, steps[0], among, quiet)
        for partition in partitions:
            self._hold(f"snapshots/{line}", partition, starts.get(partition))
        self.oldest, self._searched = steps[0], stop

    def _hold(self, name: str, partition: int, offset: int | None) -> None:
        if offset is None:
            if name in self._log.holds(EXAMPLES, partition):
                return
            offset = self._log.begin(EXAMPLES, partition)
        try:
            self._log.hold(name, EXAMPLES, partition, offset)
        except LogLost as error:  # too late: the line can't go back to that snapshot
            _LOG.error("%s: %s", name, error)


def _search_fields(record: Control) -> dict[str, Any]:
    """Fields by which logs can be searched."""
    names = ("line", "epoch", "verdict", "to", "final")
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


def ends_before(
    log: Log, line: str, epochs: Set[int], step: int, among: range, partitions: Set[int]
) -> dict[int, int]:
    """End offsets in ``partitions`` of ``examples`` of the steps up to ``step``, among the step records at
    the offsets ``among``, read backwards. ``epochs``: with those it descends from. A partition that they
    don't touch keeps its previous hold: too much is kept, never too little."""
    ends = dict[int, int]()
    records = newest_first(log, STEPS, 0, among.start, among.stop, _AHEAD)
    for _, other in decoded(records, Step):
        if len(ends) >= len(partitions):
            break
        if other.line == line and other.epoch in epochs and other.step <= step:
            for part in other.ranges:
                if part.partition in partitions:
                    ends.setdefault(part.partition, part.stop)
    return ends


def _write_impact(
    open_: Callable[[], Log], state: Path, lives: Sequence[Live], forgotten: Set[str],
    served_by: str, since_ms: int,
) -> None:  # fmt: skip
    log = open_()
    try:
        impact = rollback_impact.find_impact(log, served_by, since_ms, lives)
        rollback_impact.write_impact(state, impact)
        rollback_impact.forget(state, forgotten)
    except (LogLost, LogUnavailable, OSError) as error:
        _LOG.error("the requests that %s answered can't be listed: %s", served_by, error)


def experiment_texts(folder: Path = CONFIGS) -> dict[str, str]:
    """YAML texts of the experiments that ship with the code, by file name."""
    return {file.name: file.read_text("utf-8") for file in sorted(folder.glob("*.yaml"))}


def run(config: Config, stop: Stop) -> None:
    """Runs the part until asked to stop."""
    with closing(open_log(config)) as log:
        director = Director(log, config, clock_of(config), experiment_texts(), lambda: open_log(config))
        follow(director, stop, _LOG)
