"""The model of an epoch: the configured one, but for its size where a candidate of another size became live.

Each part takes its configuration from here whenever it changes over to an epoch, or loads a candidate. So
shards, workers, sequencer and replicas agree on it by ``control`` alone, also those that begin anew.
"""

from dataclasses import replace

from experiments.promotion.lifecycle import Lifecycle
from recsys.config.system_config import Config, ModelConfig
from recsys.events.control_records import ModelSize
from recsys.model.student_model import MAY_DIFFER, fixed_differences


def config_at(config: Config, lifecycle: Lifecycle, line: str, epoch: int = 0) -> Config:
    """The system's configuration with the model that a line has in an epoch. ``lifecycle`` must have folded
    the epoch's live record, or that of the candidate: what it doesn't know is as configured."""
    return with_size(config, lifecycle.size(line, epoch))


def with_size(config: Config, size: ModelSize | None) -> Config:
    """The configuration with a model of this size; None: as it is."""
    return config if size is None else replace(config, model=sized_model(config.model, size))


def sized_model(configured: ModelConfig, size: ModelSize) -> ModelConfig:
    """A model of another size beside the configured one."""
    return replace(configured, dim=size.dim, hidden=size.hidden)


def size_difference(configured: ModelConfig, its: ModelConfig) -> ModelSize | None:
    """The size of a model that may become live beside the configured one; None where they are equal.

    Raises ValueError where more than the size differs. The same item vectors, features and rules of the
    tables are what index, examples and shards of a running system rest on, whatever the epoch.
    """
    if differ := fixed_differences(its, configured):
        said = (f"model.{n} is {a!r}, expected {b!r}" for n, (a, b) in differ.items())
        raise ValueError(f"{', '.join(said)}; only {' and '.join(MAY_DIFFER)} may differ")
    return None if its == configured else ModelSize(its.dim, its.hidden)
