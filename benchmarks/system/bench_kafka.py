"""``recsys bench kafka``: cost of a record on Kafka: appended, read in order, and at single offsets.

The broker is the embedded one, which takes part of the wall time; processor time is this process's alone.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Final

from recsys.config.log_config import LogConfig
from recsys.log.embedded_broker import EmbeddedBroker
from recsys.log.kafka_log import KafkaLog
from recsys.log.protocol import Append, Topic

_TOPIC: Final = "bench"
_PARTITIONS: Final = 2
_APPENDED: Final = 500  # records at once
_JUMPS: Final = 50


def measure_kafka(records: int, size: int, seed: int) -> dict[str, Any]:
    """µs a record of CPU and wall time: appending, reading in order, and at random offsets one by one
    (``jump``) and together (``read_each``), without compression and with zstd."""
    draw = random.Random(seed)
    words = [draw.randbytes(8) for _ in range(200)]
    values = [b"".join(draw.choices(words, k=size // 8)) for _ in range(records)]
    last = records // _PARTITIONS
    offsets = {p: {draw.randrange(last) for _ in range(_JUMPS)} for p in range(_PARTITIONS)}
    acts = {
        "append": partial(_append, values=values),
        "read": partial(_read, records=records),
        "read_each": partial(_each, offsets=offsets),
        "jump": partial(_jump, offsets=offsets),
    }
    figures: dict[str, Any] = {}
    for compression in ("none", "zstd"):
        with _log(compression) as open_one:
            for name, act in acts.items():
                count = records if name in ("append", "read") else sum(map(len, offsets.values()))
                with closing(open_one()) as log:
                    log.create(Topic(_TOPIC, _PARTITIONS))
                    figures[f"{name}_{compression}"] = _cost(count, partial(act, log))
    return figures


@contextmanager
def _log(compression: str) -> Iterator[Callable[[], KafkaLog]]:
    broker = EmbeddedBroker()
    broker.start()
    try:
        yield lambda: KafkaLog(LogConfig(broker.url, compression=compression))
    finally:
        broker.stop()


def _cost(count: int, act: Callable[[], object]) -> dict[str, float]:
    began_s, cpu_s = time.perf_counter(), time.process_time()
    act()
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return {"cpu_us": round(cpu_s / count * 1e6, 1), "wall_us": round(wall_s / count * 1e6, 1)}


def _append(log: KafkaLog, values: list[bytes]) -> None:
    for start in range(0, len(values), _APPENDED):
        block = values[start : start + _APPENDED]
        log.append(_TOPIC, [Append(n % _PARTITIONS, b"user%d" % n, v) for n, v in enumerate(block)])


def _read(log: KafkaLog, records: int) -> None:
    offsets, count = [0] * _PARTITIONS, 0
    while count < records:
        for partition, offset in enumerate(offsets):
            if block := log.read(_TOPIC, partition, offset, _APPENDED):
                offsets[partition] = block[-1].offset + 1
                count += len(block)


def _each(log: KafkaLog, offsets: dict[int, set[int]]) -> None:
    log.read_each(_TOPIC, offsets)


def _jump(log: KafkaLog, offsets: dict[int, set[int]]) -> None:
    for partition, places in offsets.items():
        for offset in places:
            log.read(_TOPIC, partition, offset, 1)
