"""Which records a worker reads for its lanes, and that a lane is checked at once as it is one by one."""

import math
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from recsys.events.records import Range, Step, pack
from recsys.log.protocol import LogLost, Record
from tests.support.training.small_feed import DENSE, FEATURES, block, example
from training.steps.step_reader import ExampleCheck, read_lanes

CHECK = ExampleCheck(FEATURES, DENSE)
STEP = Step(line="main", epoch=0, step=1, ranges=[Range(0, 4, 14), Range(1, 0, 6)], examples=16, lanes=4,
            time_ms=0, config="")  # fmt: skip


@dataclass
class Spaced:
    """Two partitions whose offsets are ``gap`` apart, and how many records were read of them."""

    gap: int
    read_: list[tuple[int, int]] = field(default_factory=list)

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        offsets = [o for o in range(0, 100, self.gap) if o >= offset][: min(limit, 3)]
        self.read_ += [(partition, o) for o in offsets]
        return [Record(o, b"", pack(example(o, partition=partition, offset=o))) for o in offsets]


def places(log: Spaced, step: Step, own: range) -> dict[int, list[tuple[int, int]]]:
    lanes = read_lanes(log, step, own, CHECK)  # type: ignore[arg-type]
    return {lane: [(e.partition, e.offset) for e in its.examples] for lane, its in lanes.items()}


def test_without_holes_only_the_own_lanes_are_read() -> None:
    log = Spaced(1)
    found = places(log, STEP, range(1, 4, 2))
    assert found == {1: [(0, 8), (0, 9), (0, 10), (0, 11)], 3: [(1, 2), (1, 3), (1, 4), (1, 5)]}
    beyond = 2  # a read returns three at a time here
    assert len(log.read_) <= 8 + 2 * beyond
    assert places(log, STEP, range(4)) | found == places(log, STEP, range(4))


def test_with_holes_a_lane_is_cut_by_number_not_by_offset() -> None:
    step = msgspec.structs.replace(STEP, ranges=[Range(0, 4, 14), Range(1, 0, 6)], examples=8)
    found = places(Spaced(2), step, range(4))
    assert sum(found.values(), []) == [*((0, o) for o in range(4, 14, 2)), (1, 0), (1, 2), (1, 4)]
    assert [len(its) for its in found.values()] == [2, 2, 2, 2]
    with pytest.raises(LogLost, match="was cut from 9 examples"):
        places(Spaced(2), msgspec.structs.replace(step, examples=9), range(4))


def with_dense(value: float) -> msgspec.Struct:
    features = block(1)
    dense = np.frombuffer(features.dense, np.float32).copy()
    dense[0] = value
    return msgspec.structs.replace(features, dense=dense.tobytes())


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": None},
        {"features": msgspec.structs.replace(block(1), feature_set="other")},
        {"features": msgspec.structs.replace(block(1), item_keys=b"")},
        {"features": with_dense(math.nan)},
        {"labels": [0.0]},
        {"labels": [0.0, 1.5]},
        {"labels": [math.nan, 1.0]},
        {"watch_ms": -1},
        {"watch_ms": 1 << 53},
        {"correction": True, "previous": [1.0]},
    ],
)
def test_a_lane_is_checked_at_once_as_it_is_one_by_one(wrong: dict[str, object]) -> None:
    sound, bad = example(1), example(2, **wrong)
    assert CHECK.reason(bad) and not CHECK.all_fit([sound, bad]) and not CHECK.all_fit([bad])
    assert not CHECK.reason(sound) and CHECK.all_fit([sound, sound]) and CHECK.all_fit([])
