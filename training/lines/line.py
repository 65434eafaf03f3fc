"""Derives from the configuration the shard spec of a model line and the digest of its learning settings."""

from dataclasses import replace
from typing import Final

import msgspec

from parameter_server.shard.shard import ShardSpec
from parameter_server.table.table import check_table
from recsys.config.system_config import Config, tables_of
from recsys.events.hashing import digest_of
from recsys.features.feature_set import FeatureSet

MAIN: Final = "main"


def spec_of(config: Config, line: str = MAIN, epoch: int = 0) -> ShardSpec:
    """The spec of part 0 of a line; ``parameter_server.shard.shard.part_of`` derives the others. Raises
    ValueError for a table that can't be split into so many shards."""
    tables, shards = tables_of(config.model), config.parameter_server.shards
    for table in tables:
        try:
            check_table(table, shards)
        except ValueError as error:
            raise ValueError(
                f"model.tables.{table.name} with parameter_server.shards {shards}: {error}"
            ) from None
    return ShardSpec(
        tables=tables, lanes=config.step.lanes, parts=shards, line=line, epoch=epoch,
        seed=config.model.seed, dense_rate=config.model.dense_rate,
        dense_first=config.model.dense_first, dense_average=config.model.dense_average,
        delta_format=config.parameter_server.delta_format,
        delta_bytes=int(1024 * config.parameter_server.delta_kb),
        settle_every=config.step.snapshot_every, settle_s=config.step.snapshot_s,
        dense_every_ms=config.parameter_server.dense_ms,
    )  # fmt: skip


def whole_spec(config: Config, line: str = MAIN, epoch: int = 0) -> ShardSpec:
    """The spec of a line in a single shard, which has the budgets of all shards of the live line."""
    spec = spec_of(config, line, epoch)
    tables = tuple(replace(t, budget_mb=t.budget_mb * spec.parts) for t in spec.tables)
    return replace(spec, parts=1, tables=tables)


def learning_digest(config: Config, features: FeatureSet) -> str:
    """Digest of the settings that determine a step's effect on the weights, besides its examples. Includes
    the number of shards only if a table has a budget, as each shard evicts its own rows; otherwise neither it
    nor the number of workers changes a bit."""
    settings = {"model": config.model, "lanes": config.step.lanes, "features": features.digest}
    if any(table.budget_mb for table in tables_of(config.model)):
        settings["shards"] = config.parameter_server.shards
    return digest_of(msgspec.json.encode(msgspec.to_builtins(settings), order="deterministic"))
