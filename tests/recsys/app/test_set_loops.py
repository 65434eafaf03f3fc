"""A new set is folded beside the one that answers; the older one ends once all replicas answer with it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from recsys.app.logged_sets import BlockReader
from recsys.app.set_loops import SetLoops, SetsInUse
from recsys.events.control_records import ALONE, ANSWERS, FOLDED, Definition, Live
from recsys.events.event_types import FeatureBlock
from recsys.events.records import CONTROL, pack, topics
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet, set_text
from recsys.log.protocol import Append, MemoryLog
from recsys.model.wider_set import Narrowing, united
from tests.support.training.small_feed import FEATURES

WIDE = united(FEATURES, replace(FEATURES, declared=Declared(half_lives_h=(1.0, 6.0, 336.0))))
NEW = WIDE.digest


class Loop:
    """Counts its turns; each consumes ten records."""

    def __init__(self, name: str, features: FeatureSet) -> None:
        self.name, self.features, self.ended = name, features, False
        self.limits: list[int] = []

    @property
    def offsets(self) -> list[int]:
        return [10 * len(self.limits)]

    def turn(self, limit: int = 1_000) -> int:
        self.limits.append(limit)
        return 10

    def end(self) -> None:
        self.ended = True


def definition(stage: str, logged: FeatureSet = WIDE) -> Definition:
    return Definition(digest="d", reads="", logged=set_text(logged), before=set_text(FEATURES), stage=stage)


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    return log


def say(log: MemoryLog, *stages: str) -> None:
    log.append(CONTROL, [Append(0, b"", pack(definition(stage))) for stage in stages])


@pytest.fixture
def made(log: MemoryLog) -> Iterator[list[Loop]]:
    yield []


def loops_of(log: MemoryLog, made: list[Loop]) -> SetLoops[Loop]:
    def make(name: str, features: FeatureSet) -> Loop:
        made.append(Loop(name, features))
        return made[-1]

    return SetLoops(log, FEATURES, make)


def test_a_new_set_is_folded_beside_the_first_until_it_is_alone(log: MemoryLog, made: list[Loop]) -> None:
    loops = loops_of(log, made)
    loops.turn()
    say(log, FOLDED)
    assert loops.turn() == 20 and loops.behind == 10
    first, new = made
    assert (first.name, new.name, new.features) == ("", NEW, WIDE)
    assert first.limits == [1_000, 1_000] and 0 < new.limits[0] < 1_000
    say(log, ANSWERS)
    assert loops.turn() == 20 and loops.oldest is first
    say(log, ALONE)
    assert loops.turn() == 10 and loops.oldest is new and loops.behind == 0
    assert first.ended and not new.ended


def test_a_restarted_fold_goes_on_with_the_sets_in_use(log: MemoryLog, made: list[Loop]) -> None:
    say(log, FOLDED, ANSWERS)
    assert list(loops_of(log, made).loops) == ["", NEW]
    say(log, ALONE)
    made.clear()
    again = loops_of(log, made)
    assert list(again.loops) == [NEW]
    assert [(loop.name, loop.ended) for loop in made] == [(NEW, False), ("", True)]


def test_a_change_that_was_given_up_ends(log: MemoryLog, made: list[Loop]) -> None:
    say(log, FOLDED)
    loops = loops_of(log, made)
    log.append(CONTROL, [Append(0, b"", pack(definition(ALONE, FEATURES)))])
    loops.turn()
    assert list(loops.loops) == [""] and made[1].ended


def test_replicas_answer_with_a_set_once_it_is_folded() -> None:
    in_use = SetsInUse(FEATURES)
    assert not in_use.fold(Live(line="main", epoch=0))
    for stage, answers in ((FOLDED, FEATURES), (ANSWERS, WIDE), (ALONE, WIDE)):
        assert in_use.fold(definition(stage))
        assert in_use.answers == answers and in_use.name(answers) in in_use.sets
    assert in_use.name(FEATURES) == "" and in_use.sets == {NEW: WIDE}


def block_of(features: FeatureSet) -> FeatureBlock:
    dense = bytes(4 * len(features.dense_names))
    return FeatureBlock(feature_set=features.digest, dense=dense)


def test_blocks_of_later_sets_are_read_where_they_have_the_columns(log: MemoryLog) -> None:
    reader = BlockReader(log, FEATURES)
    say(log, FOLDED)
    assert reader.read(block_of(WIDE)) == Narrowing(WIDE, FEATURES).block(block_of(WIDE))
    assert reader.read(block_of(FEATURES)) == block_of(FEATURES)
    unknown = replace(FEATURES, history=9)
    assert reader.read(block_of(unknown)) == block_of(unknown)
    wider = BlockReader(log, WIDE)  # the first set lacks columns
    assert wider.read(block_of(FEATURES)) == block_of(FEATURES)


@pytest.mark.parametrize("dense", [b"", b"abc", bytes(4)])
def test_a_malformed_block_of_a_later_set_is_left_to_who_reads_it(log: MemoryLog, dense: bytes) -> None:
    say(log, FOLDED)
    block = FeatureBlock(feature_set=WIDE.digest, dense=dense)
    assert BlockReader(log, FEATURES).read(block) == block
