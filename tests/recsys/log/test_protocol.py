"""One contract for every log: in memory, in SQLite, on an embedded broker, and on Apache Kafka.

The brokers are real processes, with and without TLS, a user, a prefix and compression. Of three brokers of
Apache Kafka (marked brokers) each is killed in turn, and the two others pass the contract.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.config.log_config import LogConfig
from recsys.log.protocol import (
    Append,
    JumpReader,
    Log,
    LogLost,
    LogUnchangeable,
    MemoryLog,
    Record,
    Topic,
    read_range,
)
from recsys.log.sqlite_log import SqliteLog
from tests.support.systems.apache_kafka import ApacheKafka, needs_jars
from tests.support.systems.tls_proxy import TlsProxy, make_certificates

pytestmark = pytest.mark.pairs(17)


@dataclass(frozen=True)
class Apache:
    """Brokers of Apache Kafka, one of their listeners, and the broker that is killed before the tests."""

    fixture: str
    listener: str
    killed: int | None = None


COMPRESSIONS = {"PLAIN": "none", "SASL": "zstd", "MTLS": "gzip"}
KINDS = [
    "memory",
    "sqlite",
    pytest.param("kafka", marks=pytest.mark.services),
    pytest.param("kafka_tls", marks=pytest.mark.services),
    *(
        pytest.param(
            Apache("one_broker", each), marks=[pytest.mark.services, needs_jars], id=f"apache-{each}"
        )
        for each in COMPRESSIONS
    ),
    *(
        pytest.param(
            Apache("three_brokers", each, killed),
            marks=[pytest.mark.services, pytest.mark.brokers, needs_jars],
            id=f"three-{each}-without-{killed}",
        )
        for killed in (None, 0, 1, 2)
        for each in COMPRESSIONS
    ),
]


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    from recsys.log.embedded_broker import EmbeddedBroker

    server = EmbeddedBroker()
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def kafka(broker: str) -> LogConfig:
    return LogConfig(broker)


@pytest.fixture(scope="session")
def kafka_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogConfig]:
    """A broker that asks for a client's certificate, with topics of another system beside."""
    from recsys.log.embedded_broker import EmbeddedBroker

    files = make_certificates(tmp_path_factory.mktemp("tls"))
    proxy = TlsProxy(files, clients=files.ca)
    server = EmbeddedBroker(named_port=proxy.port)
    server.start()
    proxy.start(server.port)
    yield LogConfig(
        f"kafka://127.0.0.1:{proxy.port}",
        prefix="other.",
        compression="zstd",
        tls=True,
        ca_file=str(files.ca),
        cert_file=str(files.cert),
        key_file=str(files.key),
    )
    server.stop()
    proxy.close()


@pytest.fixture(scope="session")
def one_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path_factory.mktemp("kafka"), 1) as brokers:
        yield brokers


@pytest.fixture(scope="session")
def three_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path_factory.mktemp("kafka"), 3) as brokers:
        yield brokers


@pytest.fixture(params=KINDS, scope="module")
def place(request: pytest.FixtureRequest) -> str | LogConfig:
    """``memory``, ``sqlite`` or the way to brokers."""
    kind: str | Apache = request.param
    if isinstance(kind, str):
        return kind if kind in ("memory", "sqlite") else request.getfixturevalue(kind)
    brokers: ApacheKafka = request.getfixturevalue(kind.fixture)
    brokers.run_without(kind.killed)
    return brokers.config(kind.listener, compression=COMPRESSIONS[kind.listener])


@pytest.fixture
def open_(place: str | LogConfig, tmp_path: Path) -> Iterator[Callable[[], Log]]:
    """Opens the same log each time: another client of it, except in memory."""
    opened: list[Log] = []
    kept = MemoryLog()

    def open_one() -> Log:
        if place == "memory":
            log: Log = kept
        elif isinstance(place, str):
            log = SqliteLog(tmp_path / "log")
        else:
            from recsys.log.kafka_log import KafkaLog

            log = KafkaLog(place)
        opened.append(log)
        return log

    yield open_one
    for log in opened:
        log.close()


@pytest.fixture
def log(open_: Callable[[], Log]) -> Log:
    return open_()


@pytest.fixture
def topic(log: Log, request: pytest.FixtureRequest) -> str:
    """A topic of three partitions that no other test has."""
    name = f"t{abs(hash(request.node.nodeid)):x}"
    log.create(Topic(name, 3))
    return name


