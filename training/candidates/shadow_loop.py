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
from pathlib import Path
from typing import Final

import msgspec

from experiments.promotion.epoch_model import config_at, features_at
from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.storage import snapshots
from parameter_server.table.kernels import warm
from parameter_server.table.overlay_table import OverlayTable
from recsys.config.system_config import Config, ModelConfig
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EXAMPLES, SCORES, STEPS, Scores, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log, LogUnavailable
from recsys.process.clock_file import clock_of
from recsys.process.fold import PartFold, follow
from recsys.process.log_consumer import readable
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.worker_share import WHOLE, Share, leased
from training.candidates.line_files import LineFiles
from training.candidates.line_start import LineStart
from training.candidates.retrieval_comparison import RetrievalComparisons
from training.candidates.shadow import Shadow
from training.deletion.live_replay import LiveReplay
from training.forgetting.panel_watch import PanelThread
from training.lines.control import ControlReader
from training.lines.line import MAIN
from training.steps.lineage import CAUGHT_UP, newest_step

PART: Final = "shadow"
_STEPS: Final = 16  # of one candidate in a turn
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

    def _live_model(self) -> tuple[FeatureSet, ModelConfig]:
        """Features and configuration of live's model."""
        features = features_at(self._features, self._lifecycle, MAIN, self._epoch)
        return features, config_at(self._config, self._lifecycle, MAIN, self._epoch).model

    def _restore(self) -> None:
        self._control = ControlReader(self._log)
        self.shadows.clear()
        self.replay = LiveReplay(self._log, self._config, self._features, self._clock)
        self._retrieval = RetrievalComparisons(self._log, self._config, self._features)
        self._files = LineFiles(self._log, self._config, PART)
        self._over: set[str] = set()  # ended lines
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
        for line, state in sorted(over.items()):
            if not state.answers or state.since_ms < before_ms:
                self._files.remove(line)

    def _has(self, line: str) -> bool:
        return self._share.has(partition_of(line, self._partitions))

    def _work(self, state: LineState, newest: int) -> int:
        shadow = self.shadows.get(state.line)
        try:
            if shadow is None:
                if self._sent.get(state.line, 0) < 0 or self._waits(state):  # refused, or too early
                    return 0
                shadow = self._starts.begin(state, self._lifecycle, self._epoch)
                self._files.save(shadow, self._lifecycle)
                self.shadows[state.line] = shadow
            self._files.follow(state, shadow, self._lifecycle)
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
            result = self._retrieval.compare(shadow, self._live_model) if shadow.is_scored else None
            if result is not None:
                scores = scores or Scores(
                    line=shadow.line, against=(MAIN, shadow.epoch), step=step.step, time_ms=step.time_ms
                )
                scores = msgspec.structs.replace(
                    scores,
                    hits=result.hits_E.tobytes(),
                    hit_users=result.users_E.tobytes(),
                    figures=result.figures,
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
            self._files.save(shadow, self._lifecycle)
        self.counts["steps"] += moved
        return moved

    def _drop(self, line: str) -> None:
        """Stops a line."""
        self.shadows.pop(line, None)
        self._retrieval.drop(line)
        self._files.drop(line)

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
