"""Settings that a write-ahead file was written with: those that, besides a step's sum, determine the weights.

The number of shards and the rounding and withholding of deltas change no weight, so they aren't included.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

from parameter_server.shard.shard import ShardSpec

_SETTINGS: Final = ("lanes", "seed", "dense_rate", "dense_first", "dense_average", "expire_every", "bound")


class WalSettingsChanged(ValueError):
    """Logged steps were learned with other settings: a replay with the current ones would give other
    weights."""

    def __init__(self, path: Path, steps: tuple[int, int], changes: Sequence[str]) -> None:
        super().__init__(
            f"{path} holds steps {steps[0]} to {steps[1]}, in no snapshot yet and learned with "
            f"other settings: {'; '.join(changes)}. Start with the previous settings and stop with recsys "
            "down, which takes a snapshot; then change them. Or move this file away, and those of all "
            "shards, and lose these steps"
        )


def wal_settings_of(spec: ShardSpec) -> str:
    """JSON text of the settings, as a write-ahead file stores them."""
    settings = {name: getattr(spec, name) for name in _SETTINGS}
    for table in spec.tables:
        settings |= {f"tables.{table.name}.{name}": value for name, value in asdict(table).items()}
    return json.dumps(settings, sort_keys=True)


def spec_by_settings(text: str, spec: ShardSpec) -> ShardSpec:
    """The spec with stored settings instead of its own, for the tables that it has. Raises ValueError for
    settings of another version."""
    stored = _parse(text)
    if stored and (missing := [name for name in _SETTINGS if name not in stored]):
        raise ValueError(
            f"a write-ahead file has the settings {sorted(stored)}, expected also {', '.join(missing)}: "
            "another version wrote it; move the files of all shards away to start from the snapshot"
        )
    tables = tuple(
        replace(table, **{f.name: stored.get(f"tables.{table.name}.{f.name}", getattr(table, f.name))
                          for f in fields(table)})
        for table in spec.tables
    )  # fmt: skip
    return replace(spec, tables=tables, **{k: stored[k] for k in _SETTINGS if k in stored})


def changes(before: str, now: str) -> list[str]:
    """Differences between two settings texts, one sentence each."""
    old, new = _parse(before), json.loads(now)
    return [
        f"{name} was {old.get(name, 'not there')}, is {new.get(name, 'not there')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _parse(text: str) -> dict[str, Any]:
    return json.loads(text) if text else {}