def some(count: int, partition: int = 0, first: int = 0) -> list[Append]:
    return [Append(partition, b"k%d" % i, b"v%d" % i) for i in range(first, first + count)]


def read_all(log: Log, topic: str, partition: int = 0, limit: int = 1000) -> list[bytes]:
    """As a fold reads: from the beginning, on from where it came to."""
    values, offset = [], log.begin(topic, partition)
    while records := log.read(topic, partition, offset, limit):
        values += [record.value for record in records]
        offset = records[-1].offset + 1
    return values


def test_an_empty_topic_begins_where_it_ends(log: Log, topic: str) -> None:
    assert log.partitions(topic) == 3
    assert log.begin(topic, 1) == log.end(topic, 1)
    assert log.read(topic, 1, log.begin(topic, 1)) == []


def test_what_was_appended_is_read_back_in_order(log: Log, topic: str) -> None:
    offsets = log.append(topic, some(5))
    assert offsets == sorted(set(offsets))
    records = log.read(topic, 0, offsets[0])
    assert [(r.offset, r.key, r.value) for r in records] == [
        (offset, b"k%d" % i, b"v%d" % i) for i, offset in enumerate(offsets)
    ]
    assert log.end(topic, 0) > offsets[-1]
    assert log.read(topic, 0, log.end(topic, 0)) == []


def test_partitions_are_apart(log: Log, topic: str) -> None:
    mixed = [Append(i % 3, b"", b"%d" % i) for i in range(9)]
    offsets = log.append(topic, mixed)
    for partition in range(3):
        assert read_all(log, topic, partition) == [b"%d" % i for i in range(partition, 9, 3)]
        records = log.read(topic, partition, log.begin(topic, partition))
        assert [r.offset for r in records] == offsets[partition::3]


def test_records_at_some_offsets_are_those_that_reads_give(log: Log, topic: str) -> None:
    offsets = log.append(topic, [*some(400), *some(300, partition=1)])
    wanted = {0: {offsets[0], offsets[3], offsets[399]}, 1: [offsets[650]], 2: []}
    if not isinstance(log, JumpReader):
        return
    records = log.read_each(topic, wanted)
    assert log.read_each(topic, {}) == {}
    assert records.keys() == {(p, o) for p in wanted for o in wanted[p]}
    assert all(record == log.read(topic, p, o, 1)[0] for (p, o), record in records.items())


def test_nothing_appended_gives_no_offsets(log: Log, topic: str) -> None:
    assert log.append(topic, []) == []


def test_limit_bounds_a_read_and_offsets_go_on(log: Log, topic: str) -> None:
    log.append(topic, some(10))
    assert read_all(log, topic, limit=3) == [b"v%d" % i for i in range(10)]
    assert len(log.read(topic, 0, log.begin(topic, 0), limit=3)) == 3


def test_reads_may_jump_back_and_forth(log: Log, topic: str) -> None:
    offsets = log.append(topic, some(50))
    for i in (40, 0, 49, 7, 8, 7, 30):
        assert log.read(topic, 0, offsets[i], limit=2)[0].value == b"v%d" % i


def test_bytes_come_back_as_they_were(log: Log, topic: str) -> None:
    values = [b"", b"\x00\xff" * 7, bytes(range(256)), b"x" * 300_000, b"\xf0\x28"]
    log.append(topic, [Append(2, value[:9], value) for value in values])
    assert read_all(log, topic, 2) == values


def test_an_offset_beyond_the_end_is_a_lost_log(log: Log, topic: str) -> None:
    log.append(topic, some(3))
    with pytest.raises(LogLost, match="beyond the end"):
        log.read(topic, 0, log.end(topic, 0) + 1)
    with pytest.raises(LogLost):
        log.read(topic, 1, log.end(topic, 1) + 100)


def test_an_unknown_topic_is_named(log: Log) -> None:
    for act in (
        lambda: log.partitions("nowhere"),
        lambda: log.append("nowhere", some(1)),
        lambda: log.read("nowhere", 0, 0),
        lambda: log.end("nowhere", 0),
    ):
        with pytest.raises(KeyError, match="nowhere"):
            act()


