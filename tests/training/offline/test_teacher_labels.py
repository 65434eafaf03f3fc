"""What a student's teacher says of examples, how it is kept, and that it is learned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.config.system_config import tables_of
from recsys.model.model import build_model
from tests.support.training.offline_examples import (
    FOUR,
    MODEL,
    MemoryBlocks,
    MemoryCheckpoints,
    toy_blocks,
    toy_trainer,
)
from tests.support.training.small_feed import FEATURES, example
from training.candidates.registry import SnapshotRef
from training.continual.learner import Learner
from training.offline.distill import with_teacher
from training.offline.initial_state import Ancestor, build_trainer, count_vocabularies
from training.offline.loop import OfflineLoop, Plan
from training.offline.tables import OwnTable
from training.offline.teacher_labels import TeacherBlocks, frozen_teacher, online_teacher, write_labels
from training.offline.trainer import OfflineTrainer

SMALL = replace(MODEL, dim=2, hidden=(4,))
NAN = np.float32(np.nan)


def student(blocks: MemoryBlocks, share: float | None, made: object = OwnTable) -> OfflineTrainer:
    learner = Learner(build_model(FEATURES, SMALL))
    vocabularies = count_vocabularies(blocks, learner, tables_of(SMALL))
    return build_trainer(FEATURES, SMALL, FOUR, vocabularies, made, share=share)  # type: ignore[arg-type]


def saying(blocks: MemoryBlocks, said: float) -> MemoryBlocks:
    """The same examples, of all of which a teacher says the same."""
    full = [replace(b, taught=np.full_like(b.taught, said)) for b in blocks.blocks]
    return MemoryBlocks(full)


def same(a: OfflineTrainer, b: OfflineTrainer) -> bool:
    one, two = a.export(), b.export()
    return one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def learned(trainer: OfflineTrainer, blocks: MemoryBlocks, times: int = 1) -> OfflineTrainer:
    for _ in range(times):
        for number in range(len(blocks)):
            trainer.learn(blocks.read(number))
    return trainer


def test_a_teacher_that_says_nothing_leaves_the_labels_alone() -> None:
    blocks = toy_blocks(2)
    assert np.isnan(blocks.read(0).taught).all(), "nobody predicted them"
    alone = learned(student(blocks, None), blocks)
    assert same(alone, learned(student(blocks, 0.5), blocks))
    assert same(alone, learned(student(blocks, 0.0), saying(blocks, 0.9)))
    assert not same(alone, learned(student(blocks, 0.5), saying(blocks, 0.9)))


def test_a_teacher_of_other_outputs_is_refused() -> None:
    lane = Learner(build_model(FEATURES, SMALL)).prepare([example(n) for n in range(2)])
    with pytest.raises(ValueError, match="the teacher's probabilities are"):
        with_teacher(lane, np.zeros((1, 1), np.float32))


def test_each_example_has_a_teacher_or_none() -> None:
    """Two halves, each taught while the other isn't, move the parameters as all taught and none taught do."""
    blocks = toy_blocks(1)
    block = blocks.read(0)
    odd_N = np.arange(len(block)) % 2 > 0
    halves = [
        np.where(taught_N[:, None], np.float32(0.9), np.full_like(block.taught, NAN))
        for taught_N in (odd_N, ~odd_N, odd_N | True, odd_N & False)
    ]
    one, other, full, none = (
        learned(student(blocks, 0.5), MemoryBlocks([replace(block, taught=its)])).export()["dense/m"]
        for its in halves
    )
    assert np.allclose(one + other, full + none, atol=1e-6)
    assert np.abs(full - none).max() > 1e-2


def test_the_teacher_alone_is_what_a_student_becomes() -> None:
    blocks = toy_blocks(2)
    flipped = MemoryBlocks(
        [
            replace(b, labels=1 - b.labels, taught=np.concatenate([b.labels, b.labels[:, :1]], 1))
            for b in blocks.blocks
        ]
    )
    its = learned(student(blocks, 1.0), flipped, times=60)
    p = np.concatenate([its.predict(b)[:, 0] for b in blocks.blocks])
    y = np.concatenate([b.labels[:, 0] for b in blocks.blocks])
    assert p[y == 1].mean() > p[y == 0].mean() + 0.1, "the labels said the contrary"


def test_a_line_that_learns_along_tells_before_it_learns() -> None:
    blocks = toy_blocks(3)
    said = list(online_teacher(blocks, FEATURES, MODEL, FOUR, 8))
    assert [its.shape for its in said] == [(24, 3)] * 3
    late = blocks.read(2)
    turned = MemoryBlocks([*blocks.blocks[:2], replace(late, labels=1 - late.labels)])
    others = list(online_teacher(turned, FEATURES, MODEL, FOUR, 8))
    assert np.array_equal(said[1], others[1]), "what comes later says nothing"
    assert np.array_equal(said[2][:8], others[2][:8]), "nor do the labels of its own step"
    assert not np.array_equal(said[2][8:], others[2][8:])
    replica = toy_trainer(blocks)
    replica.learn(blocks.read(0).take(slice(0, 8)))
    second = blocks.read(0).take(slice(8, 16))
    assert np.array_equal(said[0][8:16], replica.predict(second)), "as replicas would have answered"


def test_a_frozen_teacher_says_what_it_predicts() -> None:
    blocks = toy_blocks(2)
    trained = learned(toy_trainer(blocks), blocks)
    ancestor = Ancestor(SnapshotRef("cand-1", 0, 2, "0" * 64), [trained.export()])
    said = list(frozen_teacher(blocks, FEATURES, MODEL, FOUR, ancestor))
    for number, block_NL in enumerate(said):
        assert np.allclose(block_NL, trained.predict(blocks.read(number)), atol=1e-6)


def test_what_is_said_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    blocks, folder = toy_blocks(2), tmp_path / "taught"

    def dies():  # type: ignore[no-untyped-def]
        yield np.zeros((24, 3), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_labels(folder, dies())
    assert not folder.exists()
    write_labels(folder, iter([np.full((24, 3), k / 10, np.float32) for k in (1, 2)]))
    kept = TeacherBlocks(blocks, folder)
    assert len(kept) == 2 and (kept.read(1).taught == np.float32(0.2)).all()
    assert np.array_equal(kept.read(1).labels, blocks.read(1).labels)


def test_a_taught_job_that_is_killed_ends_with_the_same_bits() -> None:
    blocks, plan = saying(toy_blocks(), 0.7), Plan(last=3, epochs=2, step_examples=8)
    whole = student(blocks, 0.5)
    expected = OfflineLoop(blocks, whole, MemoryCheckpoints(), plan).run()
    files, kills = MemoryCheckpoints(fails_at=tuple(range(1, 9, 3))), 0
    for _ in range(20):
        again = student(blocks, 0.5)
        try:
            metrics = OfflineLoop(blocks, again, files, plan).run()
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 1 and metrics == expected and same(again, whole)


@pytest.mark.slow
def test_both_kinds_of_table_learn_the_same_student() -> None:
    from training.offline.torchrec_tables import TorchrecTable  # two seconds

    blocks = saying(toy_blocks(), 0.7)
    one, two = (learned(student(blocks, 0.5, made), blocks).export() for made in (OwnTable, TorchrecTable))
    for name, array in one.items():
        assert np.allclose(array, two[name], atol=1e-5), name
