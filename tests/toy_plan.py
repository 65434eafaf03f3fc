"""A plan in a folder of the test's own, on free ports."""

from dataclasses import replace
from pathlib import Path

from recsys.cli.running import PartRecord, Running
from recsys.config.system_config import Config, ServeConfig

FREE = ServeConfig(port=0, dashboard_port=0)


def config_in(folder: Path, **changes: object) -> Config:
    return replace(Config(), state=str(folder), serve=FREE, **changes)  # type: ignore[arg-type]


def seen_of(running: Running, name: str) -> PartRecord:
    return next(part for part in running.parts if part.name == name)
