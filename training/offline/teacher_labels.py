"""Computes the predictions of a student's teacher for the examples of a job, before anything is learned.

    JOB/taught/{000000.npy, …}    a block each, float32 (N, L): NaN without a prediction

Examples have those of the live line. For other teachers one pass over all blocks makes them: a line of the
system's model that *learns along*, predicting each step before it learns it; or a candidate of the registry,
frozen. No teacher may have learned an example of the last day before predicting it.

Legend: N examples of a block, L outputs (labels, then watch time).
"""

import os
import shutil
from collections import deque
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
    Refused,
    Registry,
    SnapshotRef,
    Teacher,
    model_config,
    reference_to,
)
from training.continual.learner import Learner
from training.offline.cache import Cache
from training.offline.examples import Examples
from training.offline.initial_state import Ancestor, build_trainer, count_vocabularies, load_ancestor
from training.offline.loop import Blocks
from training.offline.sharding import Sharding
from training.offline.tables import OwnTable

_PREDICTED_AT_ONCE: Final = 1_024
Floats = NDArray[np.float32]


class TeacherConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Teacher of a student. ``by``: served, along, or the name of a candidate in the registry, with its
    ``snapshot``; ``model``: the teacher's, or for served the system's."""

    by: str
    share: float
    model: ModelConfig
    snapshot: SnapshotRef | None = None

    @property
    def needs_pass(self) -> bool:
        """Whether its predictions must be computed before training."""
        return self.share > 0 and self.by != SERVED


class TeacherBlocks:
    """Blocks with a teacher's predictions in place of those from serving time."""

    def __init__(self, blocks: Blocks, folder: Path) -> None:
        self._blocks, self._folder = blocks, folder

    def __len__(self) -> int:
        return len(self._blocks)

    def read(self, number: int) -> Examples:
        block = self._blocks.read(number)
        taught: Floats = np.load(_file(self._folder, number))
        assert taught.shape == block.taught.shape, "it was written for other blocks"
        return replace(block, taught=taught)


def online_teacher(
    blocks: Blocks, features: FeatureSet, model: ModelConfig, sharding: Sharding, step_examples: int
) -> Iterator[Floats]:
    """Predictions by block of a line that learns all blocks once, in event time: each step before it learns
    it, with the averaged dense parameters, as replicas would."""
    tables = tables_of(model)
    learner = Learner(build_model(features, model))
    vocabularies = count_vocabularies(blocks, learner, tables, sharding=sharding)
    trainer = build_trainer(features, model, sharding, vocabularies, OwnTable)
    for number in range(len(blocks)):
        predictions = []
        for step in blocks.read(number).cut(step_examples):
            predictions.append(trainer.predict(step))
            trainer.learn(step)
        yield np.concatenate(predictions)


def frozen_teacher(
    blocks: Blocks, features: FeatureSet, model: ModelConfig, sharding: Sharding, teacher: Ancestor
) -> Iterator[Floats]:
    """Predictions by block of a candidate of this model, unchanged."""
    vocabularies = {table.name: teacher.vocabulary(table.name) for table in tables_of(model)}
    trainer = build_trainer(features, model, sharding, vocabularies, OwnTable, teacher)
    for number in range(len(blocks)):
        parts = blocks.read(number).cut(_PREDICTED_AT_ONCE)
        yield np.concatenate([trainer.predict(part) for part in parts])


def write_labels(folder: Path, predictions: Iterator[Floats]) -> None:
    """Stores a teacher's predictions of each block, in order; all or nothing."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a job that was killed
    partial.mkdir(parents=True)
    for number, block_NL in enumerate(predictions):
        with _file(partial, number).open("wb") as file:
            np.save(file, block_NL)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(partial)
    os.rename(partial, folder)
    sync_folder(folder.parent)


def choose_teacher(
    teacher: str, share: float, model: ModelConfig, features: FeatureSet, registry: Path, cache: Cache
) -> TeacherConfig:
    """Resolves the teacher asked for. ``teacher``: a candidate; empty: the live line, or for examples of no
    log a line of ``model``, the system's, that learns along. Raises Refused for a candidate that can't be a
    teacher here, ValueError if no example would be taught."""
    about = cache.about
    if teacher:
        candidates = Registry(registry)
        model = model_config(candidates.provenance(teacher))
        _, snapshot = candidates.check(teacher, features, model, holdout_from_ms=about.last_ms, log_id=None)
        reference = reference_to(snapshot)
        return TeacherConfig(by=teacher, share=share, model=model, snapshot=reference)
    if not about.log_id:
        return TeacherConfig(by=ALONG, share=share, model=model)
    if share and not about.predicted:
        raise ValueError(
            f"none of {about.examples} examples says what the live line predicted of it, and the "
            f"teacher's share is {share}: name a candidate that teaches (--teacher), or learn from the "
            "labels alone (--teacher-share 0)"
        )
    return TeacherConfig(by=SERVED, share=share, model=model)


def prepare_labels(
    folder: Path, teacher: TeacherConfig, features: FeatureSet, registry: Path, cache: Cache,
    sharding: Sharding, step_examples: int,
) -> None:  # fmt: skip
    """Computes a teacher's predictions if needed, by all workers together; worker 0 stores them. Raises
    Refused if the teaching candidate is gone."""
    if sharding.gather(folder.exists())[0]:
        return
    model = teacher.model
    if teacher.by == ALONG:
        predictions = online_teacher(cache, features, model, sharding, step_examples)
    else:
        dense, forgotten = build_model(features, model).dense_size(), cache.about.forgotten
        ancestor = load_ancestor(registry, teacher.by, model, dense, forgotten, sharding)
        if ancestor.parent != teacher.snapshot:
            raise Refused(f"candidate {teacher.by} isn't the one that was to teach: begin anew")
        predictions = frozen_teacher(cache, features, model, sharding, ancestor)
    if sharding.rank == 0:
        write_labels(folder, predictions)
    else:
        deque(predictions, maxlen=0)  # computes its lanes
    sharding.gather("stored")


def teacher_provenance(teacher: TeacherConfig, cache: Cache) -> Teacher:
    """The teacher in a candidate's provenance."""
    served = cache.about.predicted if teacher.by == SERVED else {}
    return Teacher(
        by=teacher.by,
        share=teacher.share,
        examples=sum(served.values()) if teacher.by == SERVED else cache.about.examples,
        served=served,
        snapshot=teacher.snapshot,
    )


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"
