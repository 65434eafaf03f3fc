"""A small learner, its rows and what it learned."""

import numpy as np

from parameter_server.table.table import initial_rows
from recsys.config.system_config import tables_of
from recsys.model.model import build_model
from tests.support.training.small_feed import FEATURES, toy_config
from training.continual.learner import Lane, Learned, Learner

CONFIG = toy_config()


def learner(**more: object) -> Learner:
    return Learner(build_model(FEATURES, CONFIG.model), **more)  # type: ignore[arg-type]


def rows_of(lane: Lane) -> dict[str, np.ndarray]:
    tables = {table.name: table for table in tables_of(CONFIG.model)}
    return {name: initial_rows(tables[name], 0, keys) for name, keys in lane.lookup.keys.items()}


def learned(its: Learner, lane: Lane, dense: np.ndarray | None = None) -> Learned:
    return its.learn(lane, rows_of(lane), its.model.read_dense() if dense is None else dense)