def test_an_unknown_partition_appends_nothing(log: Log, topic: str) -> None:
    for partition in (3, -1):
        with pytest.raises(ValueError, match="partition"):
            log.append(topic, [*some(1), Append(partition, b"", b"")])
        with pytest.raises(ValueError, match="partition"):
            log.end(topic, partition)
        with pytest.raises(ValueError, match="partition"):
            log.read(topic, partition, 0)
    assert read_all(log, topic) == []


def test_create_again_keeps_records_and_checks_partitions(log: Log, topic: str) -> None:
    log.append(topic, some(2))
    log.create(Topic(topic, 3, retention_ms=3_600_000))
    assert read_all(log, topic) == [b"v0", b"v1"]
    with pytest.raises(ValueError, match="3 partitions, expected 4"):
        log.create(Topic(topic, 4))


def test_every_client_sees_one_log(open_: Callable[[], Log], log: Log, topic: str) -> None:
    log.append(topic, some(2))
    other = open_()
    assert other.id == log.id
    assert read_all(other, topic) == [b"v0", b"v1"]
    other.append(topic, some(1, first=2))
    assert read_all(log, topic) == [b"v0", b"v1", b"v2"]


def test_appends_of_many_threads_are_all_there_each_in_its_order(
    open_: Callable[[], Log], log: Log, topic: str
) -> None:
    clients = [log, log, open_(), open_()]
    offsets: list[list[int]] = [[] for _ in clients]

    def write(who: int) -> None:
        for i in range(20):
            batch = [Append(0, b"%d" % who, b"%d" % (3 * i + j)) for j in range(3)]
            offsets[who] += clients[who].append(topic, batch)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = read_range(log, topic, 0, log.begin(topic, 0), log.end(topic, 0))  # a read may return less
    there = {r.offset: (r.key, r.value) for r in read}
    assert len(there) == 240
    for who in range(4):
        assert offsets[who] == sorted(offsets[who])
        assert [there[o] for o in offsets[who]] == [(b"%d" % who, b"%d" % i) for i in range(60)]


def test_wait_ends_with_an_append_and_with_the_timeout(
    open_: Callable[[], Log], log: Log, topic: str
) -> None:
    end = log.append(topic, some(1))[0] + 1
    assert log.read(topic, 0, end) == []
    other = open_()
    timer = threading.Timer(0.1, lambda: other.append(topic, some(1, first=1)))
    timer.start()
    deadline = time.monotonic() + 20
    while not (records := log.read(topic, 0, end)) and time.monotonic() < deadline:
        log.wait(topic, 10.0)  # nothing may be missed between the read and the wait
    timer.join()
    assert [r.value for r in records] == [b"v1"]
    assert time.monotonic() < deadline - 10
    for _ in range(4):  # may return early, never late
        started = time.monotonic()
        log.wait(topic, 0.05)
        assert time.monotonic() - started < 2


def test_what_a_thread_appends_itself_ends_its_wait(log: Log, topic: str) -> None:
    end = log.append(topic, some(1))[0] + 1
    assert log.read(topic, 0, end) == []
    log.wait(topic, 0.0)
    log.append(topic, some(1))
    started = time.monotonic()
    log.wait(topic, 10.0)
    assert time.monotonic() - started < 5


def test_a_hold_must_be_readable(log: Log, topic: str) -> None:
    log.append(topic, some(3))
    log.hold("fold", topic, 0, log.end(topic, 0))
    with pytest.raises(LogLost):
        log.hold("fold", topic, 0, log.end(topic, 0) + 1)
    log.release("fold", topic)
    log.release("nobody", topic)
    assert log.holds(topic, 0) == {}


