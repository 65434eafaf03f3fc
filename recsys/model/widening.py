"""Starts the model of another feature set from a trained one: the wider model begins with its predictions.

Only the ranker's first layer, its direct inputs and the choice model depend on the dense columns. New columns
begin with weights of 0; those of a replaced half-life begin with the weights of the one that it replaces; all
else is copied.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.system_config import ModelConfig
from recsys.features.feature_set import FeatureSet
from recsys.model.choice_model import choice_size, reads_ranker
from recsys.model.model import build_model
from recsys.model.ranker import dense_start
from recsys.model.wider_set import columns_from

# Vectors of a shard's export that have a number for each dense parameter (parameter_server/table/dense.py).
_VECTORS: Final = ("dense/values", "dense/averaged", "dense/m", "dense/v", "held/dense")


def widened(
    arrays: dict[str, NDArray[Any]], before: FeatureSet, after: FeatureSet, config: ModelConfig
) -> dict[str, NDArray[Any]]:
    """A snapshot's arrays of the model of ``before`` as those of ``after``."""
    if before == after:
        return arrays
    check_widens(config)
    places = _places(before, after, config)
    vectors = [name for name in _VECTORS if name in arrays]
    moved = {name: np.where(places >= 0, arrays[name][places], 0) for name in vectors}
    arrays = arrays | {name: vector.astype(np.float32) for name, vector in moved.items()}
    if len(triangle := arrays["dense/curvature"]):
        new, old = _weights_from(before, after), np.zeros((choice_size(before),) * 2, np.float32)
        old[np.triu_indices(len(old))] = triangle
        both, symmetric = (new >= 0)[:, None] & (new >= 0), old + np.triu(old, 1).T
        moved_WW = np.where(both, symmetric[np.ix_(new, new)], np.float32(0))
        arrays["dense/curvature"] = moved_WW[np.triu_indices(len(new))]
    return arrays


def _weights_from(before: FeatureSet, after: FeatureSet) -> NDArray[np.int64]:
    """The weight of the choice model of ``before`` that each one of ``after`` begins with; -1: none."""
    place = {column: at for at, column in enumerate(before.differing)}
    for_new = {column: at for at, column in enumerate(before.impersonal, len(place))}
    columns, size = columns_from(before, after), choice_size(before)
    weights = [place.get(columns[column], -1) for column in after.differing]
    weights += [for_new.get(columns[column], -1) for column in after.impersonal]
    return np.array([*weights, *[size - 2, size - 1][: 2 * reads_ranker(after)]], np.int64)


def check_widens(config: ModelConfig) -> None:
    """Raises ValueError for a ranker that can't begin from a model of other features."""
    if config.ranker:
        raise ValueError(
            f"model.ranker is {config.ranker!r}, and only the built-in one can begin from a model of other "
            "features: propose a candidate with the built-in ranker first"
        )


def _places(before: FeatureSet, after: FeatureSet, config: ModelConfig) -> NDArray[np.int64]:
    """The place among the dense parameters of ``before`` of each of ``after``; -1: it begins with 0."""
    old, new = build_model(before, config), build_model(after, config)
    shape, first = old.ranker.shape, old.ranker.get_parameter("layers.0.weight")
    start = dense_start(shape)
    from_old = np.array(columns_from(before, after), np.int64)
    columns = np.where(from_old >= 0, start + from_old, -1)
    rest = np.arange(start + shape.dense, first.shape[1])
    inputs = np.concatenate([np.arange(start), columns, rest])
    parts, at = [], 0
    for parameter in old.parameters():
        place = np.arange(at, at + parameter.numel()).reshape(parameter.shape)
        at += parameter.numel()
        if parameter is first:
            place = np.where(inputs >= 0, place[:, inputs], -1)
        if parameter is old.ranker.direct_LF:
            moved = np.full(new.ranker.get_parameter("direct_LF").shape, -1)
            if old.ranker.shape.direct and len(moved.T):
                moved[:, : len(from_old)] = np.where(from_old >= 0, place[:, from_old], -1)
            place = moved
        if parameter is old.choice.weights_W:
            weights = _weights_from(before, after)
            place = np.where(weights >= 0, place[weights], -1) if len(place) else weights
        parts.append(place.reshape(-1))
    places = np.concatenate(parts)
    assert len(places) == new.dense_size(), "only these depend on the columns"
    return places
