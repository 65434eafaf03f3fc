"""Shadows as a part: every candidate at work follows the live line's steps, in this one process; and so do
what was live before, where it guards against what replaced it, and the lines that arms of experiments train.

What they said goes to ``scores``, where the director reads it. A candidate that answers as canary, or an
arm's line, publishes its deltas like any line, from a snapshot on; one that takes over is written as the
snapshot that the live line's next epoch begins from. The part holds the log where its slowest candidate is,
and comes back from the snapshots that it takes.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
from safetensors import SafetensorError

from experiments.promotion.epoch_model import config_at
from experiments.promotion.lifecycle import ARM, CANARY, TAKING_OVER, CandidateState, Lifecycle
from parameter_server.shard.shard import Shard
from parameter_server.storage import snapshots
from parameter_server.table.kernels import warm
from parameter_server.table.overlay_table import OverlayTable
from recsys.clock import wall_ms
from recsys.config.system_config import Config, ModelConfig
from recsys.events.records import CONTROL, DELTAS, EXAMPLES, SCORES, STEPS, Delta, Scores, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log, LogLost
from recsys.model.model import build_model
from recsys.process.log_consumer import readable
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from recsys.process.retry_loop import RetryLoop, run_turn
from training.candidates.line_start import LineStart, write_line
from training.candidates.retrieval_comparison import Items, Look, RetrievalComparison, ranks_us
from training.candidates.shadow import Shadow
from training.forgetting.panel_watch import PanelThread
from training.lines.control import ControlReader
from training.lines.line import MAIN, spec_of
from training.steps.lineage import CAUGHT_UP, Lineage, newest_step, starts_after

PART: Final = "shadow"
_LOOK_EVERY: Final = 8  # steps between two looks for a snapshot of live
_STEPS: Final = 16  # of one candidate in a turn
_KEPT: Final = 2  # snapshots of a candidate
_HOUR_MS: Final = 3_600_000
_LOG: Final = logging.getLogger(__name__)


class _Said(msgspec.Struct):
    """What is read of ``scores`` to know what was told: not the arrays."""

    line: str
    step: int


class ShadowLoop(RetryLoop):
    """All candidates at work. ``clock`` gives milliseconds; ``spent``, what was taken of the processor in s:
    with the threads of torch, and without those that do something else."""

    def __init__(
        self,
        log: Log,
        config: Config,
        features: FeatureSet,
        clock: Callable[[], int] = wall_ms,
        spent: Callable[[], float] = time.process_time,
    ) -> None:
        self._log, self._config, self._features, self._clock = log, config, features, clock
        self._spent = spent
        self._folder = Path(config.state) / "snapshots"
        self._starts = LineStart(log, config, features, clock)
        self._shadows: dict[str, Shadow] = {}
        self.counts = {"steps": 0, "scored": 0, "refused": 0, "waits": 0}
        self._speeds: dict[tuple[ModelConfig, ModelConfig], dict[str, float]] = {}
        self.cpu_s = 0.0
        self.behind = 0  # steps that the slowest has still to take
        self._restore()

    @property
    def shadows(self) -> dict[str, Shadow]:
        """Those at work, by line."""
        return self._shadows

    @property
    def own_rows(self) -> int:
        """Rows that they have in memory: of what they began from, those that they changed."""
        tables = [t for its in self._shadows.values() for t in its.shard.tables.values()]
        return sum(t.changed if isinstance(t, OverlayTable) else len(t) for t in tables)

    @property
    def _lifecycle(self) -> Lifecycle:
        return self._control.lifecycle

    @property
    def _epoch(self) -> int:
        """The live one."""
        return self._control.live_epoch(MAIN)

    @property
    def _live_model(self) -> ModelConfig:
        return config_at(self._config, self._lifecycle, MAIN, self._epoch).model

    def _restore(self) -> None:
        self._control = ControlReader(self._log)
        self._shadows.clear()
        self._looks: dict[str, RetrievalComparison] = {}
        self._items: Items | None = None
        self._written: set[tuple[str, int]] = set()
        self._publishing: set[str] = set()
        self._over: set[str] = set()  # lines at an end
        self._removed: set[str] = set()  # of them, those of which nothing is kept any more
        self._control.turn()
        self._clean()
        self._told = {said.line: said.step for said in readable(self._log, SCORES, _Said)}

    def _turn(self) -> int:
        """Folds ``control``, then has each candidate take the steps that are there."""
        moved, began_s = self._fold(), self._spent()
        at_work = self._lifecycle.active
        newest = newest_step(self._log, MAIN, self._epoch) if at_work else 0
        for standing in at_work:
            moved += self._work(standing, newest)
        self.cpu_s += self._spent() - began_s
        self.behind = max((newest - its.step for its in self._shadows.values()), default=0)
        return moved

    def _fold(self) -> int:
        lives = len(self._lifecycle.lives)
        moved = len(self._control.turn())
        if len(self._lifecycle.lives) > lives:
            for shadow in self._shadows.values():
                shadow.follow(self._lifecycle.lives)
        self._clean()
        return moved

    def _clean(self) -> None:
        """Ends what isn't at work any more: also what ended while nobody looked, or never began. Its
        snapshots stay for as long as the log may have an answer of the line, which is explained by them."""
        over = {its.line: its for its in self._lifecycle.candidates.values() if not its.active}
        for line in sorted(over.keys() - self._over):
            self._drop(line)
        self._over = set(over)
        before_ms = self._clock() - self._config.log.retention_hours * _HOUR_MS
        for line in sorted(over.keys() - self._removed):
            if over[line].guards or over[line].since_ms < before_ms:  # a guard has answered nobody
                snapshots.remove(self._folder, line)
                self._removed.add(line)

    def _work(self, standing: CandidateState, newest: int) -> int:
        shadow = self._shadows.get(standing.line)
        try:
            if shadow is None:
                if standing.line in self._refused or self._waits(standing):
                    return 0
                shadow = self._starts.begin(standing, self._lifecycle, self._epoch)
                self._save(shadow)
                self._shadows[standing.line] = shadow
            self._show(standing, shadow)
            return self._step(shadow, newest)
        except OSError as error:  # a full disk, a folder that is away: it may come back
            _LOG.warning("candidate %s waits: %s", standing.line, error)
            self.counts["waits"] += 1
            return 0
        except (LookupError, LogLost, SafetensorError, ValueError) as error:
            self._refuse(standing.line, f"{type(error).__name__}: {error}")
            return 1

    def _waits(self, standing: CandidateState) -> bool:
        """Whether there is no snapshot of live yet that an arm's line could begin from."""
        if standing.stage != ARM or snapshots.complete_steps(self._folder, standing.line, 0):
            return False
        waits = not snapshots.complete_steps(self._folder, MAIN, self._epoch)
        self.counts["waits"] += waits
        return waits

    @property
    def _refused(self) -> set[str]:
        return {line for line, step in self._told.items() if step < 0}

    def _step(self, shadow: Shadow, newest: int) -> int:
        """Takes some steps; what was said of them is told once, also after a restart. ``newest``: of live."""
        moved, told = 0, list[Append]()
        while (
            moved < _STEPS and (taken := shadow.turn(newest - shadow.step <= CAUGHT_UP)) is not None
        ):
            moved += 1
            step, scores = taken
            look = None if shadow.arm else self._look(shadow)
            if look is not None:
                scores = scores or Scores(
                    line=shadow.line, against=(MAIN, shadow.epoch), step=step.step,
                    time_ms=step.time_ms,
                )  # fmt: skip
                scores = msgspec.structs.replace(
                    scores, hits=look.hits_E.tobytes(), hit_users=look.users_E.tobytes(),
                    figures=look.figures | self._speed(shadow.model),
                )  # fmt: skip
            if scores is not None and step.step > self._told.get(shadow.line, 0):
                told.append(Append(0, shadow.line.encode(), pack(scores)))
                self._told[shadow.line] = step.step
                self.counts["scored"] += len(scores.labels)
            if step.step % self._config.step.snapshot_every == 0:
                self._save(shadow)
        if told:
            self._log.append(SCORES, told)
        self.counts["steps"] += moved
        return moved

    def _look(self, shadow: Shadow) -> Look | None:
        """What it would retrieve, now and then."""
        look = self._looks.get(shadow.line)
        if look is None:
            if self._items is None:
                self._items = Items(self._log, self._features)
            look = RetrievalComparison(self._features, self._config, self._items)
            self._looks[shadow.line] = look
        look.take(shadow.shown)
        found = look.end()
        if shadow.step % _LOOK_EVERY == 0:
            look.begin(shadow, self._live_model)
        return found

    def _speed(self, candidate: ModelConfig) -> dict[str, float]:
        """How long it and live take to rank a list, in microseconds: once for each pair of models."""
        live = self._live_model
        if (live, candidate) not in self._speeds:
            both = [build_model(self._features, model) for model in (live, candidate)]
            us = ranks_us(both if live != candidate else both[:1])
            self._speeds[live, candidate] = {"live_rank_us": us[0], "rank_us": us[-1]}
        return self._speeds[live, candidate]

    # --- what of it others see ---

    def _show(self, standing: CandidateState, shadow: Shadow) -> None:
        """As canary it publishes its deltas; to take over, it becomes the next epoch's first snapshot."""
        line = standing.line
        if standing.stage in (CANARY, TAKING_OVER, ARM) and line not in self._publishing:
            self._save(shadow)
            shadow.publish = self._publish
            self._publishing.add(line)
        if standing.stage == TAKING_OVER and (line, standing.epoch) not in self._written:
            self._become(shadow, standing.epoch)
            self._written.add((line, standing.epoch))

    def _publish(self, delta: Delta) -> None:
        self._log.append(DELTAS, [Append(0, delta.line.encode(), pack(delta))])

    def _become(self, shadow: Shadow, epoch: int) -> None:
        """Writes the candidate as a snapshot of the live line, in as many parts as that has shards: as it is
        after the last step that it learned, so that the epoch learns what came after that."""
        if snapshots.complete_steps(self._folder, MAIN, epoch):
            return
        (arrays, meta), step = shadow.shard.export(), shadow.shard.applied
        first = spec_of(replace(self._config, model=shadow.model), MAIN, epoch)
        dense = build_model(self._features, shadow.model).read_dense()
        for part in range(first.parts):
            shard = Shard(replace(first, part=part), dense if part == 0 else None)
            shard.load([arrays], meta)
            own, about = shard.export()
            snapshots.write_part(self._folder, MAIN, epoch, step, part, first.parts, own, about)

    def _save(self, shadow: Shadow) -> None:
        """Keeps it as it is after the last step that it learned. One that doesn't learn is kept once."""
        step = shadow.shard.applied
        if step not in snapshots.complete_steps(self._folder, shadow.line, 0):
            write_line(self._folder, shadow.line, *shadow.export())
            snapshots.prune(self._folder, shadow.line, _KEPT)
        self._hold(shadow)

    def _hold(self, shadow: Shadow) -> None:
        """The log keeps what the candidate, or the epoch that begins with it, would learn again."""
        name = f"{PART}/{shadow.line}"
        oldest = min(
            snapshots.complete_steps(self._folder, shadow.line, 0), default=shadow.shard.applied
        )
        standing = self._lifecycle.candidates[shadow.line]
        if standing.guards:  # and what is learned again where the live line goes back
            before = self._lifecycle.guarded_live(standing).of
            oldest = min([oldest, *snapshots.complete_steps(self._folder, MAIN, before)[-1:]])
        lineage = Lineage(self._log, MAIN, self._lifecycle.lives)
        starts = starts_after(lineage, oldest)
        for partition in range(self._log.partitions(EXAMPLES)):
            held = self._log.holds(EXAMPLES, partition).get(name)
            begin = self._log.begin(EXAMPLES, partition)
            start = starts.get(partition, begin if held is None else held)
            self._log.hold(name, EXAMPLES, partition, max(start, begin))

    def _drop(self, line: str) -> None:
        """It learns no more, so the log need keep nothing for it."""
        self._shadows.pop(line, None)
        self._looks.pop(line, None)
        self._publishing.discard(line)
        self._log.release(f"{PART}/{line}", EXAMPLES)

    def _refuse(self, line: str, reason: str) -> None:
        _LOG.error("candidate %s: %s", line, reason)
        self._drop(line)
        self._told[line] = -1
        self.counts["refused"] += 1
        said = Scores(line=line, against=(MAIN, 0), step=-1, time_ms=self._clock(), refused=reason)
        self._log.append(SCORES, [Append(0, line.encode(), pack(said))])


def run(config: Config, stop: Stop) -> None:
    """The part: follows the live line with all candidates until asked to stop."""
    warm()
    log = open_log(config)
    panels: PanelThread | None = None

    def spent_s() -> float:
        return time.process_time() - (panels.thread_s() if panels else 0.0)

    loop = ShadowLoop(log, config, feature_set(config), spent=spent_s)
    beat, before = stop.heartbeat, dict(loop.counts)
    panels = PanelThread(config, beat) if config.drift.panel_examples else None
    while not stop.is_set():
        moved = run_turn(loop.turn, stop, _LOG)
        if moved is None:
            continue
        for name, count in loop.counts.items():
            beat.add(name, count - before[name])
        before = dict(loop.counts)
        beat.gauge("candidates", len(loop.shadows))
        beat.gauge("own_rows", loop.own_rows)
        beat.gauge("behind", loop.behind)
        beat.gauge("cpu_s", loop.cpu_s)
        if not moved:
            log.wait(STEPS if loop.shadows else CONTROL, 0.2)
    if panels:
        panels.close()
    log.close()
