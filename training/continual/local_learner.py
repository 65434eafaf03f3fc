"""The learner of a system in one process: the live line's shards and its only worker, in turns."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from parameter_server.rpc.local_shards import LocalShards
from parameter_server.rpc.parameter_client import ShardUnreachable
from parameter_server.storage.shard_home import delta_publisher
from parameter_server.table.kernels import warm
from recsys.clock import machine_ns
from recsys.config.system_config import Config
from recsys.events.records import EXAMPLES, STEPS
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log, LogUnavailable
from recsys.model.model import build_model
from recsys.observability.tracer import Tracer, open_tracer
from recsys.process.fold import PartFold, follow
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.worker_share import leased
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.lines.control import live_epoch, model_now
from training.lines.line import MAIN, spec_of
from training.steps.sequencer_loop import EpochEnd
from training.steps.step_trace import trace_step

PART: Final = "learner"
_LOG: Final = logging.getLogger(__name__)


class LocalLearner(PartFold):
    """Learns the steps of the live line, one a turn, and goes on in the next epoch where the line does."""

    away = (LogUnavailable, ShardUnreachable)

    def __init__(self, log: Log, config: Config, tracer: Tracer | None = None) -> None:
        warm()
        self._log, self._config, self.tracer = log, config, tracer
        self._publish = delta_publisher(log, MAIN, tracer)
        self._features, self._left_out = feature_set(config), 0
        self._open(live_epoch(log))

    def _open(self, epoch: int) -> None:
        config, features = model_now(self._log, self._config, self._features, MAIN, epoch)
        model, spec = build_model(features, config.model), spec_of(config, epoch=epoch)
        self.epoch, self._ended = epoch, EpochEnd(self._log, MAIN, epoch)
        self.shards = LocalShards(spec, config, self._publish, model.read_dense())
        client = self.shards.client
        self.worker = Worker(0, 1, self._log, client, Learner(model), config, MAIN, epoch)
        _LOG.info("learning", extra={"line": MAIN, "epoch": epoch})

    def _turn(self) -> int:
        """Learns at most one step; returns its number of examples."""
        began_ns = machine_ns()
        if (following := self._ended.abandoned_for()) is not None:
            self.shards.stop()  # for a rollback to this epoch
            self._open(following)
            return 1
        learned = self.worker.turn()
        if learned:
            if self.tracer:
                version = (MAIN, self.epoch, self.worker.step)
                trace_step(self.tracer, version, learned, began_ns, machine_ns())
            return learned
        self.shards.flush()
        following = self._ended.following(self.worker.step)
        if following is None:
            return 0
        self.shards.stop()
        self._open(following)
        return 1

    def _restore(self) -> None:
        """Returns to the shards' files."""
        self.shards.close()
        self._open(live_epoch(self._log))

    def report(self, beat: Heartbeat, moved: int) -> None:
        beat.add(EXAMPLES, moved)
        beat.gauge("step", self.worker.step)
        left_out = self.worker.counts["left_out"]
        beat.add("left_out", max(0, left_out - self._left_out))
        self._left_out = left_out
        statuses = self.shards.statuses()
        for name in ("bytes", "wal_bytes", "expired", "evicted", "refused_rows", "refused_dense"):
            beat.gauge(name, sum(status[name] for status in statuses))

    def wait(self) -> None:
        self._log.wait(STEPS, 0.5)

    def close(self) -> None:
        """Takes last snapshots."""
        self.shards.stop()


@contextmanager
def opened(config: Config) -> Iterator[LocalLearner]:
    """The fold of the live line. Raises RuntimeError where another process learns it."""
    tracer = open_tracer(config, PART)
    with closing(open_log(config)) as log, leased(config.state, PART, [0]):
        with closing(LocalLearner(log, config, tracer)) as learner:
            yield learner
        if tracer:
            tracer.close()


def run(config: Config, stop: Stop) -> None:
    """Learns until asked to stop."""
    with opened(config) as learner:
        follow(learner, stop, _LOG)
