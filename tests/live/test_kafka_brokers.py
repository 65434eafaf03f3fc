"""Three brokers of Apache Kafka with three copies, each killed in turn under load.

Nothing acknowledged is lost, and nothing is counted twice. The tests print their figures.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.audited_system import AuditedSystem, audited_config
from recsys.config.log_config import LogConfig
from recsys.log.kafka_log import KafkaLog
from recsys.log.protocol import Append, Log, LogUnavailable, Topic, read_range
from recsys.process.log_consumer import Consumer
from tests.support.systems.apache_kafka import ApacheKafka, needs_jars
from tests.support.systems.live_system import until

pytestmark = [pytest.mark.services, pytest.mark.brokers, pytest.mark.timeout(1500), needs_jars]
BROKERS = 3
PARTITIONS = 3
AGAIN_S = 180.0  # for appends to be acknowledged again, and for a system to be whole again
SECURE = {"PLAIN": "none", "SASL": "zstd", "MTLS": "gzip"}  # with the compression of each


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path_factory.mktemp("kafka"), BROKERS) as started:
        yield started


class Pauses:
    """The longest time for which a count didn't grow, looked at twenty times a second."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count, self._longest_s, self._ends = count, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def longest_s(self) -> float:
        """Since the last call."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return round(longest_s, 1)

    def close(self) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        before, since_s = self._count(), time.monotonic()
        while not self._ends.wait(0.05):
            if (now := self._count()) != before:
                before, since_s = now, time.monotonic()
            self._longest_s = max(self._longest_s, time.monotonic() - since_s)


class Flow:
    """One thread that appends numbers to each partition in turn, again until they are acknowledged, and one
    that follows them with a client of its own."""

    def __init__(self, config: LogConfig, topic: str) -> None:
        self.acknowledged: list[int] = []
        self.again = 0
        self.read: list[tuple[int, int, int]] = []  # partition, offset, number
        self.errors: list[BaseException] = []
        self._config, self._topic = config, topic
        self._threads = {
            ends: threading.Thread(target=self._run, args=(act, ends), daemon=True)
            for act in (self._append, self._follow)
            for ends in [threading.Event()]
        }
        for thread in self._threads.values():
            thread.start()

    def goes_on(self) -> None:
        """Waits until more is acknowledged, of each partition."""
        count = len(self.acknowledged) + 50
        until(lambda: len(self.acknowledged) > count, AGAIN_S, "appends are acknowledged")

    def close(self, log: Log) -> None:
        """Ends the appends, and the reads once they have all that is on the log."""
        for ends, thread in self._threads.items():
            ends.set()
            thread.join(60)
            count = sum(log.end(self._topic, partition) for partition in range(PARTITIONS))
            until(lambda count=count: len(self.read) >= count, AGAIN_S, "all is read")

    def _run(self, act: Callable[[KafkaLog, threading.Event], None], ends: threading.Event) -> None:
        try:
            with closing(KafkaLog(self._config)) as log:
                act(log, ends)
        except BaseException as error:
            self.errors.append(error)

    def _append(self, log: KafkaLog, ends: threading.Event) -> None:
        for number in itertools.count():
            while True:
                if ends.is_set():
                    return
                try:
                    log.append(self._topic, [Append(number % PARTITIONS, b"", b"%d" % number)])
                except LogUnavailable:
                    self.again += 1
                    continue
                self.acknowledged.append(number)
                break

    def _follow(self, log: KafkaLog, ends: threading.Event) -> None:
        consumer = Consumer(log, self._topic, range(PARTITIONS))
        while not ends.is_set():
            with suppress(LogUnavailable):
                polled = consumer.poll()
                self.read += [(p, r.offset, int(r.value)) for p, r in polled]
                if not polled:
                    log.wait(self._topic, 0.1)


@pytest.mark.parametrize("listener", SECURE)
def test_each_broker_is_killed_under_appends(listener: str, brokers: ApacheKafka) -> None:
    config = brokers.config(listener, compression=SECURE[listener])
    with closing(KafkaLog(config)) as log:
        log.create(Topic(listener, PARTITIONS))
        flow = Flow(config, listener)
        pauses = Pauses(lambda: len(flow.acknowledged))
        longest_s = []
        for killed in range(BROKERS):
            flow.goes_on()
            pauses.longest_s()
            brokers.run_without(killed)
            flow.goes_on()
            longest_s.append(pauses.longest_s())
            brokers.run_without(None)
        pauses.close()
        flow.close(log)
        assert not flow.errors
        stored = [
            (p, record.offset, int(record.value))
            for p in range(PARTITIONS)
            for record in read_range(log, listener, p, 0, log.end(listener, p))
        ]
    copies = Counter(number for _, _, number in stored)
    assert not set(flow.acknowledged) - copies.keys()
    assert sorted(flow.read) == stored, "each record is read once"
    for partition in range(PARTITIONS):
        of_one = [number for p, _, number in flow.read if p == partition]
        assert list(dict.fromkeys(of_one)) == sorted(set(of_one)), "in the order of appends"
    print({
        "listener": listener, "acknowledged": len(flow.acknowledged), "appended_again": flow.again,
        "twice_on_log": sum(count > 1 for count in copies.values()), "longest_pause_s": longest_s,
    })  # fmt: skip


def test_a_whole_system_goes_on_when_each_broker_is_killed(brokers: ApacheKafka, tmp_path: Path) -> None:
    log = brokers.config("SASL", prefix="system.", compression="zstd")
    with AuditedSystem(replace(audited_config(), state=str(tmp_path / "state"), log=log)) as system:
        viewers, rows = system.viewers, []
        pauses = Pauses(lambda: len(viewers.acknowledged))
        for killed in range(BROKERS):
            expected, began_s = system.expected(), time.monotonic()
            pauses.longest_s()
            brokers.run_without(killed)
            whole_s = system.wait_healthy(expected, AGAIN_S)
            assert whole_s is not None, system.unhealthy_reason(expected)
            rows.append((pauses.longest_s(), round(time.monotonic() - began_s, 1)))
            brokers.run_without(None)
            assert system.wait_healthy(system.expected(), AGAIN_S) is not None
        pauses.close()
        figures = system.audit()
    print({"longest_pause_and_whole_after_s": rows, **figures})
    assert figures["settled"] and not figures["violations"]
