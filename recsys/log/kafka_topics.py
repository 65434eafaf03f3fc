"""Topics on Kafka's brokers: made, described, and the bounds of their partitions.

Each broker learns by itself of a topic that is made: some know it later than others, by milliseconds or, on a
busy machine, more. So a topic is unknown only if no broker knows it, and a request to one that doesn't know
it yet is sent again.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    InvalidConfigurationError,
    InvalidReplicationFactorError,
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from kafka.protocol.metadata import MetadataRequest

from recsys.log.kafka_client import unavailable
from recsys.log.kafka_fetch import Ends, ends_after
from recsys.log.protocol import Brokers, LogUnavailable, Topic

T = TypeVar("T")
MAX_RECORD_BYTES: Final = 16 << 20  # a delta of a big step; Kafka's own default is 1 MB
_AGAIN_S: Final = 0.05  # between requests to brokers that don't know a topic yet


class KafkaTopics:
    """Topics by their names in Kafka, through an admin client. ``patience_s``: time for all brokers to know a
    topic that one of them knows."""

    def __init__(
        self,
        admin: KafkaAdminClient,
        config: Brokers,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._admin, self._config, self._patience_s = admin, config, patience_s
        self._clock, self._sleep = clock, sleep
        self._ends: Ends = {}

    def make(self, topic: Topic) -> None:
        """Makes a topic, whose name gets the prefix, and returns once a broker knows it."""
        config, name = self._config, self._config.prefix + topic.name
        configs = {
            "cleanup.policy": "delete",
            "retention.ms": str(topic.retention_ms or -1),
            "retention.bytes": str(topic.retention_bytes or -1),
            "max.message.bytes": str(MAX_RECORD_BYTES),
        }
        if config.min_insync:
            configs["min.insync.replicas"] = str(config.min_insync)
        wanted = {
            "num_partitions": topic.partitions,
            "replication_factor": config.replication or -1,
            "configs": configs,
        }
        try:
            with suppress(TopicAlreadyExistsError):
                self._admin.create_topics({name: wanted}, wait_for_metadata=True)
        except (InvalidReplicationFactorError, InvalidConfigurationError) as error:
            raise ValueError(
                f"log.replication is {config.replication} and log.min_insync {config.min_insync}: the "
                f"brokers refuse to make topic {topic.name} so ({error}). Expected at most their number"
            ) from error
        except KafkaError as error:
            raise unavailable(f"creating topic {topic.name}", error) from error
        if self._repeated(lambda: self.describe(name)) is None:
            raise LogUnavailable(
                f"topic {topic.name} exists, but no broker of {config.url} knows it after "
                f"{self._patience_s:.0f} s: see that they reach one another"
            )

    def describe(self, name: str) -> dict[str, Any] | None:
        """A topic's metadata: of any broker, or of the first that knows it. None if none does."""
        refusal: KafkaError | None = None
        is_answered = False
        brokers = self._admin._manager.cluster.brokers()
        for broker in (None, *(each.node_id for each in brokers)):
            try:
                description: dict[str, Any] = self._admin._manager.run(self._asked, name, broker)
            except KafkaError as error:  # it is away
                refusal = refusal or error
                continue
            is_answered = True
            if description["partitions"]:
                return description
        if refusal is not None and not is_answered:
            raise unavailable(self._config.url, refusal) from refusal
        return None

    def names(self) -> list[str]:
        """Names of all topics with the prefix."""
        try:
            names: list[str] = self._admin.list_topics()
        except KafkaError as error:
            raise unavailable(self._config.url, error) from error
        return [name for name in names if name.startswith(self._config.prefix)]

    def bounds(self, name: str, partitions: list[int], begins: bool) -> dict[int, int] | None:
        """Beginnings or ends of partitions; None for a topic that no broker knows."""
        try:
            return self._repeated(lambda: self._listed(name, partitions, begins), name)
        except KafkaError as error:
            raise unavailable(name, error) from error

    def _repeated(self, ask: Callable[[], T | None], name: str = "") -> T | None:
        """The first answer that isn't None. None after ``patience_s``, or at once if no broker knows the
        topic of this name."""
        until_s = self._clock() + self._patience_s
        while (answer := ask()) is None:
            if self._clock() >= until_s or (name and self.describe(name) is None):
                return None
            self._sleep(_AGAIN_S)
        return answer

    async def _asked(self, name: str, broker: int | None) -> dict[str, Any]:
        """A topic's metadata, of one broker; None: of any."""
        topics = [MetadataRequest.MetadataRequestTopic(name=name)]
        request = MetadataRequest(topics=topics, allow_auto_topic_creation=False)
        answer = await self._admin._manager.send(request, broker)
        description: dict[str, Any] = answer.to_dict()["topics"][0]
        return description

    def _listed(self, name: str, partitions: list[int], begins: bool) -> dict[int, int] | None:
        """None if a broker that was asked doesn't know the topic."""
        spec = OffsetSpec.EARLIEST if begins else OffsetSpec.LATEST
        try:
            answers = self._admin.list_partition_offsets(
                {TopicPartition(name, partition): spec for partition in partitions}
            )
            offsets = {at.partition: answer.offset for at, answer in answers.items()}
            if begins:
                return offsets
            run = self._admin._manager.run
            ends: dict[int, int] = run(ends_after, self._admin, name, offsets, self._ends)
            return ends
        except UnknownTopicOrPartitionError:
            return None
