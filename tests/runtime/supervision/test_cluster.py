"""Refusals of a cluster: each names the node, the value and the remedy."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recsys.config.loader import ConfigError
from recsys.config.log_config import LogConfig
from recsys.config.safety_config import DoorsConfig
from recsys.config.system_config import Config, ParameterServerConfig
from runtime.supervision import cluster
from runtime.supervision.cluster import Node, refusal
from runtime.supervision.launch_plan import CREDENTIALS
from tests.support.systems.tls_proxy import make_certificates

VERSIONS = {"numpy": "2.4.1", "python": "3.11.7"}
GOOD = Node("192.0.2.11", 0.02, VERSIONS, "m", "/mnt/state")


def judge(*nodes: Node) -> str:
    return refusal(nodes, VERSIONS, "m", "/mnt/state")


def test_equal_nodes_of_one_folder_are_accepted() -> None:
    extra = replace(GOOD, versions=VERSIONS | {"a-tool": "1"})
    assert judge(GOOD, replace(GOOD, address="192.0.2.12"), extra) == ""
    foreign = replace(GOOD, state="")  # nodes that others started
    assert judge(foreign, foreign) == ""


@pytest.mark.parametrize(
    "odd,message",
    [
        ({"ahead_s": 5.0}, r"clock of node 192.0.2.12 differs by \+5.0 s.*at most 1 s: synchronise"),
        ({"ahead_s": -1.2}, r"differs by -1.2 s"),
        (
            {"versions": {"numpy": "2.3.0"}},
            r"node 192.0.2.12 has numpy 2.3.0, expected 2.4.1.*install requirements/run.lock",
        ),
        ({"versions": {"python": "3.12.1"}}, r"has python 3.12.1, expected 3.11.7"),
        ({"marker": ""}, r"state is /mnt/state, and node 192.0.2.12 doesn't read.*mount one folder"),
        ({"state": ""}, r"node 192.0.2.12 was started for .*no system.*expected /mnt/state: .*recsys node"),
        ({"state": "/other"}, r"for the state folder '/other', expected /mnt/state"),
    ],
)
def test_a_node_that_does_not_fit_is_refused(odd: dict[str, Any], message: str) -> None:
    assert re.search(message, judge(GOOD, replace(GOOD, address="192.0.2.12", **odd)))


def test_a_node_tries_its_certificate_with_its_own_address(tmp_path: Path) -> None:
    files, text = make_certificates(tmp_path, address="192.0.2.12"), tmp_path / "marker"
    text.write_text("m")
    shards = ParameterServerConfig(
        tls=True, ca_file=str(files.ca), cert_file=str(files.cert), key_file=str(files.key)
    )
    probe, config = cluster._Probe(), replace(Config(), parameter_server=shards)
    assert probe.report(str(text), config, "192.0.2.12")[1:] == ("m", "")
    with pytest.raises(ValueError, match="with 192.0.2.13 in it"):
        probe.report(str(text), config, "192.0.2.13")


def test_a_node_looks_for_each_file_that_the_configuration_names() -> None:
    for name in CREDENTIALS:
        section, _, field = name.partition(".")
        config = SimpleNamespace(
            log=LogConfig(), doors=DoorsConfig(), parameter_server=ParameterServerConfig()
        )
        setattr(
            config, section, SimpleNamespace(**vars(getattr(config, section)) | {field: "/none/such.pem"})
        )
        with pytest.raises(ValueError, match=f"{name} can't be read on it: .*'/none/such.pem'"):
            cluster._Probe().report("", config, "192.0.2.12")


def ray_with(*namespaces: str) -> Any:
    actors = [{"name": str(n), "namespace": namespace} for n, namespace in enumerate(namespaces)]
    return SimpleNamespace(util=SimpleNamespace(list_named_actors=lambda all_namespaces: actors))


def test_a_cluster_takes_one_system() -> None:
    check = cluster._check_unused
    with pytest.raises(ConfigError, match=r"the system of /b runs .*2 actors.*recsys down --state /b"):
        check(ray_with("recsys", "serve", "notebook"), "/b", "/a")
    check(ray_with("recsys"), "/a", "/a")  # the own one goes on
    check(ray_with("notebook"), "/b", "/a")  # the other one ended


def test_nodes_that_do_not_join_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_JOIN_S", 0.0)
    monkeypatch.setattr(cluster.time, "sleep", lambda s: None)
    ray, lines = SimpleNamespace(nodes=lambda: [{"Alive": True}, {"Alive": False}]), list[str]()
    with pytest.raises(ConfigError, match="nodes is 3, and 1 joined"):
        cluster._joined(ray, 3, lines.append)
    assert lines == ["waiting for 3 Ray nodes: 1 joined"]
    assert len(cluster._joined(ray, 1, lines.append)) == 1
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True}] * 2)
    with pytest.raises(ConfigError, match="nodes is 1, and the Ray cluster has 2: set nodes"):
        cluster._joined(ray, 1, lines.append)
