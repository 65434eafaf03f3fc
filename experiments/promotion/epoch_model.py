"""Model of an epoch: the configured one, unless a candidate of another size, with another ranker, or that
reads other features, became live. All parts agree on it by the ``control`` topic alone, also after a
restart."""

from dataclasses import replace

from experiments.promotion.lifecycle import Lifecycle
from recsys.config.system_config import Config, ModelConfig
from recsys.events.control_records import ModelSize
from recsys.features.feature_set import FeatureSet, read_set
from recsys.model.student_model import MAY_DIFFER, fixed_differences


def config_at(config: Config, lifecycle: Lifecycle, line: str, epoch: int = 0) -> Config:
    """Configuration with the model of a line in an epoch. ``lifecycle`` must have folded the epoch's live
    record, or the candidate's; otherwise the model is as configured."""
    return with_size(config, lifecycle.size(line, epoch))


def features_at(features: FeatureSet, lifecycle: Lifecycle, line: str, epoch: int = 0) -> FeatureSet:
    """Features that the model of a line reads in an epoch. ``features``: of the state folder's file."""
    return features_of(features, lifecycle.size(line, epoch))


def features_of(features: FeatureSet, size: ModelSize | None) -> FeatureSet:
    """Features that a model of this size reads. ``features``: of the state folder's file."""
    return read_set(size.features) if size is not None and size.features else features


def sets_in_use(lifecycle: Lifecycle, first: FeatureSet) -> list[FeatureSet]:
    """Features that lines read: the live one, the one that a rollback brings back, and all active ones.
    ``first``: of the state folder's file."""
    sizes: list[ModelSize | None] = [live.size for live in reversed(lifecycle.lives)]
    sizes = [*sizes, None][:2]  # at first none is on record
    sizes += [state.candidate.size for state in lifecycle.active]
    return list(dict.fromkeys(features_of(first, size) for size in sizes))


def with_size(config: Config, size: ModelSize | None) -> Config:
    """Configuration with a model of this size; None: unchanged."""
    if size is None:
        return config
    model = replace(config.model, dim=size.dim, hidden=size.hidden, ranker=size.ranker)
    return replace(config, model=model)


def size_difference(configured: ModelConfig, candidate: ModelConfig) -> ModelSize | None:
    """Size of a model that may become live instead of the configured one; None if they are equal. Raises
    ValueError if more than the size differs."""
    if differ := fixed_differences(candidate, configured):
        texts = (f"model.{n} is {a!r}, expected {b!r}" for n, (a, b) in differ.items())
        raise ValueError(f"{', '.join(texts)}; only {', '.join(MAY_DIFFER)} and ranker may differ")
    same = candidate == configured
    return None if same else ModelSize(candidate.dim, candidate.hidden, ranker=candidate.ranker)