@pytest.mark.parametrize("place", ["memory", "sqlite"], indirect=True, scope="module")
class TestDropping:
    """Kafka drops by itself."""

    def test_what_is_trimmed_is_gone_and_offsets_go_on(self, log: Log, topic: str) -> None:
        log.append(topic, some(10))
        log.trim(topic, 0, 4)
        assert (log.begin(topic, 0), log.end(topic, 0)) == (4, 10)
        assert read_all(log, topic)[0] == b"v4"
        with pytest.raises(LogLost, match="retention passed it"):
            log.read(topic, 0, 3)
        log.trim(topic, 0, 2)
        assert log.begin(topic, 0) == 4
        log.trim(topic, 0, 99)
        assert (log.begin(topic, 0), log.end(topic, 0)) == (10, 10)
        assert log.read(topic, 0, 10) == []
        assert log.append(topic, some(2)) == [10, 11]
        assert log.begin(topic, 1) == 0

    def test_nothing_held_is_dropped(self, log: Log, topic: str) -> None:
        log.append(topic, some(10))
        log.hold("slow", topic, 0, 3)
        log.hold("quick", topic, 0, 8)
        log.trim(topic, 0, 10)
        assert log.begin(topic, 0) == 3
        assert log.holds(topic, 0) == {"slow": 3, "quick": 8}
        log.hold("slow", topic, 0, 5)
        log.trim(topic, 0, 10)
        assert log.begin(topic, 0) == 5
        with pytest.raises(LogLost):
            log.hold("late", topic, 0, 4)
        log.release("slow", topic)
        log.trim(topic, 0, 10)
        assert log.begin(topic, 0) == 8
        log.hold("quick", topic, 1, 0)
        log.release("quick", topic, 0)
        assert (log.holds(topic, 0), log.holds(topic, 1)) == ({}, {"quick": 0})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.lists(st.integers(0, 1), max_size=5)),
            st.tuples(st.just("trim"), st.integers(0, 1), st.integers(0, 20)),
            st.tuples(st.just("hold"), st.integers(0, 1), st.integers(0, 20)),
        ),
        max_size=12,
    )
)
def test_sqlite_does_what_memory_does(tmp_path: Path, acts: list[tuple]) -> None:
    from tempfile import mkdtemp

    logs: list[Log] = [MemoryLog(), SqliteLog(mkdtemp(dir=tmp_path))]
    for log in logs:
        log.create(Topic("t", 2))
    for i, act in enumerate(acts):
        outcomes = []
        for log in logs:
            try:
                if act[0] == "append":
                    outcome: object = log.append("t", [Append(p, b"", b"%d" % i) for p in act[1]])
                elif act[0] == "trim":
                    outcome = log.trim("t", act[1], act[2])
                else:
                    outcome = log.hold("h", "t", act[1], act[2])
            except LogLost as error:
                outcome = str(error)
            state = [(log.begin("t", p), log.end("t", p), log.holds("t", p)) for p in (0, 1)]
            rows = [log.read("t", p, log.begin("t", p)) for p in (0, 1)]
            outcomes.append((outcome, state, rows))
        assert outcomes[0] == outcomes[1], act
    logs[1].close()


def test_records_are_found_by_their_keys(log: Log, topic: str) -> None:
    offsets = log.append(topic, [Append(1, b"k%d" % (n % 5), b"") for n in range(40)])
    log.append(topic, [Append(0, b"k1", b"")])
    found = log.keyed(topic, 1, {b"k1", b"k4", b"no"}, offsets[32])
    assert found == [offsets[n] for n in range(32) if n % 5 in (1, 4)]
    assert log.keyed(topic, 1, {b"k1"}, 1 << 60)[-1] == offsets[36]
    assert log.keyed(topic, 2, {b"k1"}, 1 << 60) == []
    many = [b"k4", *(b"no %d" % n for n in range(40_000)), b"k1"]
    assert log.keyed(topic, 1, many, offsets[32]) == found


def test_a_record_is_replaced_in_its_place_or_the_log_says_that_it_cannot(
    open_: Callable[[], Log], topic: str
) -> None:
    log = open_()
    offsets = log.append(topic, some(6))
    log.trim(topic, 0, offsets[2])
    others = [Record(offsets[n], b"", b"gone" * n) for n in (1, 2, 4)]
    if type(log).__name__ == "KafkaLog":
        with pytest.raises(LogUnchangeable, match="retention"):
            log.replace(topic, 0, others)
        assert read_all(log, topic)[-6:] == [b"v%d" % n for n in range(6)]
        return
    assert log.replace(topic, 0, others) == 2  # one isn't there any more
    for reader in (log, open_()):
        records = reader.read(topic, 0, offsets[2])
        assert [r.offset for r in records] == offsets[2:]
        assert [r.value for r in records] == [b"gone" * 2, b"v3", b"gone" * 4, b"v5"]
        assert [r.key for r in records] == [b"", b"k3", b"", b"k5"]
    assert log.append(topic, some(1)) == [offsets[-1] + 1]
