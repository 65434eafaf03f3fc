"""What `recsys up` does before any part runs."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from recsys.config.clock_config import ClockConfig
from recsys.config.system_config import ParameterServerConfig
from recsys.process.clock_file import clock_of
from recsys.process.part_process import run_folder
from runtime.cli import up
from runtime.supervision.launch_plan import resolve
from tests.support.plan_config import config_in

SEQUENCE = "examples.sequence_model.recsys_sequence_model:SequenceRanker"


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_output_of_parts_is_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_plan", lambda config, *_: resolve(config))
    monkeypatch.setattr(up, "_run", lambda *_: (run_folder(tmp_path) / "joiner.out").touch())
    assert up.start(config_in(tmp_path)) == 0
    assert (tmp_path / "run" / "joiner.out").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_state_folder_of_another_user_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(tmp_path, 65534, 65534)
    assert up.start(config_in(tmp_path)) == 1
    assert f"{tmp_path} belongs to user 65534, expected user 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_files_of_shards_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "_run", lambda *_: pytest.fail("a part would start"))
    shards = ParameterServerConfig(tls=True, ca_file="/none.pem", cert_file="/cert.pem")
    assert up.start(config_in(tmp_path, parameter_server=shards)) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "parameter_server.cert_file '/cert.pem'" in text and "Expected PEM files" in text


def test_a_plug_in_that_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "_run", lambda *_: pytest.fail("a part would start"))
    config = config_in(tmp_path)
    wrong = replace(config, serve=replace(config.serve, routes=("shpo",)))
    assert up.start(wrong) == 1
    assert "no plug-in 'shpo' of the group 'recsys.routes'" in capsys.readouterr().err
    wrong = replace(config, serve=replace(config.serve, routes=("tests.support.ending_plugin:f",)))
    assert up.start(wrong) == 1
    assert "(SystemExit: 3): pip install its package again" in capsys.readouterr().err
    wrong = replace(config, serve=replace(config.serve, stages=("shrt@1",)))
    assert up.start(wrong) == 1
    assert "no plug-in 'shrt' of the group 'recsys.stages'" in capsys.readouterr().err
    wrong = replace(config, policy=replace(config.policy, sources={"auhtor@1": 5}))
    assert up.start(wrong) == 1
    assert "no plug-in 'auhtor' of the group 'recsys.sources'" in capsys.readouterr().err
    wrong = replace(config, model=replace(config.model, ranker="sequnce@1"))
    assert up.start(wrong) == 1
    assert "no plug-in 'sequnce' of the group 'recsys.models'" in capsys.readouterr().err
    older = replace(config, model=replace(config.model, ranker=f"{SEQUENCE}@0"))
    assert up.start(older) == 1
    assert f"declare {SEQUENCE}@1" in capsys.readouterr().err
    blind = replace(config, model=replace(config.model, ranker=f"{SEQUENCE}@1", features="ids"))
    assert up.start(blind) == 1
    assert "set model.features to ids+history or all" in " ".join(capsys.readouterr().err.split())


def test_a_clock_is_made_before_parts_start_and_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "_run", lambda config, *_: clock_of(config)())
    config = config_in(tmp_path, clock=ClockConfig("2020-01-01", 100.0))
    assert up.start(config) == 0
    assert clock_of(config)() == config.clock.start_ms
    monkeypatch.setattr(up, "_run", lambda *_: pytest.fail("a part would start"))
    for clock in (ClockConfig(), ClockConfig("2020-01-01", 10.0)):
        with pytest.raises(typer.Exit):
            up.start(replace(config, clock=clock))
        assert "expected start 1577836800000, speed 100.0" in capsys.readouterr().err


def test_a_clock_in_a_ray_cluster_that_runs_already_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert up.start(config_in(tmp_path, clock=ClockConfig(speed=2.0))) == 1
    assert "clock.speed is 2.0, expected 1, and no clock.start" in capsys.readouterr().err
    assert not (tmp_path / "clock.json").exists()
