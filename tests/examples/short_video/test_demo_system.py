from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from examples.short_video import demo_data, demo_system, warmup
from examples.short_video.demo_system import NotReady, WarmupProcess, running_system
from recsys.config.system_config import Config
from recsys.features.feature_set_file import FILE

pytestmark = pytest.mark.slow  # a process that imports the world


def test_the_warm_up_process_prepares_the_folder_and_ends_with_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(demo_data.CHOICE, demo_data.WORLD)
    with WarmupProcess(replace(Config(), state=str(tmp_path)), 0) as data:
        assert data.prepare() == "the simulated world, as RECSYS_DATA says"
        process = data._process
        assert process.is_alive()
    assert not process.is_alive()
    assert (tmp_path / FILE).exists()
    progress = warmup.read_progress(tmp_path)
    assert progress is not None and progress.expected > 0 and not progress.done


def test_data_that_cannot_be_read_and_a_process_that_dies_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(demo_data.CHOICE, str(tmp_path / "none"))
    settings = replace(Config(), state=str(tmp_path))
    with WarmupProcess(settings, 0) as data, pytest.raises(NotReady, match="none"):
        data.prepare()
    monkeypatch.setenv(demo_data.CHOICE, demo_data.WORLD)
    with WarmupProcess(settings, 0) as data:
        data.prepare()
        data._process.kill()
        with pytest.raises(NotReady, match="ended with status -9"):
            data.start(settings, 0.0, False)


def test_the_process_that_starts_the_system_ends_before_the_system_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = list[str]()

    class Interrupted(WarmupProcess):
        def __init__(self, *_: object) -> None: ...

        def prepare(self) -> str:
            return ""

        def start(self, *_: object) -> int:
            raise KeyboardInterrupt

        def end(self) -> None:
            calls.append("end")

    monkeypatch.setattr(demo_system, "WarmupProcess", Interrupted)
    monkeypatch.setattr(demo_system, "_stop", lambda *_: calls.append("stop"))
    monkeypatch.setattr(warmup, "read_progress", lambda state: SimpleNamespace(now_ms=1))
    settings = replace(Config(), state=str(tmp_path))
    with pytest.raises(KeyboardInterrupt), running_system(settings, 0.0, 0, Console()):
        pass
    assert calls[:2] == ["end", "stop"]
