"""Examples are compressed on the log, and trained as the joiner made them: to the last bit, in any mixture
with those that an older version wrote."""

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.learning.bench_join import CONFIG, FEATURES, START_MS, draw_events
from plugins.answer_explanation.reconstructed_session import impression_of
from recsys.events.event_types import Event, Impression, Tick, encode
from recsys.events.hashing import partition_of
from recsys.events.records import (
    EVENTS,
    EXAMPLES,
    STEPS,
    Example,
    Range,
    Step,
    TrainingExample,
    pack,
    record_of,
    topics,
    unpack,
)
from recsys.features.feature_builder import FeatureBuilder
from recsys.log.compression import plain
from recsys.log.protocol import Append, MemoryLog
from training.archive.writer import Archive, archived_rows
from training.forgetting.panel_log import read_corrections
from training.joining.joiner import Joiner
from training.joining.joiner_loop import JoinerLoop
from training.lines.offset_lookup import served_ms_of
from training.outcomes.shown_item import closed_ms_of
from training.steps.sequencer_loop import SequencerLoop
from training.steps.step_reader import ExampleCheck, read_lanes

PARTITIONS = CONFIG.log.partitions


def events_of(seed: int, count: int) -> list[Event]:
    events = draw_events(count, seed)
    return [*events, Tick(time_ms=events[-1].time_ms + 120_000)]


def joined(events: list[Event], old: int = 0) -> MemoryLog:
    """A log with events and their examples. An older version wrote the first ``old`` impressions."""
    log = MemoryLog()
    for topic in topics(PARTITIONS):
        log.create(topic)
    for event in events:
        if isinstance(event, Tick):
            log.append(EVENTS, [Append(p, b"", encode(event)) for p in range(PARTITIONS)])
            continue
        record = record_of(event, PARTITIONS)
        if isinstance(event, Impression) and old > 0:
            old, record = old - 1, record._replace(value=encode(event))
        log.append(EVENTS, [record])
    loop = JoinerLoop(log, CONFIG, FEATURES, lambda: 0)
    while loop.turn():
        pass
    return log


def made(events: list[Event]) -> list[list[Example]]:
    """The examples of the pure joiners, by partition."""
    examples = []
    for partition in range(PARTITIONS):
        own = [e for e in events if isinstance(e, Tick) or _partition(e) == partition]
        shown = {n: e for n, e in enumerate(own) if isinstance(e, Impression)}
        joiner = Joiner(partition, FEATURES.schema.labels, CONFIG.join, shown.get)
        out = [one for offset, event in enumerate(own) for one in joiner.feed(offset, event)]
        examples.append([one for one in out if isinstance(one, Example)])
    return examples


def _partition(event: Event) -> int:
    return partition_of(getattr(event, "user_id", ""), PARTITIONS)


def values(log: MemoryLog, partition: int) -> list[bytes]:
    return [record.value for record in log.read(EXAMPLES, partition, 0, 1 << 30)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), count=st.integers(20, 150), old=st.integers(0, 5))
def test_examples_come_back_as_they_were_made(seed, count, old):
    events = events_of(seed, count)
    log = joined(events, old)
    for partition, examples in enumerate(made(events)):
        assert [plain(value) for value in values(log, partition)] == list(map(pack, examples))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), picks=st.lists(st.booleans(), min_size=1, max_size=7))
def test_a_step_reads_the_same_from_old_and_new_records(seed, picks):
    log = joined(events_of(seed, 150))
    partition = max(range(PARTITIONS), key=lambda p: log.end(EXAMPLES, p))
    before = values(log, partition)
    check = ExampleCheck(FEATURES, FeatureBuilder(FEATURES).dense_width)
    count = len(before)
    step = Step(
        line="main", epoch=0, step=1, ranges=[Range(partition, 0, count)], examples=count,
        lanes=2, time_ms=0, config="",
    )  # fmt: skip
    compressed = read_lanes(log, step, [0, 1], check)
    mixed = [
        record._replace(value=plain(record.value)) if picks[n % len(picks)] else record
        for n, record in enumerate(log.read(EXAMPLES, partition, 0, count))
    ]
    log.replace(EXAMPLES, partition, mixed)
    assert read_lanes(log, step, [0, 1], check) == compressed
    made_of = [unpack(plain(value), TrainingExample) for value in before]
    assert [e for lane in compressed.values() for e in lane.examples] == made_of
    assert not any(lane.left_out for lane in compressed.values())


def plain_copy(log: MemoryLog) -> MemoryLog:
    """The log as an older version wrote it."""
    copy = MemoryLog()
    for topic in topics(PARTITIONS):
        copy.create(topic)
        for partition in range(topic.partitions):
            records = log.read(topic.name, partition, 0, 1 << 30)
            copy.append(topic.name, [Append(partition, r.key, plain(r.value)) for r in records])
    return copy


def steps_of(log: MemoryLog) -> list[bytes]:
    now_ms = iter(range(START_MS, 1 << 60, 60_000))
    loop = SequencerLoop(log, CONFIG, FEATURES, lambda: next(now_ms))
    while loop.turn() or loop.waiting:
        pass
    assert not loop.unreadable
    return [record.value for record in log.read(STEPS, 0, 0, 1 << 30)]


def archived_of(log: MemoryLog, folder: Path) -> list[tuple[Any, ...]]:
    writer = Archive(log, folder, lambda: START_MS)
    while writer.turn():
        pass
    writer.flush()
    columns = ["topic", "partition", "offset", "type", "user_id", "request_id", "value"]
    return [row for topic in (EVENTS, EXAMPLES) for row in archived_rows(folder, topic, columns)]


def test_readers_see_no_difference(tmp_path):
    log = joined(events_of(3, 600))
    old = plain_copy(log)
    partitions = range(PARTITIONS)
    assert steps_of(log) == steps_of(old) != []
    for partition in partitions:
        for value in values(log, partition):
            assert closed_ms_of(value) == closed_ms_of(plain(value)) > 0
        for record in log.read(EVENTS, partition, 0, 1 << 30):
            assert served_ms_of(record.value) == served_ms_of(plain(record.value))
    starts = dict.fromkeys(partitions, 0)
    assert read_corrections(log, starts) == read_corrections(old, starts)
    assert read_corrections(log, starts).labels
    # The archive compresses rows together, so it takes the records expanded.
    assert archived_of(log, tmp_path / "new") == archived_of(old, tmp_path / "old")


def test_an_impression_is_found_by_its_request():
    request_id = "0" * 31 + "3"  # it repeats itself, so its bytes don't stand in the frame
    shown = next(e for e in draw_events(100, 4) if isinstance(e, Impression))
    value = record_of(replace(shown, request_id=request_id), PARTITIONS).value
    assert request_id.encode() not in value
    found = impression_of(value, request_id)
    assert found is not None and found.items == shown.items
    assert impression_of(value, shown.request_id) is None
    assert impression_of(value[:-1], request_id) is None


def test_examples_shrink():
    log = joined(events_of(1, 3_000))
    pairs = [(len(v), len(plain(v))) for p in range(PARTITIONS) for v in values(log, p)]
    assert sum(small for small, _ in pairs) < 0.6 * sum(large for _, large in pairs)
