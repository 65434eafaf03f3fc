"""What a line is, from the configuration: the shards that hold it, and the digest of what it learns by."""

from dataclasses import replace
from typing import Final

import msgspec

from parameter_server.shard.shard import ShardSpec
from parameter_server.table.table import check_table
from recsys.config.system_config import Config
from recsys.events.hashing import digest_of
from recsys.features.feature_set import FeatureSet
from recsys.model.model_tables import tables_of

MAIN: Final = "main"


def spec_of(config: Config, line: str = MAIN, epoch: int = 0) -> ShardSpec:
    """The spec of a line's part 0; ``parameter_server.shard.shard.part_of`` gives the others.

    Raises ValueError for a table that so many shards can't hold.
    """
    tables, shards = tables_of(config.model), config.parameter_server.shards
    for table in tables:
        try:
            check_table(table, shards)
        except ValueError as error:
            raise ValueError(
                f"model.tables.{table.name} with parameter_server.shards {shards}: {error}"
            ) from None
    return ShardSpec(
        tables=tables,
        lanes=config.step.lanes,
        parts=shards,
        line=line,
        epoch=epoch,
        seed=config.model.seed,
        dense_rate=config.model.dense_rate,
        dense_first=config.model.dense_first,
        dense_average=config.model.dense_average,
        delta_format=config.parameter_server.delta_format,
        delta_bytes=int(1024 * config.parameter_server.delta_kb),
        settle_every=config.step.snapshot_every,
    )


def whole_spec(config: Config, line: str = MAIN, epoch: int = 0) -> ShardSpec:
    """The spec of a line that stands whole in one shard, whatever number the live line has."""
    one = replace(config.parameter_server, shards=1)
    return spec_of(replace(config, parameter_server=one), line, epoch)


def learning_digest(config: Config, features: FeatureSet) -> str:
    """The digest of all that decides what a step does to the weights, besides its examples.

    The number of workers isn't in it, for it changes no bit. That of shards is where a table has a budget,
    for the rows that leave at it are those of one shard; elsewhere it changes no bit either.
    """
    what = {"model": config.model, "lanes": config.step.lanes, "features": features.digest}
    if any(table.budget_mb for table in tables_of(config.model)):
        what["shards"] = config.parameter_server.shards
    return digest_of(msgspec.json.encode(msgspec.to_builtins(what), order="deterministic"))
