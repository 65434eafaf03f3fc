"""Topics that the log makes on Kafka's brokers: their names, copies and limits, and brokers that know a topic
later than others."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import (
    InvalidReplicationFactorError,
    KafkaConnectionError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)

from recsys.log.kafka_log import KafkaLog
from recsys.log.kafka_topics import KafkaTopics
from recsys.log.protocol import Append, Brokers, LogUnavailable, Topic

PATIENCE_S = 2.0


class Admin:
    """Notes the topics that it is told to make."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self._error = error

        self._manager, self.cluster = self, SimpleNamespace(brokers=lambda: [])

    def create_topics(self, topics: dict[str, dict[str, Any]], wait_for_metadata: bool) -> None:
        if self._error is not None:
            raise self._error
        self.made |= topics

    def run(self, call: Callable[..., Any], name: str, broker: int | None) -> dict[str, Any]:
        return {"partitions": [{}] * self.made[name]["num_partitions"]}


def make(brokers: Brokers, admin: Any) -> None:
    KafkaTopics(admin, brokers, PATIENCE_S).make(Topic("t", 3, retention_ms=5))


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
    with pytest.raises(ValueError, match=r"log.replication is 3.*\(.*brokers: 1.*at most their number"):
        make(Brokers("kafka://b:1", replication=3), admin)


class LaggingAdmin:
    """An admin client of three brokers, each of which knows the topic ``t`` of three partitions only from a
    time on. Requests to no broker by name go to each in turn. Its clock passes only in ``sleep``."""

    def __init__(self, known_from_s: dict[int, float], away: tuple[int, ...] = ()) -> None:
        self.now_s, self.slept = 0.0, 0
        self._known_from_s, self._away = known_from_s, away
        self._turn = 0
        self._manager = self
        self.cluster = SimpleNamespace(
            brokers=lambda: [SimpleNamespace(node_id=number) for number in known_from_s]
        )

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept += 1

    def create_topics(self, topics: object, wait_for_metadata: bool) -> None:
        raise TopicAlreadyExistsError  # another client has just made it

    def list_topics(self) -> list[str]:
        return ["t"]

    def list_partition_offsets(self, ats: dict[Any, Any]) -> dict[Any, Any]:
        if not self._metadata(self._next(), "t")["partitions"]:
            raise UnknownTopicOrPartitionError
        return {at: SimpleNamespace(offset=0) for at in ats}

    async def send(self, request: Any, broker: int | None) -> Any:
        if broker is None:
            broker = self._next()
        if broker in self._away:
            raise KafkaConnectionError
        topic = self._metadata(broker, request.topics[0].name)
        return SimpleNamespace(to_dict=lambda: {"topics": [topic]})

    def run(self, call: Callable[..., Any], *args: object) -> Any:
        return asyncio.run(call(*args))

    def _next(self) -> int:
        self._turn += 1
        return self._turn % len(self._known_from_s)

    def _metadata(self, broker: int, name: str) -> dict[str, Any]:
        is_known = name == "t" and self.now_s >= self._known_from_s[broker]
        return {"name": name, "topic_id": "id", "partitions": [{}, {}, {}] if is_known else []}


def log_of(admin: Any) -> KafkaLog:
    log: Any = object.__new__(KafkaLog)
    log._config, log._admin, log._id, log._truncated = Brokers("kafka://b:1"), admin, "", None
    log._partitions = {}
    log._topics = KafkaTopics(admin, log._config, PATIENCE_S, admin.clock, admin.sleep)
    opened: KafkaLog = log
    return opened


def test_a_topic_that_only_one_broker_knows_yet_is_known() -> None:
    for late in range(3):
        admin = LaggingAdmin({0: 9.0, 1: 9.0, 2: 9.0} | {late: 0.0})
        assert log_of(admin).partitions("t") == 3
        assert admin.slept == 0


def test_the_others_are_asked_where_one_broker_is_away() -> None:
    for away in range(3):
        admin = LaggingAdmin({0: 0.0, 1: 0.0, 2: 0.0}, away=(away,))
        for _ in range(3):  # whichever is asked first
            assert log_of(admin).partitions("t") == 3
    admin = LaggingAdmin({0: 0.0, 1: 0.0, 2: 0.0}, away=(0, 1, 2))
    with pytest.raises(LogUnavailable, match="kafka://b:1: Kafka failed: KafkaConnectionError"):
        log_of(admin).partitions("t")


def test_bounds_wait_until_the_asked_broker_knows_the_topic() -> None:
    admin = LaggingAdmin({0: 0.0, 1: 0.3, 2: 0.3})
    for begins in (True, False):
        assert log_of(admin)._bounds("t", [0, 1], begins) == {0: 0, 1: 0}
        assert 0 < admin.now_s < 0.5


def test_create_waits_for_a_topic_that_another_client_is_making() -> None:
    admin = LaggingAdmin({0: 0.4, 1: 0.3, 2: 0.4})
    log_of(admin).create(Topic("t", 3))
    assert 0.2 < admin.now_s < 0.4


def test_the_wait_for_a_topic_is_bounded() -> None:
    admin = LaggingAdmin({0: 9.0, 1: 9.0, 2: 9.0})
    with pytest.raises(LogUnavailable, match="topic t exists, but no broker of kafka://b:1 knows"):
        log_of(admin).create(Topic("t", 3))
    assert admin.now_s == pytest.approx(PATIENCE_S, abs=0.1)
    admin = LaggingAdmin({0: 0.0, 1: 9.0, 2: 9.0})
    admin.list_partition_offsets = _unknown  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="no topic 't'"):
        log_of(admin)._bounds("t", [0], True)
    assert admin.now_s == pytest.approx(PATIENCE_S, abs=0.1)


def test_a_topic_that_no_broker_knows_is_named_at_once() -> None:
    admin = LaggingAdmin({0: 0.0, 1: 0.0, 2: 0.0}, away=(1,))
    log = log_of(admin)
    for act in (
        lambda: log.partitions("other"),
        lambda: log.append("other", [Append(0, b"", b"")]),
        lambda: log.read("other", 0, 0),
    ):
        with pytest.raises(KeyError, match="no topic 'other'; there are: t"):
            act()
    admin = LaggingAdmin({0: 9.0, 1: 9.0, 2: 9.0})
    with pytest.raises(KeyError, match="no topic 't'"):
        log_of(admin)._bounds("t", [0], True)
    assert admin.slept == 0


def _unknown(ats: object) -> dict[Any, Any]:
    raise UnknownTopicOrPartitionError
