import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.short_video import demo_data, demo_start, demo_system, warmup
from examples.short_video.demo_system import NotReady, running_system
from recsys.config.system_config import Config
from recsys.features.feature_set_file import FILE


class Started(Exception):
    """Stands for a system that starts."""


def started(*_: object, **__: object) -> int:
    raise Started


def test_the_folder_is_prepared_before_the_system_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(demo_data.CHOICE, demo_data.WORLD)
    monkeypatch.setattr(demo_start, "start", started)
    console = Console(record=True)
    with pytest.raises(Started):
        demo_start.start_warm(replace(Config(), state=str(tmp_path)), 0.0, 0, False, console)
    assert "data: the simulated world, as RECSYS_DATA says" in console.export_text()
    assert (tmp_path / FILE).exists()
    progress = warmup.read_progress(tmp_path)
    assert progress is not None and progress.expected > 0 and not progress.done


def test_a_system_that_does_not_start_is_an_error_that_names_its_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_start, "start", lambda *_, **__: 1)
    warmup.write_progress(tmp_path, warmup.Progress("world", 1, done=True))
    settings = replace(Config(), state=str(tmp_path))
    with pytest.raises(NotReady, match=f"see {tmp_path / 'run'}"):
        demo_start.start_warm(settings, 0.0, 0, False, Console())


@pytest.mark.slow
def test_data_that_cannot_be_read_are_an_error_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(demo_data.CHOICE, str(tmp_path / "none"))
    monkeypatch.setattr(demo_system, "_stop", lambda *_: None)
    settings = replace(Config(), state=str(tmp_path))
    with pytest.raises(NotReady, match="none"), running_system(settings, 0.0, 0, Console()):
        pass


def test_a_starting_process_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_system, "_start_and_report", kill_oneself)
    monkeypatch.setattr(demo_system, "_stop", lambda *_: None)
    settings = replace(Config(), state=str(tmp_path))
    with pytest.raises(NotReady, match="ended with status -9"), running_system(settings, 0.0, 0, Console()):
        pass


def kill_oneself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_process_that_starts_the_system_ends_before_the_system_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    class Starting:
        terminate, join = called(calls, "terminate"), called(calls, "join")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_system, "_start_process", lambda *_: (Starting(), None))
    monkeypatch.setattr(demo_system, "_await", interrupt)
    monkeypatch.setattr(demo_system, "_stop", called(calls, "stop"))
    settings = replace(Config(), state=str(tmp_path))
    with pytest.raises(KeyboardInterrupt), running_system(settings, 0.0, 0, Console()):
        pass
    assert calls == ["terminate", "join", "stop"]


def called(calls: list[str], name: str) -> Callable[..., Any]:
    return lambda *_: calls.append(name)
