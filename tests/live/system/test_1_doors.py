"""What the programs of a machine reach of a running system: the ports of the threat model, and no more."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator

import grpc
import httpx
import psutil
import pytest

from runtime.supervision.processes import Socket, listening, parts_of
from tests.support.paths import ROOT
from tests.support.systems.live_system import LiveSystem, Traffic, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]
METHODS = (  # of Ray's services: each port has one of them
    "/ray.serve.ASGIService/HandleRequest",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.ReporterService/HealthCheck",
)


def documented() -> dict[str, int]:
    """Ports of each process, by the table of the threat model. ``ray::`` is any other worker of Ray."""
    page = (ROOT / "docs" / "explanation" / "threats.md").read_text()
    table = page.partition("\n## Ports\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?`.*?) \| (\d) \|", table, re.MULTILINE)
    return {name: int(ports) for names, ports in rows for name in re.findall("`(.+?)`", names)}


def title(pid: int) -> str:
    words = psutil.Process(pid).cmdline()
    for module, name in (("runtime.cli.part", "recsys part"), ("runtime.parts.", "ray_dashboard")):
        if any(word.startswith(module) for word in words):
            return name
    return re.split(r"(?<!:):(?!:)", psutil.Process(pid).name())[0]


def ports(system: LiveSystem) -> Iterator[tuple[str, Socket, int]]:
    """The process, socket and process id of each port."""
    leaders = {str(leader.pid): leader for leader in system.running().processes}
    owners = {
        connection.laddr.port: connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in parts_of(leaders)
    }
    for sockets in listening(leaders).values():
        for socket in sockets:
            pid = owners[socket.port]
            yield title(pid), socket, pid


def test_each_port_is_in_the_threat_model_and_on_loopback(system: LiveSystem, visits: Traffic) -> None:
    table, opened = documented(), list(ports(system))
    assert all(socket.loopback for _, socket, _ in opened)
    named = [(name if name in table else name[:5], pid) for name, _, pid in opened]
    assert {name for name, _ in named} <= table.keys()
    assert {"haproxy", "ray::ServeReplica", "ray::RayTrainWorker"} <= {name for name, _ in named}
    opened_by = Counter(named)
    assert all(count <= table[name] for (name, _), count in opened_by.items()), opened_by
    bare = {n for (name, _), n in opened_by.items() if name in ("haproxy", "ray::RayTrainWorker")}
    assert bare == {1}, "neither statistics nor gloo"


def test_ray_s_ports_run_nothing_without_the_token(system: LiveSystem, visits: Traffic) -> None:
    refused = Counter[str]()
    for name, socket, _ in ports(system):
        if not socket.host.startswith("::") or not name.startswith(("ray", "gcs", "recsys")):
            continue
        codes = set()
        with grpc.insecure_channel(f"127.0.0.1:{socket.port}") as channel:
            for method in METHODS:
                with pytest.raises(grpc.RpcError) as raised:
                    channel.unary_unary(method)(b"", timeout=10)
                codes.add(raised.value.code())
        assert grpc.StatusCode.UNAUTHENTICATED in codes, (name, socket, codes)
        refused[name] += 1
    assert refused["ray::ServeReplica"] == 2 and refused["gcs_server"] == 1
    for _, socket, pid in ports(system):
        if title(pid) == "ray::RuntimeEnvAgent":
            assert httpx.get(f"http://127.0.0.1:{socket.port}/").status_code == 401


def test_no_program_of_the_machine_chooses_its_address(system: LiveSystem, visits: Traffic) -> None:
    """Neither at the API's port nor at a replica's own."""
    own = [
        socket.port
        for name, socket, _ in ports(system)
        if name == "ray::ServeReplica" and socket.host == "127.0.0.1"
    ]
    assert len(own) == 1
    chosen = {"X-Forwarded-For": "192.0.2.77", "X-Recsys-Door": "x", "Forwarded": "for=192.0.2.77"}
    for port in (own[0], system.config.serve.port):
        path = f"/v1/inspect/users/port-{port}"
        assert httpx.get(f"http://127.0.0.1:{port}{path}", headers=chosen).status_code == 401
        until(lambda path=path: path in addresses(system), 30, "the refusal is in the audit trail")
        assert addresses(system)[path] == "127.0.0.1"


def addresses(system: LiveSystem) -> dict[str, str]:
    """Address by path, of the calls in the audit trail."""
    found = dict[str, str]()
    for file in (system.state / "run").glob("audit-*.log"):
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                call = json.loads(line)
                found[call["path"]] = call["address"]
    return found
