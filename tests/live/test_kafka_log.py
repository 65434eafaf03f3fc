"""The Kafka log against a real broker process: a lost memory, a broker away, two clients at once."""

import threading
import time
from collections.abc import Iterator

import pytest
from kafka import KafkaConsumer, TopicPartition

from recsys.log import kafka_log, kafka_reader, kafka_tail
from recsys.log.embedded_broker import EmbeddedBroker
from recsys.log.kafka_log import KafkaLog
from recsys.log.protocol import Append, Brokers, LogLost, LogUnavailable, Topic
from recsys.process.log_consumer import Consumer, check_same

pytestmark = [pytest.mark.services, pytest.mark.pairs(12)]


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker()
    broker.start()
    yield broker
    broker.stop()


def some(count: int, partition: int = 0, size: int = 1) -> list[Append]:
    return [Append(partition, b"k", b"%0*d" % (size, i)) for i in range(count)]


def test_a_broker_that_lost_its_memory_is_another_log(broker: EmbeddedBroker) -> None:
    log = KafkaLog(broker.url)
    log.create(Topic("t", 2))
    log.append("t", some(10))
    fold = Consumer(log, "t", [0, 1])
    assert len(fold.poll()) == 10
    saved_id = log.id

    broker.kill()
    broker.start()
    other = KafkaLog(broker.url)
    assert other.id != saved_id
    other.create(Topic("t", 2))
    other.append("t", some(20))  # so that the old offsets exist again
    with pytest.raises(LogLost, match="remove the state"):
        check_same(other, saved_id, "a state")
    # The client that lived through it finds out too, whatever it does first, and stays with it.
    time.sleep(kafka_log.CHECK_S + 0.1)
    for act in (
        fold.poll,
        lambda: log.append("t", some(1)),
        lambda: log.read("t", 0, 10),
        lambda: log.end("t", 0),
    ):
        with pytest.raises(LogLost, match="the broker lost its data"):
            act()
    assert [r.value for _, r in Consumer(other, "t", [0]).poll()] == [b"%d" % i for i in range(20)]
    log.close()
    other.close()


