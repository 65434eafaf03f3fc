"""What the director keeps: one live pointer, the newest snapshots, and the log behind them."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replace_struct

from parameter_server.storage.snapshots import write_part
from recsys.events.control_records import Live
from recsys.events.records import CONTROL, EXAMPLES, STEPS, Range, Step, pack
from recsys.log.protocol import Append, Log, LogLost
from tests.support.training.learning_loops import Clock, everything, step_of, trained_log
from tests.support.training.small_feed import PARTITIONS, append_examples, example, toy_config, toy_log
from training.candidates import space_keeper
from training.candidates.director import Director
from training.steps.step_reader import records_of


def direct(log: Log, folder: Path, clock: Clock) -> Director:
    return Director(log, toy_config(str(folder)), clock)


def test_the_first_live_record_is_written_once(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    for _ in range(3):
        its = direct(log, tmp_path, clock)
        its.turn()
        its.turn()
    live = everything(log, CONTROL, Live)[0]
    assert [(x.line, x.epoch) for x in live] == [("main", 0)] and its.live == live[0]


def test_an_existing_live_pointer_is_followed_not_moved(tmp_path: Path) -> None:
    log = toy_log()
    log.append(CONTROL, [Append(0, b"", pack(Live(line="cand-1", epoch=3)))])
    log.append(CONTROL, [Append(0, b"", b"\xc1rubbish")])
    its = direct(log, tmp_path, Clock())
    its.turn()
    assert its.live is not None and its.live.line == "cand-1" and log.end(CONTROL, 0) == 2


def test_old_snapshots_go_and_the_log_keeps_what_follows_the_oldest_left(tmp_path: Path) -> None:
    log, clock = trained_log(200), Clock()
    its = direct(log, tmp_path, clock)
    its.turn()
    assert not log.holds(EXAMPLES, 0)
    for step in (0, 5, 10, 15, 20):
        write_part(tmp_path / "snapshots", "main", 0, step, 0, 1, {"a": np.zeros(1)}, {})
    clock.now_ms = 5_000
    its.turn()
    assert (its.snapshots.oldest, its.snapshots.removed) == (10, 2)
    after: list[Step] = everything(log, STEPS, Step)[0][10:]
    for partition in range(PARTITIONS):
        first = min(r.start for step in after for r in step.ranges if r.partition == partition)
        assert log.holds(EXAMPLES, partition) == {"snapshots/main": first}
        log.trim(EXAMPLES, partition, 10_000)
    assert all(len(records_of(log, step)) == step.examples for step in after)
    with pytest.raises(LogLost):
        records_of(log, everything(log, STEPS, Step)[0][9])


def test_a_quiet_partition_is_held_where_it_ended_before_the_oldest_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space_keeper, "_AHEAD", 3)
    log, clock = toy_log(), Clock()
    append_examples(log, [example(3 * n + p, sequence=n + 1) for n in range(20) for p in (0, 1)])
    touched, ends = {1: (0, 1), 2: (0,), 3: (0, 1), 12: (0,), 14: (0, 1), 20: (0, 1)}, [0, 0]
    for number in range(1, 30):
        ranges = [Range(p, ends[p], ends[p] + 1) for p in touched.get(number, ())]
        for part in ranges:
            ends[part.partition] = part.stop
        step = replace_struct(step_of("main", number), ranges=ranges)
        log.append(STEPS, [Append(0, b"", pack(step)), Append(0, b"", b"\xc1no step")])
    its = direct(log, tmp_path, clock)
    held = []
    for oldest in (5, 9, 15, 25):
        monkeypatch.setattr(space_keeper.snapshots, "complete_steps", lambda *_, step=oldest: [step])
        clock.now_ms += 5_000
        its.turn()
        held.append([log.holds(EXAMPLES, p)["snapshots/main"] for p in range(PARTITIONS)])
    assert held == [[3, 2, 0], [3, 2, 0], [5, 3, 0], [6, 4, 0]]


def test_an_epoch_that_never_was_live_says_nothing_of_where_partitions_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, clock = toy_log(), Clock()
    append_examples(log, [example(3 * n, sequence=n + 1) for n in range(20)])
    for epoch, number, ranges in (
        (0, 1, [Range(0, 0, 3)]),
        (1, 1, [Range(0, 0, 9)]),  # its making ended in the middle
        (2, 2, []),
        (2, 3, []),
    ):
        step = replace_struct(step_of("main", number), epoch=epoch, ranges=ranges)
        log.append(STEPS, [Append(0, b"", pack(step))])
    log.append(CONTROL, [Append(0, b"", pack(Live(line="main", epoch=2)))])
    monkeypatch.setattr(space_keeper.snapshots, "complete_steps", lambda *_: [2])
    its = direct(log, tmp_path, clock)
    its.turn()
    assert its.snapshots.oldest == 2 and log.holds(EXAMPLES, 0) == {"snapshots/main": 3}
