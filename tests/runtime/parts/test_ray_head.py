"""What our Ray head keeps on loopback, and what follows `serve.host`."""

import os
import shutil
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from recsys.config.log_config import LogConfig
from recsys.config.system_config import SessionConfig
from recsys.features.feature_set_file import feature_set, write_feature_set
from runtime.parts import ray_head
from runtime.parts.ray_loopback import loopback_of
from runtime.supervision import ray_environment, run_file
from runtime.supervision.launch_plan import resolve, write
from tests.support.plan_config import FREE, config_in
from tests.support.systems.other_user import reachable


@pytest.mark.parametrize(
    "address, expected",
    [("[::]:0", "127.0.0.1:0"), ("0.0.0.0:7", "127.0.0.1:7"), (":7", "127.0.0.1:7"),
     ("192.0.2.2:7", "192.0.2.2:7"), ("127.0.0.1:7", "127.0.0.1:7")],
)  # fmt: skip
def test_addresses_that_mean_all_interfaces(address, expected):
    assert loopback_of(address) == expected


def test_a_job_finds_the_commands_of_our_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    config, plan = resolve(config_in(tmp_path))
    path = ray_head.head_environment(config, plan, tmp_path)["PATH"].split(os.pathsep)
    assert path == [sysconfig.get_path("scripts"), "/usr/bin"]


def test_behind_our_haproxy_replicas_stay_on_loopback(tmp_path, monkeypatch):
    everywhere = replace(FREE, host="0.0.0.0")
    config, plan = resolve(replace(config_in(tmp_path), serve=everywhere))
    monkeypatch.setattr(ray_environment, "haproxy", lambda: "/bin/haproxy")
    assert ray_environment.serve_host(config, plan) == "127.0.0.1"
    _, theirs = resolve(replace(config_in(tmp_path), serve=everywhere), ray_address="10.0.0.1:6379")
    assert ray_environment.serve_host(config, theirs) == "0.0.0.0"
    monkeypatch.setattr(ray_environment, "haproxy", lambda: "")
    assert ray_environment.serve_host(config, plan) == "0.0.0.0"


def test_serve_as_it_comes_has_none_of_our_settings(tmp_path, monkeypatch):
    config, plan = resolve(replace(config_in(tmp_path), serve=FREE))
    monkeypatch.setattr(ray_environment, "haproxy", lambda: "/bin/haproxy")
    names = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    for plain, value in ((False, "1"), (True, "0")):
        its = ray_environment.client_environment(config, msgspec.structs.replace(plan, plain_serve=plain))
        assert [its[name] for name in names] == [value, value]
        assert ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in its) is not plain


def test_rays_open_folder_lies_in_a_closed_one_and_both_go_with_the_next_start(tmp_path):
    link = tmp_path / "ray"
    home = ray_head.fresh_home(link)
    try:
        (home / "r").chmod(0o777)  # as Ray does
        assert link.readlink() == home / "r" and home.stat().st_mode & 0o777 == 0o700
        socket = home / "r" / "session_2026-11-27_10-10-10_123456_1234567" / "sockets" / "plasma_store"
        assert len(str(socket)) <= 107
        ray_head.check_closed(home)
        home.chmod(0o755)
        with pytest.raises(PermissionError, match="mode 755, expected"):
            ray_head.check_closed(home)
    finally:
        following = ray_head.fresh_home(link)
        shutil.rmtree(following)
    assert not home.exists()


def test_a_folder_of_the_version_before_is_removed_too(tmp_path):
    before = Path(tempfile.mkdtemp(prefix="rs-"))
    link = tmp_path / "ray"
    link.symlink_to(before)
    shutil.rmtree(ray_head.fresh_home(link))
    assert not before.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_another_user_reaches_no_file_of_a_system(tmp_path):
    top = Path(tempfile.mkdtemp(prefix="recsys-owner-"))
    top.chmod(0o755)
    before = os.umask(0o022)
    try:
        config, plan = resolve(config_in(top / "state"))
        write_feature_set(config, feature_set(config))  # the demo does this first
        with run_file.lock(config.state):
            write(config, plan)
            home = ray_head.fresh_home(top / "state" / "run" / "ray")
        ray_head.head_environment(config, plan, home)
        for folder in (home / "r", home / "h"):
            (folder / "haproxy.cfg").touch()
            folder.chmod(0o777)
        assert reachable(top, home) == [f"{top}/."]
    finally:
        os.umask(before)
        shutil.rmtree(top)
        shutil.rmtree(home)


def test_the_head_starts_only_what_the_system_uses(tmp_path, monkeypatch):
    from ray._private import node, services
    from ray._private.utils import read_ray_address

    started = []
    monkeypatch.setattr(node, "Node", lambda parameters, **_: started.append(parameters))
    config, plan = resolve(replace(config_in(tmp_path), serve=FREE))
    monkeypatch.setattr(services, "start_ray_process", lambda command, kind: command)
    ray_head.start_head(config, plan.ray, tmp_path)
    command = services.start_ray_process(["python", "-u", "ray/dashboard.py", "--a"], "dashboard")
    assert command == ["python", "-u", "-m", "runtime.parts.ray_dashboard", "--a"]
    assert services.start_ray_process(["raylet"], "raylet") == ["raylet"]
    parameters = started[0]
    assert parameters.no_monitor and not parameters.include_log_monitor
    assert not parameters.ray_client_server_port and parameters.gcs_server_port == plan.ray.gcs
    assert read_ray_address(str(tmp_path)) == f"127.0.0.1:{plan.ray.gcs}", "jobs would take any"


def test_nodes_of_a_cluster_answer_each_other_behind_haproxy(tmp_path, monkeypatch):
    kafka, redis = LogConfig(url="kafka://h:9092"), SessionConfig(url="redis://h:6379/0")
    three = replace(config_in(tmp_path), serve=FREE, nodes=3, log=kafka, sessions=redis)
    config, plan = resolve(three)
    assert config.serve.host == "0.0.0.0", "else only its own node reaches the API"
    kept, _ = resolve(replace(three, serve=replace(FREE, host="localhost")))
    assert kept.serve.host == "localhost"
    monkeypatch.setattr(ray_environment, "haproxy", lambda: "/bin/haproxy")
    own = msgspec.structs.replace(plan, own_nodes=True)
    assert ray_environment.serve_host(kept, plan) == "localhost"
    assert ray_environment.serve_host(kept, own) == "0.0.0.0"
    name = "RAY_SERVE_ENABLE_HA_PROXY"
    assert name not in ray_environment.client_environment(config, plan)
    node = ray_environment.node_environment(config)
    assert ray_environment.client_environment(config, own)[name] == node[name] == "1"
    assert node[ray_environment.HOOK] == "runtime.parts.ray_worker.begin"


def test_the_head_looks_less_often_than_ray_does_by_itself(tmp_path):
    config, plan = resolve(config_in(tmp_path))
    environment = ray_head.head_environment(config, plan, tmp_path)
    assert ray_environment.INTERVALS.items() <= environment.items()