def test_a_log_that_is_there_is_opened_without_a_request_to_make_it(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    KafkaLog(broker.url).close()
    made: list[object] = []
    monkeypatch.setattr(kafka_log.KafkaAdminClient, "create_topics", lambda *a, **_: made.append(a))
    KafkaLog(broker.url).close()
    assert made == []


def test_an_empty_broker_in_its_place_is_noticed_too(broker: EmbeddedBroker) -> None:
    log = KafkaLog(broker.url, patience_s=2)
    log.create(Topic("t"))
    log.append("t", some(3))
    assert len(log.read("t", 0, 0)) == 3
    broker.kill()
    broker.start()
    time.sleep(kafka_log.CHECK_S + 0.1)
    with pytest.raises(LogUnavailable, match="doesn't know"):  # it may only have begun
        log.read("t", 0, 3)
    time.sleep(2)
    with pytest.raises(LogLost):
        log.read("t", 0, 3)
    log.close()


def test_a_broker_that_is_away_is_said_in_bounded_time(broker: EmbeddedBroker) -> None:
    log = KafkaLog(broker.url, patience_s=2)
    log.create(Topic("t"))
    log.append("t", some(1))
    log.read("t", 0, 0)
    broker.kill()
    time.sleep(0.3)
    for act in (lambda: log.append("t", some(1)), lambda: log.read("t", 0, 1)):
        started = time.monotonic()
        with pytest.raises(LogUnavailable, match="See that the broker"):
            act()
        assert time.monotonic() - started < 10
    with pytest.raises(LogUnavailable):
        KafkaLog(broker.url, patience_s=1)
    log.close()


def test_clients_that_come_first_together_agree_on_the_id(broker: EmbeddedBroker) -> None:
    logs: list[KafkaLog] = []
    threads = [threading.Thread(target=lambda: logs.append(KafkaLog(broker.url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({log.id for log in logs}) == 1 and len(logs) == 4
    for log in logs:
        log.close()


def test_a_long_backlog_is_read_whole_in_turns(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_reader, "BUFFERED", 600)  # so that partitions are let go and taken up
    log = KafkaLog(broker.url)
    log.create(Topic("t", 4))
    for _ in range(8):
        log.append("t", [a for p in range(4) for a in some(500, p, size=300)])
    fold, read = Consumer(log, "t", range(4)), 0
    while polled := fold.poll(300):
        read += len(polled)
    assert read == 16_000
    assert fold.offsets == {p: log.end("t", p) for p in range(4)} == dict.fromkeys(range(4), 4_000)
    log.close()


def test_a_client_that_waits_takes_no_time(broker: EmbeddedBroker) -> None:
    log = KafkaLog(broker.url)  # knows the topic of the log's id, then one that came later
    log.create(Topic("t"))
    log.append("t", some(1))
    followed = len(log.read("t", 0, 0))
    time.sleep(0.5)
    before, until, turns = time.process_time(), time.monotonic() + 1.0, 0
    while time.monotonic() < until:
        assert log.read("t", 0, followed) == []
        log.wait("t", 0.1)
        turns += 1
    assert turns < 25 and time.process_time() - before < 0.5
    log.close()


def test_what_another_client_appends_comes_to_who_follows(broker: EmbeddedBroker) -> None:
    log, other = KafkaLog(broker.url), KafkaLog(broker.url)
    for topic in (Topic("t", 3), Topic("u")):
        log.create(topic)
    log.append("t", some(2, 1))
    fold, few = Consumer(log, "t", range(3)), Consumer(log, "u", [0])
    assert len(fold.poll()) == 2 and not fold.poll() and not few.poll()
    late = []
    for i in range(20):
        sent = time.monotonic()
        other.append("t" if i % 2 else "u", [Append(i % 2, b"k", b"%d" % i)])
        while not (found := few.poll() + fold.poll()):
            log.wait("t", 0.05)
        assert [record.value for _, record in found] == [b"%d" % i]
        late.append(time.monotonic() - sent)
    # The first may have waited for the fetch that stood open before its partition was followed.
    assert sorted(late)[5] < 0.1 and max(late) < 5.0
    assert (log.end("t", 0), log.end("t", 1), log.end("u", 0)) == (0, 12, 10)
    # What the follower appends itself is there at once.
    log.append("t", some(1, 2))
    assert len(fold.poll()) == 1
    log.close()
    other.close()


def test_who_follows_and_falls_behind_catches_up(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_tail, "BUFFERED", 300)  # so that partitions are let go and taken up
    log, other = KafkaLog(broker.url), KafkaLog(broker.url)
    log.create(Topic("t", 2))
    fold, values = Consumer(log, "t", range(2)), dict[int, list[int]]({0: [], 1: []})
    assert not fold.poll() and not fold.poll()
    for start in range(0, 4_000, 500):
        for p in range(2):
            other.append("t", [Append(p, b"k", b"%d" % i) for i in range(start, start + 500)])
        log.wait("t", 0.05)
        for p, record in fold.poll(100):
            values[p].append(int(record.value))
    until = time.monotonic() + 20
    while min(map(len, values.values())) < 4_000 and time.monotonic() < until:
        for p, record in fold.poll(100):
            values[p].append(int(record.value))
    assert values == {0: list(range(4_000)), 1: list(range(4_000))}
    log.close()
    other.close()


def test_looking_at_the_end_disturbs_no_reading(broker: EmbeddedBroker) -> None:
    log = KafkaLog(broker.url)
    log.create(Topic("t", 2))
    log.append("t", some(50) + some(50, 1))
    values, at = [], 0
    while records := log.read("t", 0, at, 7):
        values += [int(r.value) for r in records]
        at = records[-1].offset + 1
        assert (log.begin("t", 0), log.end("t", 0), log.end("t", 1)) == (0, 50, 50)
    assert values == list(range(50))
    for offset in (49, 48, 3, 50, 20):  # also inside of the last batch
        assert [r.offset for r in log.read("t", 0, offset, 1)] == [offset][: 50 - offset]
    with pytest.raises(LogLost, match="beyond the end, 50"):
        log.read("t", 0, 51)
    log.close()


def test_a_large_record_passes(broker: EmbeddedBroker) -> None:
    log = KafkaLog(broker.url)
    log.create(Topic("t"))
    big = bytes(6 << 20)
    log.append("t", [Append(0, b"", b"a"), Append(0, b"", big), Append(0, b"", b"z")])
    at, sizes = 0, []
    while records := log.read("t", 0, at):
        sizes += [len(r.value) for r in records]
        at = records[-1].offset + 1
    assert sizes == [1, len(big), 1]
    log.close()


def test_the_broker_listens_on_loopback_only_and_refuses_a_taken_port(broker: EmbeddedBroker) -> None:
    assert broker.url == f"kafka://127.0.0.1:{broker.port}"
    with open(f"/proc/{broker.pid}/net/tcp") as table:
        listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    mine = [address for address in listening if int(address.split(":")[1], 16) == broker.port]
    assert mine and all(address.startswith("0100007F") for address in mine)
    with pytest.raises(RuntimeError, match="taken"):
        EmbeddedBroker(broker.port).start()
    broker.stop()
    assert not broker.is_running()


def test_systems_with_prefixes_share_brokers(broker: EmbeddedBroker) -> None:
    logs = [KafkaLog(Brokers(broker.url, prefix=prefix)) for prefix in ("", "a.", "b.")]
    assert len({log.id for log in logs}) == 3
    for number, log in enumerate(logs):
        log.create(Topic("t", number + 1))
        log.append("t", some(number + 1))
    for number, log in enumerate(logs):
        assert log.partitions("t") == number + 1 and len(log.read("t", 0, 0)) == number + 1
        assert log.end("t", 0) == number + 1
        assert log.read_each("t", {0: [0]})[0, 0]
    names = set(logs[0]._admin.list_topics())
    assert names >= {"t", "a.t", "b.t", "a." + kafka_log.ID_TOPIC}
    assert KafkaLog(Brokers(broker.url, prefix="a.")).id == logs[1].id
    with pytest.raises(KeyError, match='there are: t"$'):
        logs[2].partitions("other")
    for log in logs:
        log.close()


def test_appended_batches_are_compressed(broker: EmbeddedBroker) -> None:
    sizes = []
    for compression in ("none", "zstd", "gzip"):
        log = KafkaLog(Brokers(broker.url, compression=compression))
        log.create(Topic(compression))
        log.append(compression, some(200, size=500))
        assert len(log.read(compression, 0, 0)) == 200
        consumer = KafkaConsumer(bootstrap_servers=broker.url.removeprefix("kafka://"), group_id=None)
        at = TopicPartition(compression, 0)
        consumer.assign([at])
        consumer.seek(at, 0)
        fetched: list[int] = []
        parse = consumer._fetcher._parse_fetched_data
        consumer._fetcher._parse_fetched_data = lambda done, parse=parse, fetched=fetched: (
            fetched.append(len(done.partition_data.records or b"")) or parse(done)
        )
        while sum(map(len, consumer.poll(200).values())) == 0:
            pass
        sizes.append(sum(fetched))
        consumer.close()
        log.close()
    assert sizes[0] > 100_000 and max(sizes[1:]) < sizes[0] / 5
