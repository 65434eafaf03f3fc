"""What decides, besides a step's sum, what it does to the weights: the rules by which a file is replayed.

Neither the number of shards is in them nor how deltas are rounded and held back: those change no weight.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

from parameter_server.shard.shard import ShardSpec

_ABOUT: Final = (
    "lanes", "seed", "dense_rate", "dense_first", "dense_average", "expire_every", "bound",
)  # fmt: skip


# What a file means that was written before there was such a rule.
_BEFORE: Final = {"dense_first": 1.0}


class WalSettingsChanged(ValueError):
    """Steps were written down by other rules: to replay them by these would give weights that never were."""

    def __init__(self, path: Path, steps: tuple[int, int], changes: Sequence[str]) -> None:
        super().__init__(
            f"{path} holds steps {steps[0]} to {steps[1]}, which are in no snapshot yet and were learned by "
            f"other settings: {'; '.join(changes)}. Start with the settings of before and stop with recsys "
            "down, which takes a snapshot; then change them. Or move this file away, and those of all "
            "shards, and lose these steps"
        )


def wal_settings_of(spec: ShardSpec) -> str:
    """The rules as text, one for each setting: as a write-ahead file carries them."""
    rules = {name: getattr(spec, name) for name in _ABOUT}
    for table in spec.tables:
        rules |= {f"tables.{table.name}.{name}": value for name, value in asdict(table).items()}
    return json.dumps(rules, sort_keys=True)


def spec_by_settings(rules: str, spec: ShardSpec) -> ShardSpec:
    """The spec with what the rules say in the place of its own, for the tables that it has."""
    said = _said(rules)
    tables = tuple(
        replace(table, **{f.name: said.get(f"tables.{table.name}.{f.name}", getattr(table, f.name))
                          for f in fields(table)})
        for table in spec.tables
    )  # fmt: skip
    return replace(spec, tables=tables, **{name: said[name] for name in _ABOUT if name in said})


def changes(before: str, now: str) -> list[str]:
    """What differs between two rules, in words."""
    old, new = _said(before), json.loads(now)
    return [
        f"{name} was {old.get(name, 'not there')}, is {new.get(name, 'not there')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _said(rules: str) -> dict[str, Any]:
    """What rules say. Of a line without any, nothing is known."""
    return _BEFORE | json.loads(rules) if rules else {}
