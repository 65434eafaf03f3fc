"""A state folder with an archive, and options of ``recsys offline`` for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys.config.system_config import Config
from recsys.features import feature_set_file as feature_sets
from runtime.jobs.offline_options import OfflineOptions
from tests.support.training.archived_examples import COUNT, MINUTE_MS, archived
from tests.support.training.small_feed import FEATURES, START_MS
from training.candidates.registry import Registry

CONFIG = "model: {dim: 4, vector_dim: 4, hidden: [8]}\nstep: {lanes: 2}\n"


def state_with_archive(folder: Path) -> Path:
    """Makes the folder a state folder with an archive."""
    feature_sets.write_feature_set(Config(state=str(folder)), FEATURES)
    archived(folder / "archive")
    (folder / "small.yaml").write_text(CONFIG)
    return folder


def asked(system: Path, registry: Path, **changes: Any) -> OfflineOptions:
    its = OfflineOptions(
        data=system / "archive", registry=registry, until=str(START_MS + COUNT * MINUTE_MS),
        config=str(system / "small.yaml"), workers=0, tables="own", epochs=2, step_examples=16,
        checkpoint_every=2,
    )  # fmt: skip
    return replace(its, **changes)


def arrays_of(registry: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of a candidate by part and name."""
    snapshot = Registry(registry).snapshot(name)
    parts = range(snapshot.parts)
    return {f"{part}/{array}": a for part in parts for array, a in snapshot.read(part).items()}
