"""Several joiners make the examples of one, with the same sequence numbers, when their number changes too."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events.records import EVENTS, EXAMPLES, Example
from recsys.log.protocol import MemoryLog
from recsys.process.part_snapshot import PartState
from recsys.process.worker_share import Share
from tests.support.training.learning_loops import Clock, drain, everything
from tests.support.training.small_feed import FEATURES, PARTITIONS, append_events, feed, toy_config, toy_log
from training.joining.joiner_loop import JoinerLoop


def joiner(log: MemoryLog, folder: Path, share: Share, memory_mb: float = 512.0) -> JoinerLoop:
    """A worker as after kill -9: only snapshots are left."""
    config = toy_config()
    config = replace(config, join=replace(config.join, memory_mb=memory_mb))
    return JoinerLoop(log, config, FEATURES, Clock(), PartState(folder, "joiner"), share=share)


def join_all(log: MemoryLog, folder: Path, workers: int) -> list[list[Example]]:
    for index in range(workers):
        loop = joiner(log, folder, Share(index, workers))
        drain(loop)
        loop.save()
        loop.close()
    return everything(log, EXAMPLES, Example)


def alone(requests: int, folder: Path) -> list[list[Example]]:
    log = toy_log()
    append_events(log, feed(requests))
    return join_all(log, folder, 1)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_the_examples_of_one(tmp_path: Path, workers: int) -> None:
    log = toy_log()
    append_events(log, feed(60))
    assert join_all(log, tmp_path / "shared", workers) == alone(60, tmp_path / "alone")


def test_a_worker_reads_and_holds_its_partitions_only(tmp_path: Path) -> None:
    log = toy_log()
    append_events(log, feed(60))
    loop = joiner(log, tmp_path, Share(1, 3))
    drain(loop)
    loop.save()
    assert list(loop.offsets) == [1]
    assert [bool(log.holds(EVENTS, partition)) for partition in range(PARTITIONS)] == [0, 1, 0]
    assert [bool(examples) for examples in everything(log, EXAMPLES, Example)] == [0, 1, 0]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), max_size=6))
def test_whenever_the_number_of_workers_changes_nothing_is_lost_or_joined_twice(
    changes: list[tuple[int, bool, bool]],
) -> None:
    """Each change: the number of workers, whether they save before they are killed, and whether one of them
    doesn't run meanwhile. Their memory is small, so that state is on disk."""
    with TemporaryDirectory() as folder:
        log, events = toy_log(), feed(60)
        step = len(events) // (len(changes) + 1) + 1
        for number, (workers, saves, rests) in enumerate([*changes, (3, True, False)]):
            append_events(log, events[number * step : (number + 1) * step])
            for index in range(rests and workers > 1, workers):
                loop = joiner(log, Path(folder) / "shared", Share(index, workers), 0.05)
                drain(loop)
                if saves:
                    loop.save()
                loop.close()
        assert everything(log, EXAMPLES, Example) == alone(60, Path(folder) / "alone")
