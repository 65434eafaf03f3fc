"""What our Ray head keeps on loopback, and what follows `serve.host`."""

import os
import subprocess
import sysconfig
from dataclasses import replace

import msgspec
import pytest

from runtime.parts import ray_head
from runtime.parts.ray_loopback import loopback_of, write_haproxy
from runtime.supervision import ray_environment
from runtime.supervision.launch_plan import resolve
from tests.support.plan_config import FREE, config_in


@pytest.mark.parametrize(
    "address, expected",
    [("[::]:0", "127.0.0.1:0"), ("0.0.0.0:7", "127.0.0.1:7"), (":7", "127.0.0.1:7"),
     ("192.0.2.2:7", "192.0.2.2:7"), ("127.0.0.1:7", "127.0.0.1:7")],
)  # fmt: skip
def test_addresses_that_mean_all_interfaces(address, expected):
    assert loopback_of(address) == expected


def test_haproxy_reads_binds_on_loopback_only(tmp_path):
    script, settings = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    write_haproxy(script, "/bin/echo", "127.0.0.1", 8000)
    settings.write_text("frontend a\n    bind :9101\n  bind *:8404\n    bind 127.0.0.1:8000 proto h2\n"
                        "    bind 0.0.0.0:1\n    server s 10.0.0.1:80\n")  # fmt: skip
    ran = subprocess.run(
        [script, "-db", "-f", settings, "-x", "a b"], capture_output=True, text=True
    )
    assert ran.stdout.strip() == f"-db -f {settings} -x a b"
    assert settings.read_text() == (
        "frontend a\n    bind 127.0.0.1:9101\n  bind 127.0.0.1:8404\n    bind 127.0.0.1:8000 proto h2\n"
        "    bind 127.0.0.1:1\n    server s 10.0.0.1:80\n"
    )


def test_haproxy_says_who_asks(tmp_path):
    script, settings = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    write_haproxy(script, "/bin/echo", "127.0.0.1", 8000)
    settings.write_text("defaults\n    option httplog\n    option redispatch 1\n")
    subprocess.run([script, "-f", settings], check=True, capture_output=True)
    assert settings.read_text() == (
        "defaults\n    option httplog\n    option forwardfor\n    option redispatch 1\n"
    )


def test_a_job_finds_the_commands_of_our_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    config, plan = resolve(config_in(tmp_path))
    path = ray_head.head_environment(config, plan, tmp_path)["PATH"].split(os.pathsep)
    assert path == [sysconfig.get_path("scripts"), "/usr/bin"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "feed.example"])
@pytest.mark.parametrize("written", ["127.0.0.1", "*"])
def test_haproxy_binds_the_api_where_it_is_configured_and_nothing_else(tmp_path, host, written):
    script, settings = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    write_haproxy(script, "/bin/echo", host, 8000)
    settings.write_text(f"frontend a\n    bind {written}:8000\n    bind *:80\n    bind :18000\n"
                        "    bind 0.0.0.0:80001\n    server s 127.0.0.1:8000 check\n")  # fmt: skip
    subprocess.run([script, "-f", settings], check=True, capture_output=True)
    subprocess.run(
        [script, "-f", settings], check=True, capture_output=True
    )  # a file that isn't new
    assert settings.read_text() == (
        f"frontend a\n    bind {host}:8000\n    bind 127.0.0.1:80\n    bind 127.0.0.1:18000\n"
        "    bind 127.0.0.1:80001\n    server s 127.0.0.1:8000 check\n"
    )


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
    _, plan = resolve(replace(config_in(tmp_path), serve=FREE))
    monkeypatch.setattr(ray_environment, "haproxy", lambda: "/bin/haproxy")
    names = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    for plain, value in ((False, "1"), (True, "0")):
        its = ray_environment.serve_environment(msgspec.structs.replace(plan, plain_serve=plain))
        assert [its[name] for name in names] == [value, value]
        assert ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in its) is not plain
