"""Checks of a running Ray cluster before the system starts on it: its nodes, and no other system.

``refusal`` judges what each node reports. Pure but for ``check_cluster``, which asks them.
"""

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from parameter_server.rpc.shard_tls import LOOPBACK, open_tls
from recsys.clock import machine_ns
from recsys.config.loader import ConfigError
from recsys.config.system_config import Config
from recsys.process.part_process import run_folder
from runtime.supervision.launch_plan import CREDENTIALS
from runtime.supervision.machine import installed_versions
from runtime.supervision.processes import NODE_STATE
from runtime.supervision.ray_environment import cluster_environment

NAMESPACE: Final = "recsys"  # of the system's actors
MOST_AHEAD_S: Final = 1.0
_JOIN_S: Final = 300.0  # for the nodes to join
_ANSWER_S: Final = 60.0
_OWNER: Final = b"recsys.owner"  # key of the claim in Ray's key-value store
_READINGS: Final = 3  # of a clock; the fastest answer counts


@dataclass(frozen=True)
class Node:
    """Report of one node. ``ahead_s``: of its clock; ``marker``: text that it reads in the state folder;
    ``state``: the folder for which `recsys node` started it."""

    address: str
    ahead_s: float
    versions: Mapping[str, str]
    marker: str
    state: str


def refusal(nodes: Sequence[Node], versions: Mapping[str, str], marker: str, state: str) -> str:
    """The reason why these nodes can't run the system, with the remedy; empty where they can."""
    for node in nodes:
        if abs(node.ahead_s) > MOST_AHEAD_S:
            return (
                f"the clock of node {node.address} differs by {node.ahead_s:+.1f} s from this machine's, "
                f"expected at most {MOST_AHEAD_S:g} s: synchronise both (chrony, systemd-timesyncd)"
            )
        other = {n: v for n, v in node.versions.items() if versions.get(n, v) != v}
        if name := min(other, default=""):
            return (
                f"node {node.address} has {name} {other[name]}, expected {versions[name]} as on this "
                "machine: install requirements/run.lock on both (make setup)"
            )
        if node.marker != marker:
            return (
                f"state is {state}, and node {node.address} doesn't read what this machine wrote there: "
                "mount one folder on all nodes (NFS), for the same user"
            )
    odd = next((node for node in nodes if node.state != state), None)
    if odd and any(node.state for node in nodes):
        return (
            f"node {odd.address} was started for the state folder {odd.state or 'of no system'!r}, expected "
            f"{state}: start each node by `recsys node -- ray start ...`"
        )
    return ""


class _Probe:
    """Actor that reports on its node."""

    def report(self, file: str, config: Config, host: str) -> tuple[Any, str, str]:
        """Raises ValueError for files that can't be read and certificates that don't fit ``host``."""
        for name, path in zip(CREDENTIALS, attrgetter(*CREDENTIALS)(config), strict=True):
            try:
                Path(path or os.devnull).read_bytes()
            except OSError as error:
                raise ValueError(f"{name} can't be read on it: {error}") from None
        open_tls(config.parameter_server, host)
        marker = ""
        with suppress(OSError):
            marker = Path(file).read_text()
        return installed_versions(), marker, os.environ.get(NODE_STATE, "")

    def clock(self) -> float:
        return machine_ns() / 1e9


def check_cluster(config: Config, say: Callable[[str], None] = lambda text: None) -> tuple[bool, str]:
    """Waits for the nodes and checks them. Returns whether `recsys node` started them, and the address of
    their GCS; raises ConfigError."""
    os.environ.update(cluster_environment(config))
    import ray

    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"nodes is {config.nodes}, and the Ray cluster at {os.environ['RAY_ADDRESS']} lets nobody in by "
            f"the token of {config.state}: start each node by `recsys node -- ray start ...`, "
            f"or set RAY_ADDRESS and its token ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    try:
        return _check(ray, config, say), ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def _check(ray: Any, config: Config, say: Callable[[str], None]) -> bool:
    from ray.experimental import internal_kv

    _check_unused(ray, json.loads(internal_kv._internal_kv_get(_OWNER) or b'""'), config.state)
    marker = uuid.uuid4().hex
    file = run_folder(config.state) / f"shared-{marker}"
    file.write_text(marker)
    try:
        reports = [_report(ray, node, file, config) for node in _joined(ray, config.nodes, say)]
    finally:
        file.unlink()
    if reason := refusal(reports, installed_versions(), marker, config.state):
        raise ConfigError(reason)
    internal_kv._internal_kv_put(_OWNER, json.dumps(config.state).encode(), overwrite=True)
    return bool(reports[0].state)


def _check_unused(ray: Any, owner: str, state: str) -> None:
    """Raises ConfigError where another system runs on the cluster: names of actors are fixed."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    own = [actor for actor in actors if actor["namespace"] in (NAMESPACE, "serve")]
    if own and owner not in ("", state):
        raise ConfigError(
            f"state is {state}, and the system of {owner} runs on this Ray cluster ({len(own)} actors): "
            f"stop it by `recsys down --state {owner}`, or start another cluster"
        )


def _joined(ray: Any, expected: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The nodes of the cluster, once there are as many as expected."""
    deadline, count = time.monotonic() + _JOIN_S, -1
    while True:
        alive = [node for node in ray.nodes() if node["Alive"]]
        if expected == 1 < len(alive):
            raise ConfigError(
                f"nodes is 1, and the Ray cluster has {len(alive)}: set nodes to this number, so that "
                "shards listen on the addresses of their nodes"
            )
        if len(alive) >= expected:
            return alive
        if count != (count := len(alive)):
            say(f"waiting for {expected} Ray nodes: {count} joined")
        if time.monotonic() > deadline:
            raise ConfigError(
                f"nodes is {expected}, and {count} joined the Ray cluster within {_JOIN_S:.0f} s: start "
                "the others, or set nodes to their number"
            )
        time.sleep(0.5)


def _report(ray: Any, node: Mapping[str, Any], file: Path, config: Config) -> Node:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    host = LOOPBACK if config.nodes == 1 else node["NodeManagerAddress"]
    probe: Any = ray.remote(_Probe).options(num_cpus=0, scheduling_strategy=place).remote()
    report = probe.report.remote(str(file), config, host)
    try:
        versions, marker, state = ray.get(report, timeout=_ANSWER_S)
        readings = [_reading(ray, probe) for _ in range(_READINGS)]
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"node {node['NodeManagerAddress']} can't run this system: {reason}; it needs the same version "
            "of it (make setup), and the files that the configuration names"
        ) from error
    return Node(node["NodeManagerAddress"], min(readings)[1], versions, marker, state)


def _reading(ray: Any, probe: Any) -> tuple[float, float]:
    """Time of a call, and how far the node's clock was ahead in its middle."""
    began = machine_ns() / 1e9
    clock = ray.get(probe.clock.remote(), timeout=_ANSWER_S)
    took = machine_ns() / 1e9 - began
    return took, clock - began - took / 2
