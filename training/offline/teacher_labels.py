"""What a student's teacher says of the examples of a job, worked out once, before anything is learned.

    JOB/taught/{000000.npy, …}    a block each, float32 (N, L): NaN where nothing is said

The live line needs no such files: examples have what it predicted. Of other teachers one pass over all blocks
makes them: a line of the system's model that *learns along*, each step predicted before it is learned, as
what is live would have answered; or a candidate of the registry, frozen. No teacher may have learned an
example of the last day before it speaks of it, or the student would be judged by answers that were told.

Legend: N examples of a block, L outputs (labels, then watch time).
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from parameter_server.storage.wal import sync_folder
from recsys.config.system_config import ModelConfig, tables_of
from recsys.features.feature_set import FeatureSet
from recsys.model.model import build_model
from training.candidates.registry import (
    ALONG,
    SERVED,
    Parent,
    Refused,
    Registry,
    Teacher,
    model_config,
    parent_of,
)
from training.continual.learner import Learner
from training.offline.cache import Cache
from training.offline.examples import Examples
from training.offline.loop import Blocks
from training.offline.setup import Ancestor, ancestor_at, build_trainer, count_vocabularies
from training.offline.tables import OwnTable

FOLDER: Final = "taught"
_PREDICTED_AT_ONCE: Final = 1_024
Floats = NDArray[np.float32]


class Teaching(msgspec.Struct, frozen=True, kw_only=True):
    """How a student is taught. ``by``: served, along, or the name of a candidate in the registry, whose
    ``snapshot`` this is; ``model`` is the teacher's, or where it served the system's."""

    by: str
    share: float
    model: ModelConfig
    snapshot: Parent | None = None


class TeacherBlocks:
    """Blocks with what a teacher says in the place of what was predicted when they were served."""

    def __init__(self, blocks: Blocks, folder: Path) -> None:
        self._blocks, self._folder = blocks, folder

    def __len__(self) -> int:
        return len(self._blocks)

    def read(self, number: int) -> Examples:
        block = self._blocks.read(number)
        said: Floats = np.load(_file(self._folder, number))
        assert said.shape == block.taught.shape, "it was written for other blocks"
        return replace(block, taught=said)


def online_teacher(
    blocks: Blocks, features: FeatureSet, model: ModelConfig, lanes: int, step_examples: int
) -> Iterator[Floats]:
    """What a line says that learns all blocks once, in event time: of each step before it learns it, with
    the averaged dense parameters, as replicas would."""
    tables = tables_of(model)
    vocabularies = count_vocabularies(blocks, Learner(build_model(features, model)), tables)
    trainer = build_trainer(features, model, lanes, vocabularies, OwnTable)
    for number in range(len(blocks)):
        said = []
        for some in _cut(blocks.read(number), step_examples):
            said.append(trainer.predict(some))
            trainer.learn(some)
        yield np.concatenate(said)


def frozen(
    blocks: Blocks, features: FeatureSet, model: ModelConfig, teacher: Ancestor
) -> Iterator[Floats]:
    """What a candidate of this model says, as it is."""
    vocabularies = {table.name: teacher.vocabulary(table.name) for table in tables_of(model)}
    trainer = build_trainer(features, model, 1, vocabularies, OwnTable, teacher)
    for number in range(len(blocks)):
        block = blocks.read(number)
        yield np.concatenate([trainer.predict(some) for some in _cut(block, _PREDICTED_AT_ONCE)])


def write(folder: Path, said: Iterator[Floats]) -> None:
    """Keeps what a teacher says of each block, in order; whole or not at all."""
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a job that was killed
    beside.mkdir(parents=True)
    for number, block_NL in enumerate(said):
        with _file(beside, number).open("wb") as file:
            np.save(file, block_NL)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(beside)
    os.rename(beside, folder)
    sync_folder(folder.parent)


def chosen(
    teacher: str,
    share: float,
    model: ModelConfig,
    features: FeatureSet,
    registry: Path,
    cache: Cache,
) -> Teaching:
    """The teaching that was asked for. ``teacher``: a candidate; empty: the live line, or where the examples
    are of no log, a line of ``model``, the system's, that learns along.

    Raises Refused for a candidate that can't be a teacher here, ValueError where nobody would teach.
    """
    about = cache.about
    if teacher:
        its = Registry(registry).provenance(teacher)
        theirs = model_config(its)
        _, snapshot = Registry(registry).check(
            teacher, features, theirs, holdout_from_ms=about.last_ms, log_id=None
        )
        return Teaching(by=teacher, share=share, model=theirs, snapshot=parent_of(snapshot))
    if not about.log_id:
        return Teaching(by=ALONG, share=share, model=model)
    if share and not about.predicted:
        raise ValueError(
            f"none of {about.examples} examples says what the live line predicted of it, and the "
            f"teacher's share is {share}: name a candidate that teaches (--teacher), or learn from the "
            "labels alone (--teacher-share 0)"
        )
    return Teaching(by=SERVED, share=share, model=model)


def prepare(
    folder: Path, teaching: Teaching, features: FeatureSet, registry: Path, cache: Cache, lanes: int,
    step_examples: int,
) -> None:  # fmt: skip
    """Works out what the teacher says, where that isn't done and examples don't have it. Raises Refused where
    the candidate that teaches isn't there any more."""
    if not _is_asked(teaching) or folder.exists():
        return
    model = teaching.model
    if teaching.by == ALONG:
        write(folder, online_teacher(cache, features, model, lanes, step_examples))
        return
    dense = build_model(features, model).dense_size()
    its = ancestor_at(registry, teaching.by, model, dense, cache.about.forgotten)
    if its.parent != teaching.snapshot:
        raise Refused(f"candidate {teaching.by} isn't the one that was to teach: begin anew")
    write(folder, frozen(cache, features, model, its))


def taught_blocks(folder: Path, teaching: Teaching | None, cache: Cache) -> Blocks:
    """The blocks that a job learns, with what its teacher says, where it has one."""
    asked = teaching is not None and _is_asked(teaching)
    return TeacherBlocks(cache, folder) if asked else cache


def teacher_of(teaching: Teaching, cache: Cache) -> Teacher:
    """Who taught, as the candidate says it."""
    about = cache.about
    served = about.predicted if teaching.by == SERVED else {}
    return Teacher(
        by=teaching.by,
        share=teaching.share,
        examples=sum(served.values()) if teaching.by == SERVED else about.examples,
        served=served,
        snapshot=teaching.snapshot,
    )


def _is_asked(teaching: Teaching) -> bool:
    """Whether a teacher has to be asked before learning."""
    return teaching.share > 0 and teaching.by != SERVED


def _cut(block: Examples, size: int) -> Iterator[Examples]:
    for start in range(0, len(block), size):
        yield block.take(slice(start, start + size))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"
