"""A plan in a folder of the test's own, on free ports."""

from dataclasses import replace
from pathlib import Path

from recsys.config.system_config import Config, ServeConfig
from runtime.supervision.run_file import PartRecord, Running

FREE = ServeConfig(port=0, dashboard_port=0)


def config_in(folder: Path, **changes: object) -> Config:
    return replace(Config(), state=str(folder), serve=FREE, **changes)  # type: ignore[arg-type]


def seen_of(running: Running, name: str) -> PartRecord:
    return next(part for part in running.parts if part.name == name)
