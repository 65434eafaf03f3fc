"""Joiner, sequencer, trainer and shards in this process: the loop behind the log, on the event clock.

The classes are those of the live parts, over a log in memory, called one after the other. The live system
waits for due steps; this loop learns them at once when ``advance`` passes their event time.
"""

from collections.abc import Iterable
from typing import Any

from parameter_server.publish.deltas import DeltaAssembler, Gap, StepDelta
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import digest_of_shards
from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import Config, JoinConfig
from recsys.events.event_types import Engagement, Event, Impression, User, Verdict, Withdrawal
from recsys.events.field_schema import Schema
from recsys.events.hashing import partition_of
from recsys.events.records import EXAMPLES, STEPS, Delta, Step, pack, topics
from recsys.features.feature_set import FeatureSet
from recsys.features.influence import Influence
from recsys.log.protocol import Append, MemoryLog
from recsys.model.model import build_model
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.joining.joiner import Joined, Joiner
from training.lines.line import MAIN, learning_digest, spec_of
from training.steps.sequencer import Sequencer


class Joiners(list[Joiner]):
    """Joiners by partition, fed with events one by one as they would stand on the log."""

    def __init__(
        self, partitions: int, schema: Schema, config: JoinConfig, bounds: BoundsConfig | None = None
    ) -> None:
        super().__init__(
            Joiner(
                partition,
                schema.labels,
                config,
                influence=Influence(bounds, partitions),
                shown_by=schema.shown_by,
            )
            for partition in range(partitions)
        )
        self._offsets = [0] * partitions

    def feed(self, event: Event) -> list[Joined]:
        """Examples that the joiner of the event's partition makes of it; none for other kinds of event."""
        if not isinstance(event, Impression | Engagement | Verdict | Withdrawal | User):
            return []
        partition = partition_of(event.user_id, len(self))
        offset = self._offsets[partition]
        # Ids of examples are made of offsets: a data set with other profiles has the same ids.
        self._offsets[partition] += not isinstance(event, User)
        return self[partition].feed(offset, event)


def lost_engagements(events: Iterable[Event], schema: Schema, config: JoinConfig) -> tuple[int, int]:
    """How many engagements with a label the events have, and how many of them teach nothing, since no list
    before shows their item to their viewer within the window."""
    joiner, engaged = Joiner(0, schema.labels, config, shown_by=schema.shown_by), 0
    for offset, event in enumerate(events):
        if isinstance(event, Engagement) and event.kind in schema.labels:
            engaged += 1
        elif not isinstance(event, Impression):
            continue
        joiner.feed(offset, event)
    return engaged, sum(joiner.counts[why] for why in ("late", "unmatched", "unattributed"))


class DirectLoop:
    """Events in, steps out. ``frozen_after_ms``: steps of later examples are cut but not learned."""

    def __init__(self, features: FeatureSet, config: Config, frozen_after_ms: int | None = None) -> None:
        self.log = MemoryLog()
        for topic in topics(config.log.partitions):
            self.log.create(topic)
        schema, partitions = features.schema, config.log.partitions
        self.joiners = Joiners(partitions, schema, config.join, config.bounds)
        digest = learning_digest(config, features)
        self.sequencer: Sequencer | StepsUntil = Sequencer(config.step, line=MAIN, epoch=0, digest=digest)
        model = build_model(features, config.model)
        self._deltas: list[Delta] = []
        self.client = LocalClient.fresh(spec_of(config), model.read_dense(), self._deltas.append)
        self.worker = Worker(0, 1, self.log, self.client, Learner(model), config)
        self._assembler = DeltaAssembler(MAIN, 0, 0)
        self._frozen_after_ms = frozen_after_ms

    def advance(self, now_ms: int) -> list[StepDelta]:
        """Cuts and learns every step that is due at ``now_ms``; returns their deltas in order."""
        deltas: list[StepDelta] = []
        while (step := self.sequencer.cut(now_ms)) is not None:
            if self._frozen_after_ms is None or step.time_ms < self._frozen_after_ms:
                self.log.append(STEPS, [Append(0, step.line.encode(), pack(step))])
                while self.worker.turn():
                    pass
                deltas.extend(self._assembled())
            for cut in step.ranges:
                self.log.trim(EXAMPLES, cut.partition, cut.stop)
        return deltas

    def append(self, event: Event) -> None:
        """Appends an event to the log and feeds the joiner of its partition."""
        self._arrive(self.joiners.feed(event), event.time_ms)

    def digest(self) -> str:
        """SHA-256 of the canonical state of the line."""
        return digest_of_shards(self.client.shards)

    def _arrive(self, examples: Iterable[Joined], now_ms: int) -> None:
        for example in examples:
            record = Append(example.partition, str(example.user_id).encode(), pack(example))
            (offset,) = self.log.append(EXAMPLES, [record])
            self.sequencer.arrived(example.partition, offset, example.closed_ms, now_ms)

    def _assembled(self) -> list[StepDelta]:
        complete: list[StepDelta] = []
        for delta in self._deltas:
            steps = self._assembler.feed_delta(delta)
            assert not isinstance(steps, Gap), f"a delta was lost within one process: {steps}"
            complete.extend(steps)
        self._deltas.clear()
        return complete


class StepsUntil:
    """Wrapper of a loop's sequencer that neither cuts nor reports steps after ``last``.

    A sequencer on a log may cut several steps in one turn. Their records stay on the log, but ``step``
    doesn't report them, so no worker is asked to learn them.
    """

    def __init__(self, sequencer: Any, last: int) -> None:
        self._sequencer, self._last = sequencer, last

    @property
    def step(self) -> int:
        return min(int(self._sequencer.step), self._last)

    @property
    def done(self) -> bool:
        return self.step == self._last

    def cut(self, now_ms: int) -> Step | None:
        step: Step | None = None if self.done else self._sequencer.cut(now_ms)
        return step

    def turn(self) -> int:
        read: int = self._sequencer.turn()
        return read

    def arrived(self, *example: int) -> None:
        self._sequencer.arrived(*example)
