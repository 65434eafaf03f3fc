"""Contracts of a ranker (``recsys.models``), on a model with random parameters, rows and requests.

Only parameters travel, in snapshots and deltas, so a ranker must keep nothing else between calls: then each
copy of a model answers alike, and an answer can be explained. Training, and shadow with it, scores examples
with a history for each; serving a list with one for all.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.table.table import initial_rows
from plugins.plugin_contracts.determinism import Contract, require
from recsys.config.system_config import ModelConfig, tables_of
from recsys.events.records import TrainingExample
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.request_features import RequestFeatures
from recsys.model.model import Model, build_model
from recsys.model.ranker import RankerModule
from serving.replica.row_store import RowStore
from serving.scorers.probabilities import probabilities
from training.continual.learner import Learned, Learner

_CONFIG: Final = ModelConfig(row_initial=0.5)
_TABLES: Final = {table.name: table for table in tables_of(_CONFIG)}
_FEATURES: Final = FeatureSet(FEED_SCHEMA, "all", 20)
_ITEMS: Final = 300
_NEAR: Final = 1e-5  # scores of training and serving add in another order


def _is_ranker(plugin: Any) -> None:
    fits = isinstance(plugin, type) and issubclass(plugin, RankerModule)
    require(fits, f"it is {plugin!r}, expected a subclass of recsys.model.ranker.RankerModule")
    require(getattr(plugin, "version", ""), "it has no version")


def _same_parameters(plugin: Any) -> None:
    first = build_model(_FEATURES, _CONFIG, plugin).read_dense()
    torch.rand(1)
    again = build_model(_FEATURES, _CONFIG, plugin).read_dense()
    require(np.array_equal(first, again), "two models of one seed begin with other parameters")


def _scores(plugin: Any) -> None:
    model = _model(plugin)
    for entries in (0, 3, 20):
        scores = _served(model, _request(entries=entries))
        shape = (_ITEMS, len(FEED_SCHEMA.labels) + 1)
        require(scores.shape == shape, f"scores have the shape {scores.shape}, expected {shape}")
        require(np.isfinite(scores).all(), f"with {entries} entries, scores aren't finite")


def _alone(plugin: Any) -> None:
    model, request = _model(plugin), _request()
    scores = _served(model, request)
    for n in (0, 1, 17, 150, _ITEMS - 1):
        same = np.array_equal(_served(model, request.rows([n]))[0], scores[n])
        require(
            same,
            f"item {n} of a list has another score alone than within it: nothing may mix examples, and a "
            "layer with few outputs needs a multiple of 16 inputs",
        )


def _shadow(plugin: Any) -> None:
    model, requests = _model(plugin), [_request(seed) for seed in range(3)]
    served = np.concatenate([_served(model, request.rows([0, 1])) for request in requests])
    gap = float(np.abs(_learned(model, requests).probabilities_BL - served).max())
    require(gap <= _NEAR, f"training and serving score examples up to {gap:.2g} apart")


def _learning(plugin: Any) -> None:
    requests = [_request(seed) for seed in range(3)]
    runs = [_learned(_model(plugin), requests) for _ in range(2)]
    rows = [run.gradients["features"].gradients for run in runs]
    for name, (one, other) in (("rows", rows), ("parameters", [run.dense for run in runs])):
        require(np.array_equal(one, other), f"two runs have other gradients of the {name}")
        learns = np.isfinite(one).all() and one.any()
        require(learns, f"gradients of the {name} are 0 or not finite: nothing is learned")


def _copies(plugin: Any) -> None:
    used, request = _model(plugin), _request()
    for seed in range(1, 4):
        _served(used, _request(seed))
        _learned(used, [_request(seed)])
    copy = build_model(_FEATURES, _CONFIG, plugin)
    copy.write_dense(used.read_dense())
    same = np.array_equal(_served(used, request), _served(copy, request))
    require(same, "a model that was used has other scores than a copy of its parameters")


CONTRACTS: Final[dict[str, Contract]] = {
    "ranker and version": _is_ranker,
    "same parameters in each process": _same_parameters,
    "scores": _scores,
    "an item alone": _alone,
    "shadow and serving agree": _shadow,
    "learning": _learning,
    "snapshots, deltas, explanations": _copies,
}


def _model(plugin: Any) -> Model:
    model = build_model(_FEATURES, _CONFIG, plugin)
    noise = np.random.default_rng(1).normal(0, 0.1, model.dense_size())
    model.write_dense(model.read_dense() + noise.astype(np.float32))
    return model


def _request(seed: int = 0, entries: int = 12) -> RequestFeatures:
    draw, features = np.random.default_rng(seed), _FEATURES
    history = draw.integers(1, 2**40, (features.history_length, features.history_keys))
    outcomes = draw.uniform(0.1, 1, (len(history), features.outcomes)).astype(np.float32)
    history[entries:], outcomes[entries:] = 0, 0
    user = draw.integers(1, 2**40, features.user_columns)
    items = draw.integers(1, 2**40, (_ITEMS, features.item_columns))
    dense = draw.normal(0, 1, (_ITEMS, len(features.dense_names))).astype(np.float32)
    return RequestFeatures(features.digest, user, items, history, outcomes, dense)


def _served(model: Model, request: RequestFeatures) -> NDArray[np.float32]:
    return probabilities(model, {"features": RowStore(_TABLES["features"], 0)}, [request])


def _learned(model: Model, requests: Sequence[RequestFeatures]) -> Learned:
    """The learner's result for the first two items of each request."""
    labels = [1.0] + [0.0] * (len(FEED_SCHEMA.labels) - 1)
    blocks = [request.rows([n]).block() for request in requests for n in range(2)]
    examples = [
        TrainingExample(partition=0, offset=n, index=0, labels=labels, features=block)
        for n, block in enumerate(blocks)
    ]
    learner = Learner(model)
    lane = learner.prepare(examples)
    rows = {name: initial_rows(_TABLES[name], 0, k) for name, k in lane.lookup.keys.items()}
    return learner.learn(lane, rows, model.read_dense())
