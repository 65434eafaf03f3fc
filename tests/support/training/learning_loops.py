"""The training loops over a log in memory, for tests: a clock that is moved, a log that fails, the parts."""

from collections.abc import Sequence

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import ShardSpec
from recsys.config.system_config import Config
from recsys.events.records import EXAMPLES, Delta, Step, unpack
from recsys.log.protocol import Append, Log, LogUnavailable, MemoryLog, Record
from recsys.model.model import build_model
from recsys.process.part_snapshot import PartState
from tests.support.clock import Clock
from tests.support.training.small_feed import FEATURES, append_examples, example, toy_config, toy_log
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.joining.joiner_loop import JoinerLoop
from training.lines.line import spec_of
from training.steps.sequencer_loop import SequencerLoop


class FlakyLog(MemoryLog):
    """Fails some appends: nothing, a part or all of them was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: dict[str, list[int]] = {}  # topic -> how many records get through, by failure
        self.away = 0  # how many reads of examples fail

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        if self.fail.get(topic):
            super().append(topic, records[: self.fail[topic].pop(0)])
            raise LogUnavailable(f"{topic} is away")
        return super().append(topic, records)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        if self.away and topic == EXAMPLES:
            self.away -= 1
            raise LogUnavailable(f"{topic} is away")
        return super().read(topic, partition, offset, limit)


def everything(log: Log, topic: str, kind: type) -> list[list]:
    return [
        [unpack(r.value, kind) for r in log.read(topic, p, log.begin(topic, p), 100_000)]
        for p in range(log.partitions(topic))
    ]


def drain(part: JoinerLoop | SequencerLoop | Worker) -> None:
    while part.turn():
        pass


def join(log: Log, state: PartState | None = None, clock: Clock | None = None) -> JoinerLoop:
    return JoinerLoop(log, toy_config(), FEATURES, clock or Clock(), state)


def sequence(log: Log, clock: Clock) -> SequencerLoop:
    return SequencerLoop(log, toy_config(), FEATURES, clock)


def step_of(line: str, number: int) -> Step:
    return Step(line=line, epoch=0, step=number, ranges=[], examples=0, lanes=4, time_ms=0, config="")


def trained_log(examples: int = 100) -> MemoryLog:
    """A log with examples cut into steps; the last step has as many as lanes leave empty."""
    log, clock = toy_log(), Clock()
    append_examples(log, [example(n) for n in range(examples)])
    loop = sequence(log, clock)
    drain(loop)
    append_examples(log, [example(n) for n in range(2)])
    loop.turn()
    clock.now_ms = 500
    loop.turn()
    return log


def fresh_client(config: Config, published: list[Delta] | None = None) -> LocalClient:
    spec: ShardSpec = spec_of(config)
    dense = build_model(FEATURES, config.model).read_dense()
    return LocalClient.fresh(spec, dense, None if published is None else published.append)


def worker(log: Log, client: LocalClient, config: Config) -> Worker:
    return Worker(0, 1, log, client, Learner(build_model(FEATURES, config.model)), config)
