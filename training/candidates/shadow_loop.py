"""The shadow part: lines beside live follow the live line's steps in this process.

It also replays history without users that are unlearned (training/deletion/live_replay.py). A line that
answers users publishes its deltas; one that takes over is written as the first snapshot of the live line's
next epoch. The part holds the log at its slowest line, and resumes from snapshots. Of
several workers, each has the lines whose hash falls on one of its partitions; the first replays.
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from experiments.promotion.epoch_model import config_at, features_at
from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.shard.shard import Shard
from parameter_server.storage import snapshots
from parameter_server.table.kernels import warm
from parameter_server.table.overlay_table import OverlayTable
from recsys.config.system_config import Config, ModelConfig
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, DELTAS, EXAMPLES, SCORES, STEPS, Delta, Scores, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log, LogUnavailable
from recsys.model.model import build_model
from recsys.process.clock_file import clock_of
from recsys.process.fold import PartFold, follow
from recsys.process.log_consumer import hold_available, readable
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.worker_share import WHOLE, Share, leased
from training.candidates.line_start import LineStart, write_line
from training.candidates.retrieval_comparison import (
    CatalogueFollower,
    RetrievalComparison,
    RetrievalResult,
    rank_times_us,
)
from training.candidates.shadow import Shadow
from training.deletion.live_replay import LiveReplay
from training.forgetting.panel_watch import PanelThread
from training.lines.control import ControlReader
from training.lines.line import MAIN, spec_of
from training.steps.lineage import CAUGHT_UP, Lineage, newest_step, starts_after

PART: Final = "shadow"
_COMPARE_EVERY: Final = 8  # steps between two checks for a snapshot of live
_STEPS: Final = 16  # of one candidate in a turn
_KEPT: Final = 2  # snapshots of a candidate
_HOUR_MS: Final = 3_600_000
_LOG: Final = logging.getLogger(__name__)


class _ScoredStep(msgspec.Struct):
    """A record of ``scores`` without its arrays."""

    line: str
    step: int


class ShadowLoop(PartFold):
    """Runs a worker's active candidates. ``clock``: milliseconds; ``spent``: processor seconds of this
    thread."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet,
        clock: Callable[[], int], spent: Callable[[], float] = time.thread_time,
        share: Share = WHOLE,
    ) -> None:  # fmt: skip
        self._log, self._config, self._features, self._clock = log, config, features, clock
        self._spent, self._share, self._partitions = spent, share, log.partitions(EXAMPLES)
        self._folder = Path(config.state) / "snapshots"
        self._starts = LineStart(log, config, features, clock)
        self.shadows: dict[str, Shadow] = {}  # active ones, by line
        self.counts = {"steps": 0, "scored": 0, "refused": 0, "waits": 0}
        self._reported = dict(self.counts)
        self._speeds: dict[object, dict[str, float]] = {}  # by both models
        self.cpu_s = 0.0
        self.behind = 0  # steps that the slowest has still to take
        self._restore()

    def report(self, beat: Heartbeat, moved: int) -> None:
        for name, count in self.counts.items():
            beat.add(name, count - self._reported[name])
        self._reported = dict(self.counts)
        beat.gauge("candidates", len(self.shadows))
        beat.gauge("own_rows", self.own_rows)
        beat.gauge("behind", self.behind)
        beat.gauge("unlearn_behind", self.replay.behind)
        beat.gauge("cpu_s", self.cpu_s)

    def wait(self) -> None:
        self._log.wait(STEPS if self.shadows else CONTROL, 0.5)

    @property
    def own_rows(self) -> int:
        """Number of rows in memory; of rows mapped from a snapshot, the changed ones."""
        tables = [t for shadow in self.shadows.values() for t in shadow.shard.tables.values()]
        return sum(t.changed if isinstance(t, OverlayTable) else len(t) for t in tables)

    @property
    def _lifecycle(self) -> Lifecycle:
        return self._control.lifecycle

    @property
    def _epoch(self) -> int:
        """The live epoch."""
        return self._control.live_epoch(MAIN)

    @property
    def _live_model(self) -> tuple[FeatureSet, ModelConfig]:
        """Features and configuration of live's model."""
        features = features_at(self._features, self._lifecycle, MAIN, self._epoch)
        return features, config_at(self._config, self._lifecycle, MAIN, self._epoch).model

    def _restore(self) -> None:
        self._control = ControlReader(self._log)
        self.shadows.clear()
        self.replay = LiveReplay(self._log, self._config, self._features, self._clock)
        self._comparisons: dict[str, RetrievalComparison] = {}
        self._items: CatalogueFollower | None = None
        self._written: set[tuple[str, int]] = set()
        self._publishing: set[str] = set()
        self._over: set[str] = set()  # ended lines
        self._removed: set[str] = set()  # ended lines without files
        self._control.turn()
        self._clean()
        scores = readable(self._log, SCORES, _ScoredStep)
        self._sent = {scored.line: scored.step for scored in scores}

    def _turn(self) -> int:
        """Folds ``control``, then has each candidate take the available steps."""
        moved, began_s = self._fold(), self._spent()
        active = [state for state in self._lifecycle.active if self._has(state.line)]
        newest = newest_step(self._log, MAIN, self._epoch) if active else 0
        for state in active:
            moved += self._work(state, newest)
        if self._share.first:
            moved += self.replay.turn(self._lifecycle)
        self.cpu_s += self._spent() - began_s
        self.behind = max((newest - shadow.step for shadow in self.shadows.values()), default=0)
        return moved

    def _fold(self) -> int:
        lives = len(self._lifecycle.lives)
        moved = len(self._control.turn())
        if len(self._lifecycle.lives) > lives:
            for shadow in self.shadows.values():
                shadow.follow(self._lifecycle.lives)
        self._clean()
        return moved

    def _clean(self) -> None:
        """Ends lines that are no longer active, including those that ended during downtime. Their snapshots
        stay for as long as the log may have answers of the line, which they explain."""
        states = self._lifecycle.candidates
        own = {line: state for line, state in states.items() if self._has(line)}
        over = {line: state for line, state in own.items() if not state.active}
        for line in sorted(over.keys() - self._over):
            self._drop(line)
        self._over = set(over)
        before_ms = self._clock() - self._config.log.retention_hours * _HOUR_MS
        for line in sorted(over.keys() - self._removed):
            if not over[line].answers or over[line].since_ms < before_ms:
                snapshots.remove(self._folder, line)
                self._removed.add(line)

    def _has(self, line: str) -> bool:
        return self._share.has(partition_of(line, self._partitions))

    def _work(self, state: LineState, newest: int) -> int:
        shadow = self.shadows.get(state.line)
        try:
            if shadow is None:
                if self._sent.get(state.line, 0) < 0 or self._waits(state):  # refused, or too early
                    return 0
                shadow = self._starts.begin(state, self._lifecycle, self._epoch)
                self._save(shadow)
                self.shadows[state.line] = shadow
            self._publish_stage(state, shadow)
            return self._step(shadow, newest)
        except LogUnavailable:
            raise
        except (OSError, MemoryError) as error:  # a full disk, an unavailable folder: it may recover
            _LOG.warning("candidate %s waits: %r", state.line, error)
            self.counts["waits"] += 1
            return 0
        except Exception as error:  # whatever its ranker raises, the other lines go on
            self._refuse(state.line, f"{type(error).__name__}: {error}", error)
            return 1

    def _waits(self, state: LineState) -> bool:
        """Whether a line that branches off live has no snapshot of it to start from yet."""
        branches = state.source(self._epoch) == self._epoch
        if not branches or snapshots.complete_steps(self._folder, state.line, 0):
            return False
        waits = not snapshots.complete_steps(self._folder, MAIN, self._epoch)
        self.counts["waits"] += waits
        return waits

    def _step(self, shadow: Shadow, newest: int) -> int:
        """Takes some steps and sends their scores, each once, also after a restart. ``newest``: of live."""
        moved, appends = 0, list[Append]()
        while moved < _STEPS:
            taken = shadow.turn(newest - shadow.step <= CAUGHT_UP)
            if taken is None:
                break
            moved += 1
            step, scores = taken
            result = self._compare(shadow) if shadow.is_scored else None
            if result is not None:
                scores = scores or Scores(
                    line=shadow.line, against=(MAIN, shadow.epoch), step=step.step, time_ms=step.time_ms
                )
                scores = msgspec.structs.replace(
                    scores,
                    hits=result.hits_E.tobytes(),
                    hit_users=result.users_E.tobytes(),
                    figures=result.figures | self._speed(shadow),
                )
            if scores is not None and step.step > self._sent.get(shadow.line, 0):
                appends.append(Append(0, shadow.line.encode(), pack(scores)))
                self._sent[shadow.line] = step.step
                self.counts["scored"] += len(scores.labels)
            if shadow.shard.settled:  # a restart from its snapshot doesn't score these steps again
                break
        if appends:
            self._log.append(SCORES, appends)
        if moved and shadow.shard.settled:
            self._save(shadow)
        self.counts["steps"] += moved
        return moved

    def _compare(self, shadow: Shadow) -> RetrievalResult | None:
        """Compares retrieval, now and then."""
        comparison = self._comparisons.get(shadow.line)
        if comparison is None:
            if self._items is None:
                self._items = CatalogueFollower(self._log, self._features)
            comparison = RetrievalComparison(shadow.features, self._config, self._items)
            self._comparisons[shadow.line] = comparison
        comparison.take(shadow.shown)
        result = comparison.end()
        if shadow.step % _COMPARE_EVERY == 0:
            comparison.begin(shadow, *self._live_model)
        return result

    def _speed(self, shadow: Shadow) -> dict[str, float]:
        """Microseconds to rank a list, of live and the candidate; measured once for each pair of models."""
        live, candidate = self._live_model, (shadow.features, shadow.model)
        if (live, candidate) not in self._speeds:
            models = [build_model(*one) for one in dict.fromkeys((live, candidate))]
            times_us = rank_times_us(models)
            self._speeds[live, candidate] = {"live_rank_us": times_us[0], "rank_us": times_us[-1]}
        return self._speeds[live, candidate]

    # --- output to other parts ---

    def _publish_stage(self, state: LineState, shadow: Shadow) -> None:
        """Publishes deltas of a line that answers; writes the first snapshot of the epoch that will begin
        with it."""
        line = state.line
        if state.publishes and line not in self._publishing:
            self._save(shadow)
            shadow.publish = self._publish
            self._publishing.add(line)
        if state.epoch and (line, state.epoch) not in self._written:
            self._write_first_snapshot(shadow, state.epoch)
            self._written.add((line, state.epoch))

    def _publish(self, delta: Delta) -> None:
        self._log.append(DELTAS, [Append(0, delta.line.encode(), pack(delta))])

    def _write_first_snapshot(self, shadow: Shadow, epoch: int) -> None:
        """Writes the candidate as a snapshot of the live line, in that line's number of parts, after the last
        step it learned, so that the epoch learns the steps after it."""
        if snapshots.complete_steps(self._folder, MAIN, epoch):
            return
        (arrays, meta), step = shadow.shard.export(), shadow.shard.applied
        first = spec_of(replace(self._config, model=shadow.model), MAIN, epoch)
        dense = build_model(shadow.features, shadow.model).read_dense()
        for part in range(first.parts):
            shard = Shard(replace(first, part=part), dense if part == 0 else None)
            shard.load([arrays], meta)
            own, about = shard.export()
            snapshots.write_part(self._folder, MAIN, epoch, step, part, first.parts, own, about)

    def _save(self, shadow: Shadow) -> None:
        """Saves a snapshot after the last step it learned; once, if it doesn't learn."""
        step = shadow.shard.applied
        if step not in snapshots.complete_steps(self._folder, shadow.line, 0):
            update, meta = shadow.export()
            shadow.changes.written(write_line(self._folder, shadow.line, update, meta), meta)
            snapshots.prune(self._folder, shadow.line, _KEPT)
        self._hold(shadow)

    def _hold(self, shadow: Shadow) -> None:
        """Holds the log at what the candidate, or the epoch that begins with it, would learn again."""
        name = f"{PART}/{shadow.line}"
        steps = snapshots.complete_steps(self._folder, shadow.line, 0)
        oldest = min(steps, default=shadow.shard.applied)
        kept_epoch = self._lifecycle.candidates[shadow.line].kept_epoch
        if kept_epoch is not None:
            oldest = min([oldest, *snapshots.complete_steps(self._folder, MAIN, kept_epoch)[-1:]])
        lineage = Lineage(self._log, MAIN, self._lifecycle.lives)
        starts = starts_after(lineage, oldest)
        partitions = range(self._log.partitions(EXAMPLES))
        held = {p: self._log.holds(EXAMPLES, p).get(name, 0) for p in partitions}
        hold_available(self._log, name, EXAMPLES, held | starts)

    def _drop(self, line: str) -> None:
        """Stops a line and releases its hold of the log."""
        self.shadows.pop(line, None)
        self._comparisons.pop(line, None)
        self._publishing.discard(line)
        self._log.release(f"{PART}/{line}", EXAMPLES)

    def _refuse(self, line: str, reason: str, error: Exception | None = None) -> None:
        _LOG.error("candidate %s: %s", line, reason, exc_info=error)
        self._drop(line)
        self._sent[line] = -1
        self.counts["refused"] += 1
        now_ms = self._clock()
        scores = Scores(line=line, against=(MAIN, 0), step=-1, time_ms=now_ms, refused=reason)
        self._log.append(SCORES, [Append(0, line.encode(), pack(scores))])


def run(config: Config, stop: Stop, share: Share = WHOLE) -> None:
    """Runs the part until asked to stop; the first worker also scores panels."""
    warm()
    with closing(open_log(config)) as log, ExitStack() as locks:
        locks.enter_context(leased(config.state, PART, share.partitions(log.partitions(EXAMPLES))))
        loop = ShadowLoop(log, config, feature_set(config), clock_of(config), share=share)
        with_panels = share.first and config.drift.panel_examples
        panels = PanelThread(config, stop.heartbeat) if with_panels else None
        with closing(panels) if panels else nullcontext():
            follow(loop, stop, _LOG)
