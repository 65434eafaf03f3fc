"""Topics that the log makes on Kafka's brokers: their names, copies and limits."""

from typing import Any

import pytest
from kafka.errors import InvalidReplicationFactorError

from recsys.log.kafka_log import KafkaLog
from recsys.log.protocol import Brokers, Topic


class Admin:
    """Notes the topics that it is told to make."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self._error = error

    def create_topics(self, topics: dict[str, dict[str, Any]], wait_for_metadata: bool) -> None:
        if self._error is not None:
            raise self._error
        self.made |= topics


def make(brokers: Brokers, admin: Admin) -> None:
    log = object.__new__(KafkaLog)
    log._config, log._admin = brokers, admin
    log._make(Topic("t", 3, retention_ms=5))


def test_by_default_the_brokers_decide_on_copies() -> None:
    admin = Admin()
    make(Brokers("kafka://b:1"), admin)
    made = admin.made["t"]
    assert (made["num_partitions"], made["replication_factor"]) == (3, -1)
    assert made["configs"]["retention.ms"] == "5" and "min.insync.replicas" not in made["configs"]


def test_prefix_and_copies_are_those_of_the_configuration() -> None:
    admin = Admin()
    make(Brokers("kafka://b:1", prefix="mine.", replication=3, min_insync=2), admin)
    assert list(admin.made) == ["mine.t"] and admin.made["mine.t"]["replication_factor"] == 3
    assert admin.made["mine.t"]["configs"]["min.insync.replicas"] == "2"


def test_more_copies_than_brokers_are_refused() -> None:
    admin = Admin(InvalidReplicationFactorError("larger than available brokers: 1"))
    with pytest.raises(
        ValueError, match=r"log.replication is 3.*\(.*brokers: 1.*at most their number"
    ):
        make(Brokers("kafka://b:1", replication=3), admin)
