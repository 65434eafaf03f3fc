"""`recsys app apply`: one change of a system at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recsys.config.system_config import Config
from recsys.log.protocol import Log, MemoryLog
from runtime.cli import app as command
from runtime.cli.main import app
from runtime.supervision.run_file import lock


def test_a_second_change_is_refused_while_the_first_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def system(state: Path) -> Iterator[tuple[Config, Log]]:
        yield Config(state=str(state)), MemoryLog()

    monkeypatch.setattr(command, "with_system", system)
    arguments = ["app", "apply", "app.yaml", "--state", str(tmp_path)]
    with lock(tmp_path, "apply.lock"):
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and f"uses {tmp_path}" in result.output
    assert "started without a definition" in CliRunner().invoke(app, arguments).output
