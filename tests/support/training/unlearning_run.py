"""A system in one process that unlearns or rewinds while it runs, and its line without some examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import digest_of_shards
from plugins.quarantine.sentinel_loop import append_verdicts
from recsys.events.control_records import Unlearning
from recsys.events.records import CONTROL, EXAMPLES, Example, non_example, pack, topics, unpack
from recsys.log.protocol import Append, Log, MemoryLog, Record
from recsys.model.model import build_model
from runtime.jobs.user_deletion import request_deletion
from tests.support.training.promotion_run import PromotionRun, config_of
from training.candidates.director import Director
from training.candidates.shadow_loop import ShadowLoop
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.deletion.erasure import erased_record, tombstone_of
from training.lines.line import MAIN, spec_of
from training.steps.lineage import Lineage


class Killed(BaseException):
    """Ends what runs, like a signal: nothing catches it."""


class UnlearningRun(PromotionRun):
    """A running system that keeps what erasure overwrites, to compare with."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        super().__init__(config_of(folder, **rules))
        log = self.system.log
        self.originals: dict[tuple[int, int], Record] = {}
        replace = log.replace

        def recording_replace(topic: str, partition: int, records: list[Record]) -> int:
            for record in records if topic == EXAMPLES else ():
                original = log.read(topic, partition, record.offset, 1)[0]
                self.originals.setdefault((partition, record.offset), original)
            return replace(topic, partition, records)

        log.replace = recording_replace  # type: ignore[method-assign,assignment]

    async def ask(self, *users: str, name: str = "first") -> dict[str, int]:
        return request_deletion(self.system.log, users, self.system.now_ms, name)

    async def hold(self, *users: str) -> dict[str, int]:
        """Holds users and asks to unlearn them, as `recsys quarantine hold --unlearn` does."""
        log, now_ms = self.system.log, self.system.now_ms
        offsets = append_verdicts(log, users, True, "", now_ms)
        record = Unlearning(id="held", users=offsets, time_ms=now_ms)
        log.append(CONTROL, [Append(0, b"", pack(record))])
        return offsets

    @property
    def request(self) -> Unlearning:
        return list(self.lifecycle.unlearnings.by_id.values())[-1]

    async def show_until_over(self) -> None:
        """Shows lists until the request is over; kills end director and shadow, which start again."""
        for _ in range(150):
            try:
                await self.show(1)
            except Killed:
                system = self.system
                system.director = Director(system.log, self.config, system._clock)
                system.shadow = ShadowLoop(system.log, self.config, system.features, system._clock)
                system.turn()
            if self.lifecycle.unlearnings.pending is None:
                return
        raise AssertionError(f"not over: {self.request}")

    def digest(self) -> str:
        return digest_of_shards(self.system.shards.shards)

    def digest_without(self, users: dict[str, int]) -> str:
        """The digest of a line that learned all steps from the first, and never saw the users."""
        keys = {user.encode(): offset for user, offset in users.items()}
        return self.digest_of(lambda record: erased_record(EXAMPLES, keys, record))

    def digest_but(self, is_left_out: Callable[[Example], bool]) -> str:
        """The digest of a line that learned all steps from the first, and never saw some examples."""

        def replaced(record: Record) -> Record | None:
            if non_example(record.value) is not None:
                return None
            example = unpack(record.value, Example)
            return tombstone_of(record, example) if is_left_out(example) else None

        return self.digest_of(replaced)

    def digest_of(self, replaced: Callable[[Record], Record | None]) -> str:
        """The digest of a line that learned all steps from the first, with some examples replaced."""
        log = self._changed(replaced)
        client = LocalClient.fresh(spec_of(self.config), (model := self._model()).read_dense())
        lineage = Lineage(self.system.log, MAIN, self.lifecycle.lives)
        worker = Worker(0, 1, log, client, Learner(model), self.config, reader=lineage)
        while worker.step < self.system.worker.step:
            worker.turn()
        return digest_of_shards(client.shards)

    def _model(self) -> Any:
        return build_model(self.system.features, self.config.model)

    def _changed(self, replaced: Callable[[Record], Record | None]) -> Log:
        """The examples as they were joined, with some of them replaced."""
        other, log = MemoryLog(), self.system.log
        for topic in topics(log.partitions(EXAMPLES)):
            other.create(topic)
        for partition in range(log.partitions(EXAMPLES)):
            for record in log.read(EXAMPLES, partition, 0, 100_000):
                record = self.originals.get((partition, record.offset), record)
                record = replaced(record) or record
                other.append(EXAMPLES, [Append(partition, record.key, record.value)])
        return other


async def started(folder: Path, lists: int = 60, **rules: Any) -> UnlearningRun:
    run = UnlearningRun(folder, **rules)
    await run.start()
    await run.show(lists)
    return run
