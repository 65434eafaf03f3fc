"""HAProxy's configuration, and the object that starts it, as the installed Ray Serve makes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

PORT, REPLICA, FALLBACK = 8000, 30_001, 8500


def haproxy_api(
    folder: Path, port: int = PORT, replica: int = REPLICA, is_deployed: bool = True, **fields: Any
) -> Any:
    """Serve's HAProxyApi for one application with a replica and Serve's own proxy behind it.

    Serve's statistics and metrics are on the two ports after ``port``. ``fields``: of Serve's settings.
    """
    from ray.serve._private import haproxy
    from ray.serve.config import HTTPOptions

    app = haproxy.BackendConfig(
        name="http-recsys", path_prefix="/", app_name="recsys", ingress_deployment_name="Feed",
        servers=[haproxy.ServerConfig("SERVE_REPLICA__1", "127.0.0.1", replica)],
        fallback_server=haproxy.ServerConfig("SERVE_PROXY_ACTOR-1", "127.0.0.1", FALLBACK),
    )  # fmt: skip
    config = haproxy.HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port), is_head=True, stats_port=port + 1,
        metrics_port=port + 2, socket_path=f"{folder}/a.sock", server_state_base=str(folder),
        server_state_file=f"{folder}/server-state", metrics_socket_path=f"{folder}/m.sock",
    )  # fmt: skip
    return haproxy.HAProxyApi(
        cfg=replace(config, **fields),
        backend_configs={"http-recsys": app} if is_deployed else {},
        config_file_path=f"{folder}/haproxy.cfg",
    )


def written_by_serve(folder: Path, **arguments: Any) -> str:
    api = haproxy_api(folder, **arguments)
    api._generate_config_file_internal()
    return (folder / "haproxy.cfg").read_text()
