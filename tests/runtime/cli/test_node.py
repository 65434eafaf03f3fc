"""`recsys node`: the environment of a cluster's nodes, and a folder that isn't shared."""

import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from runtime.cli import node as command
from runtime.supervision import launch_plan
from runtime.supervision.launch_plan import RAY_TOKEN
from tests.support.plan_config import config_in


@pytest.fixture(autouse=True)
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Environments of the commands that would have replaced this process."""
    environments: list[dict[str, str]] = []

    def execute(program: str, words: list[str], environment: Any) -> None:
        assert [program, *words[1:]] == words == ["ray", "start"]
        environments.append(dict(environment))

    monkeypatch.setattr(os, "execvpe", execute)
    monkeypatch.setattr(command, "_TEMPORARY", str(tmp_path))
    monkeypatch.setenv("RECSYS__STATE", "")  # restored afterwards
    return environments


def node(state: Path, head: bool = False) -> None:
    command.node(["ray", "start"], head, "cluster", state)


def test_the_head_makes_the_token_and_others_find_it(
    tmp_path: Path, ran: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    file = state / "run" / RAY_TOKEN
    with pytest.raises(typer.Exit):
        node(state)
    message = " ".join(capsys.readouterr().err.split())
    assert f"{file} isn't there: start the head first" in message and not state.exists()
    node(state, head=True)
    token = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(token) > 30
    node(state, head=True)
    node(state)
    assert file.read_text() == token and len(ran) == 3
    for environment in ran:
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == str(file)
        assert environment["RECSYS_NODE_STATE"] == str(state)
        assert "RECSYS_STATE" not in environment, "a start of the system would end the node"
        assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in environment, "it would stay on loopback"


def test_ray_and_haproxy_of_a_node_have_a_folder_that_no_other_user_enters(
    tmp_path: Path,
    ran: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / f"rs-node-{os.geteuid()}"
    home.mkdir(mode=0o777)
    node(tmp_path / "state", head=True)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700 and ran[0]["RAY_TMPDIR"] == str(home)
    files = [value for name, value in ran[0].items() if value.startswith(f"{home}/h")]
    assert len(files) == 5 and (home / "h").is_dir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    node(tmp_path / "state", head=True)
    beside = tmp_path / "disk" / home.name
    assert stat.S_IMODE(beside.stat().st_mode) == 0o700 and ran[1]["RAY_TMPDIR"] == str(beside)
    assert files == [value for value in ran[1].values() if value.startswith(f"{home}/h")]
    monkeypatch.setenv("RAY_TMPDIR", "/var/ray")  # an operator's own choice
    node(tmp_path / "state", head=True)
    assert ran[2]["RAY_TMPDIR"] == "/var/ray"
    home.chmod(0o1777)  # as another user's trap would be
    with pytest.raises(typer.Exit):
        node(tmp_path / "state")
    assert f"{home} is shared by all users" in " ".join(capsys.readouterr().err.split())


def test_a_command_finds_the_dashboard_of_the_system_in_the_folder(
    tmp_path: Path, ran: list[dict[str, str]]
) -> None:
    node(tmp_path, head=True)
    config, plan = launch_plan.resolve(config_in(tmp_path))
    launch_plan.write(config, plan)
    node(tmp_path)
    launch_plan.write(config, msgspec.structs.replace(plan, embedded=[]))  # on a cluster
    node(tmp_path)
    where = f"http://127.0.0.1:{config.serve.dashboard_port}"
    addresses = [environment.get("RAY_API_SERVER_ADDRESS") for environment in ran]
    assert addresses == [None, where, None]


def test_a_token_of_kubernetes_is_kept(
    tmp_path: Path, ran: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    node(tmp_path)
    assert ran[0]["RAY_AUTH_TOKEN"] == "secret" and "RAY_AUTH_TOKEN_PATH" not in ran[0]
