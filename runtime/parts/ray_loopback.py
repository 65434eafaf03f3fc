"""Keeps replicas' handle ports on loopback, which Ray Serve binds to all interfaces.

Only the API's port binds to ``serve.host``. Ray's settings cover its other ports (see ``ray_head``), and
``haproxy_config`` closes those of HAProxy. A handle port unpickles what clients with Ray's token send.
``keep_on_loopback`` runs in each worker process before it imports Serve. In a cluster other nodes call
replicas: their ports stay open to it.
"""

import os
from typing import Any


def loopback_of(address: str) -> str:
    """Replaces an address on all interfaces by the same port on loopback."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("", "*", "[::]", "::", "0.0.0.0") else address


def keep_on_loopback() -> None:
    """Wraps the function by which Serve opens a replica's handle port."""
    if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0":  # several machines
        return
    from ray._common import tls_utils

    opened: Any = tls_utils.add_port_to_grpc_server
    if getattr(opened, "on_loopback", False):
        return

    def add_port_to_grpc_server(server: Any, address: str) -> Any:
        return opened(server, loopback_of(address))

    add_port_to_grpc_server.on_loopback = True  # type: ignore[attr-defined]
    tls_utils.add_port_to_grpc_server = add_port_to_grpc_server
