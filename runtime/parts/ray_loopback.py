"""Keeps three ports of Ray Serve on loopback: HAProxy's statistics and metrics, and replicas' handle ports.

Only the API's port binds to ``serve.host``. Ray's settings cover all its other ports (see ``ray_head``), but
these three are hard-coded to all interfaces, and the last one unpickles requests from any client.
``keep_on_loopback`` runs in each worker process before it imports Serve; ``write_haproxy`` writes the program
that Serve starts instead of HAProxy.
"""

import shlex
from pathlib import Path
from typing import Any


def loopback_of(address: str) -> str:
    """Replaces an address on all interfaces by the same port on loopback."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("", "*", "[::]", "::", "0.0.0.0") else address


def keep_on_loopback() -> None:
    """Wraps the function by which Serve opens a replica's handle port."""
    from ray._common import tls_utils

    opened: Any = tls_utils.add_port_to_grpc_server
    if getattr(opened, "on_loopback", False):
        return

    def add_port_to_grpc_server(server: Any, address: str) -> Any:
        return opened(server, loopback_of(address))

    add_port_to_grpc_server.on_loopback = True  # type: ignore[attr-defined]
    tls_utils.add_port_to_grpc_server = add_port_to_grpc_server


def write_haproxy(path: Path, binary: str, host: str, port: int) -> None:
    """Writes a shell script that corrects the ``bind`` lines of the configuration, then becomes HAProxy.

    It binds the API's port to ``host`` only, every other port to loopback, and has HAProxy send the client's
    address in ``X-Forwarded-For``. Serve rewrites the configuration before each start, so the script runs
    each time; it keeps its process id, which Serve signals.
    """
    any_host = r"^([[:space:]]*bind[[:space:]]+)[^[:space:]]*:"
    all_interfaces = r"^([[:space:]]*bind[[:space:]]+)(\*|0\.0\.0\.0|::)?:"
    rules = [
        f"s/{all_interfaces}([0-9]+)/\\1127.0.0.1:\\3/",
        f"s/{any_host}{port}([[:space:]]|$)/\\1{host}:{port}\\2/",
        # Replicas limit the rate by client address (serve.client_rate).
        r"s/^([[:space:]]*)option httplog$/\1option httplog\n\1option forwardfor/",
    ]
    path.write_text(
        "#!/bin/sh\n"
        'previous=""\n'
        'for argument in "$@"; do\n'
        '  if [ "$previous" = "-f" ]; then\n'
        f'    sed -i -E {shlex.quote("; ".join(rules))} "$argument" || exit 1\n'
        "  fi\n"
        '  previous="$argument"\n'
        "done\n"
        f'exec {shlex.quote(binary)} "$@"\n'
    )
    path.chmod(0o700)
