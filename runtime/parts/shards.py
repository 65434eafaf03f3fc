"""The part that looks after the shards: it sees to it that the live line's named actors exist and answer.

The actors are detached: they outlive this part where it dies, and Ray restarts one that dies. Only where Ray
gave one up (its record is dead, or the cluster is a new one) it is made anew, from its snapshot and
write-ahead file. Asked to stop, the part stops them, and each takes a last snapshot. Only where our own Ray
head is gone, or a shard hangs, it leaves them to end with the head.
"""

import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from experiments.promotion.epoch_model import config_at
from parameter_server.shard.shard import ShardSpec
from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from recsys.model.model import build_model
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from runtime.supervision import launch_plan as plans
from training.lines.control import ControlReader
from training.lines.line import MAIN, spec_of

_ANSWER_S: Final = 5.0
_LOG: Final = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """Starts what is missing, asks every shard each second, and tells what they say."""
    import ray

    from parameter_server.rpc.shard_actor import NAMESPACE

    config = replace(config, state=str(Path(config.state).resolve()))
    if not ray.is_initialized():
        asked = signal.getsignal(signal.SIGTERM)
        about = ray.job_config.JobConfig(metadata={"part": "shards", "line": MAIN})
        ray.init(namespace=NAMESPACE, log_to_driver=False, job_config=about)
        signal.signal(signal.SIGTERM, asked)  # Ray's own would end this process before its shards
    log = open_log(config)
    control = ControlReader(log)
    control.turn()
    keeper = Keeper.of(config, control, control.live_epoch(MAIN))
    keeper.prepare()
    while not stop.is_set(starting=True):
        if keeper.start() and keeper.ask():
            break
        stop.wait(0.5, starting=True)
    flaws: dict[int, str] = {}
    # Of epochs that aren't live any more: also those that this part was leaving when it was killed.
    before = (Keeper.of(config, control, epoch) for epoch in earlier(control))
    left = [its for its in before if its.find()]
    while not stop.wait(1.0):
        control.turn()
        if (epoch := control.live_epoch(MAIN)) != keeper.epoch:
            left.append(keeper)
            live = control.lifecycle.live
            if live is not None and live.of != keeper.epoch:
                keeper.abandon()  # the line went back: what it still has to learn is of no use
            keeper = Keeper.of(config, control, epoch)
            keeper.start()
        if not keeper.ask():
            stop.heartbeat.add("unanswered")
            keeper.start()
        tell(stop.heartbeat, keeper.statuses)
        flaws = log_flaws(keeper.statuses, flaws)
        live = control.lifecycle.live
        if left and live is not None and keeper.step > live.since:
            left.pop(0).end()  # its workers have gone on; it takes a last snapshot, the way back
        stop.heartbeat.gauge("started", keeper.started)
    _, plan = plans.read(config.state)
    if not plan.owns_ray or keeper.ask():
        for each in (*left, keeper):
            each.end()
    log.close()
    ray.shutdown()


def earlier(control: ControlReader) -> list[int]:
    """The epochs that were live before."""
    return sorted({live.epoch for live in control.lifecycle.lives[:-1]})


class Keeper:
    """The handles of a line's shards and what each said last."""

    def __init__(self, config: Config, spec: ShardSpec) -> None:
        self._config, self._spec = config, spec
        self._dense = build_model(feature_set(config), config.model).read_dense()
        self._handles: list[Any] = []
        self.statuses: list[dict[str, Any]] = []
        self.started = 0  # times that at least one actor had to be made

    @property
    def epoch(self) -> int:
        return self._spec.epoch

    @property
    def step(self) -> int:
        """The newest that all shards have learned, as far as they said."""
        return min((status["step"] for status in self.statuses), default=0)

    def start(self) -> bool:
        """Finds the actors, or makes those that are missing; False where they don't come up now."""
        import ray

        from parameter_server.rpc.shard_actor import find_shards, start_shards

        try:
            try:
                self._handles = find_shards(self._spec)
            except ValueError:
                self.started += 1
                self._handles = start_shards(self._spec, self._config, self._dense)
        except (ray.exceptions.RayError, ValueError) as error:
            _LOG.warning("shards don't start yet: %s", error)
            return False
        return True

    @classmethod
    def of(cls, config: Config, control: ControlReader, epoch: int) -> "Keeper":
        """That of the live line in an epoch, with the model that it has then."""
        config = config_at(config, control.lifecycle, MAIN, epoch)
        return cls(config, spec_of(config, epoch=epoch))

    def find(self) -> bool:
        """Whether any actors of it run."""
        from parameter_server.rpc.shard_actor import running_shards

        self._handles = running_shards(self._spec)
        return bool(self._handles)

    def abandon(self) -> None:
        """Frees the workers that still learn in this epoch."""
        import ray

        try:
            ray.get([handle.abandon.remote() for handle in self._handles], timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:
            _LOG.warning("a shard that is left doesn't answer: %s", error)

    def prepare(self) -> None:
        """Where there were more or fewer shards before, their state is cut anew: once, before any starts."""
        from parameter_server.rpc.shard_actor import prepare

        done = prepare(self._spec, self._config, self._dense)
        if done is not None:
            _LOG.info("%d shards became %d at step %d", done.parts, self._spec.parts, done.step)

    def end(self) -> None:
        """Stops every actor that has one of the line's names, and so frees the names."""
        from parameter_server.rpc.shard_actor import running_shards, stop_shards

        stop_shards(running_shards(self._spec))
        self._handles = []

    def ask(self) -> bool:
        """Whether all shards answer; keeps what they said."""
        import ray

        asked = [handle.status.remote() for handle in self._handles]
        try:
            self.statuses = ray.get(asked, timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:  # restarting, gone, or too busy to answer
            _LOG.warning("a shard doesn't answer: %s", error)
            return False
        return True


def tell(beat: Heartbeat, statuses: list[dict[str, Any]]) -> None:
    """Sums over the shards, and of each its applied step."""
    if not statuses:
        return
    beat.gauge("step", min(status["step"] for status in statuses))
    beat.gauge("rows", sum(sum(status["rows"].values()) for status in statuses))
    for name in ("bytes", "wal_bytes", "expired", "evicted", "refused_rows", "refused_dense"):
        beat.gauge(name, sum(status[name] for status in statuses))
    beat.gauge("waiting", sum(sum(status["waiting"].values()) for status in statuses))
    for name in ("rows", "waiting", "table_bytes"):
        for table in statuses[0][name]:
            beat.gauge(f"{name}.{table}", sum(status[name][table] for status in statuses))
    for name in ("spans_sent", "spans_dropped"):
        if name in statuses[0]:
            beat.gauge(name, sum(status.get(name, 0) for status in statuses))
    beat.gauge("refused_connections", sum(status["refused_connections"] for status in statuses))
    for status in statuses:
        beat.gauge(f"step.{status['part']}", status["step"])


def log_flaws(statuses: list[dict[str, Any]], before: dict[int, str]) -> dict[int, str]:
    """Logs what is wrong with each shard (by part), where that isn't what was ``before``; returns it."""
    now = {s["part"]: f"{s['lost']} {s['snapshot_error']}".strip() for s in statuses}
    for part, flaw in now.items():
        if flaw and flaw != before.get(part):
            _LOG.error("shard %d: %s", part, flaw)
    return now
