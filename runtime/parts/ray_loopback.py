"""Keeps Ray Serve's own ports on loopback: HAProxy's statistics and metrics, and a replica's handle port.

Only the API's own port goes where ``serve.host`` says.

Ray's settings reach all its other ports (see ``ray_head``). These three are bound to all interfaces by fixed
strings, and the last reads pickled requests from whoever connects. ``keep_on_loopback`` is called in each
worker process before it imports Serve (``ray_worker``); ``write_haproxy`` makes the program that Serve
starts in HAProxy's place.
"""

import shlex
from pathlib import Path
from typing import Any


def loopback_of(address: str) -> str:
    """The same port on loopback, for an address that means all interfaces."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("", "*", "[::]", "::", "0.0.0.0") else address


def keep_on_loopback() -> None:
    """Wraps the one function through which Serve opens a replica's handle port."""
    from ray._common import tls_utils

    opened = tls_utils.add_port_to_grpc_server
    if getattr(opened, "on_loopback", False):
        return

    def add_port_to_grpc_server(server: Any, address: str) -> Any:
        return opened(server, loopback_of(address))

    add_port_to_grpc_server.on_loopback = True  # type: ignore[attr-defined]
    tls_utils.add_port_to_grpc_server = add_port_to_grpc_server


def write_haproxy(path: Path, binary: str, host: str, port: int) -> None:
    """Writes a shell script that puts each ``bind`` of the configuration in its place, then becomes HAProxy.

    The API's port is bound on ``host`` and nowhere else, every other on loopback; who asks is told in
    ``X-Forwarded-For``. Serve writes the
    configuration anew before each start, so the script runs at each; its process id stays that of HAProxy,
    which Serve signals.
    """
    any_host = r"^([[:space:]]*bind[[:space:]]+)[^[:space:]]*:"
    all_interfaces = r"^([[:space:]]*bind[[:space:]]+)(\*|0\.0\.0\.0|::)?:"
    rules = [
        f"s/{all_interfaces}([0-9]+)/\\1127.0.0.1:\\3/",
        f"s/{any_host}{port}([[:space:]]|$)/\\1{host}:{port}\\2/",
        # So that a replica knows who asks (serve.client_rate).
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
