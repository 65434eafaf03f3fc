"""The Ray head's part: starts the head, keeps it on loopback, and ends it.

Ray replaces a loopback node address by an external one, and then GCS, raylet, agents and workers listen on
all interfaces. ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0``, which limits Ray to one machine on macOS and Windows,
works on Linux too: the address stays 127.0.0.1, and with it all ports (``recsys up`` checks this after the
start, and warns of any other port). Only ports of Serve ignore it: see ``ray_loopback`` and
``haproxy_config``. In addition every call to Ray needs the token in ``STATE/run/ray.token``; HTTP to a
deployment doesn't.

``ray stop`` would end every Ray on the machine, so it is never used: the head runs in this part's session.
"""

import importlib
import math
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, Final

from recsys.config.system_config import Config
from recsys.process.part_process import Stop
from runtime.supervision import launch_plan
from runtime.supervision.launch_plan import Plan, RayPorts
from runtime.supervision.processes import STATE
from runtime.supervision.ray_environment import (
    INTERVALS,
    client_environment,
    dashboard_url,
    haproxy_files,
    worker_environment,
)

_LOOPBACK: Final = "127.0.0.1"
_OBJECT_STORE_BYTES: Final = 300_000_000  # small, since rows bypass Ray's object store
# Paths of unix sockets may have 107 bytes at most: a state folder's path can be too long.
_PREFIX: Final = "rs-"


def head_environment(config: Config, plan: Plan, home: Path) -> dict[str, str]:
    """Builds the head's environment, which every Ray worker inherits."""
    environment = {**os.environ, **client_environment(config, plan), **worker_environment()}
    # The first is for drivers, not for replicas; and the head is no client of itself.
    for name in ("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "RAY_ADDRESS"):
        environment.pop(name, None)
    return environment | INTERVALS | haproxy_files(home / "h") | {
        "TMPDIR": str(home / "t"),
        STATE: str(Path(config.state).resolve()),
        "DASHBOARD_METRIC_PORT": str(plan.ray.dashboard_metrics),
        # No other node could take over: end at once instead of draining for half a minute.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }  # fmt: skip


def start_head(config: Config, ports: RayPorts, folder: Path) -> Any:
    """Starts the head's processes as children of this one, with its environment, and returns Ray's ``Node``.

    Left out are processes that nothing here uses: autoscaler, Ray client server, and log monitor.
    """
    services: Any = importlib.import_module("ray._private.services")
    node: Any = importlib.import_module("ray._private.node")
    parameter: Any = importlib.import_module("ray._private.parameter")
    start = services.start_ray_process

    def start_process(command: list[str], kind: str, *arguments: Any, **named: Any) -> Any:
        if kind == "dashboard":
            script = next(at for at, word in enumerate(command) if word.endswith("dashboard.py"))
            command = [*command[:script], "-m", "runtime.parts.ray_dashboard", *command[script + 1 :]]
        return start(command, kind, *arguments, **named)

    services.start_ray_process = start_process
    parameters = parameter.RayParams(
        node_ip_address=_LOOPBACK, gcs_server_port=ports.gcs,
        node_manager_port=ports.node_manager, object_manager_port=ports.object_manager,
        min_worker_port=0, max_worker_port=0,
        include_dashboard=config.serve.dashboard, dashboard_host=_LOOPBACK,
        dashboard_port=config.serve.dashboard_port, dashboard_agent_listen_port=ports.agent_http,
        metrics_agent_port=ports.agent_grpc, runtime_env_agent_port=ports.runtime_env,
        metrics_export_port=ports.metrics, num_cpus=logical_cpus(config),
        object_store_memory=_OBJECT_STORE_BYTES, temp_dir=str(folder), no_monitor=True,
        include_log_monitor=False,
    )  # fmt: skip
    head = node.Node(parameters, head=True, shutdown_at_exit=False, spawn_reaper=False)
    # Otherwise a job's address is that of any Ray on this machine.
    utils: Any = importlib.import_module("ray._private.utils")
    utils.write_ray_address(f"{_LOOPBACK}:{ports.gcs}", str(folder))
    return head


def logical_cpus(config: Config) -> int:
    """Logical CPUs of the cluster: the machine's, or as many as the parts need. Bookkeeping only."""
    trainer = config.trainer.workers * config.trainer.cpus_per_worker
    # One more during a restart.
    replicas = max(config.serve.replicas, config.serve.max_replicas) + 1
    retrieval = 2 * config.serve.retrieval_shards  # a restart starts new ones beside the old
    wanted = math.ceil(trainer) + replicas + retrieval + config.parameter_server.shards
    return max(os.cpu_count() or 1, wanted + 1)  # one for an offline job


def run(config: Config, stop: Stop) -> None:
    """Runs the head; part and head end together."""
    _, plan = launch_plan.read(config.state)
    home = fresh_home(Path(config.state) / "run" / "ray")
    environment = head_environment(config, plan, home)
    os.environ.clear()
    os.environ.update(environment)
    head = start_head(config, plan.ray, home / "r")
    try:
        check_closed(home)
        stop.heartbeat.address("gcs", f"{_LOOPBACK}:{plan.ray.gcs}")
        if config.serve.dashboard:
            stop.heartbeat.address("dashboard", dashboard_url(config))
        stop.heartbeat.address("metrics", f"http://{_LOOPBACK}:{plan.ray.metrics}/metrics")
        while not stop.wait(0.5):
            for name, process in head.dead_processes():
                raise RuntimeError(
                    f"the Ray head's {name} ended with exit status {process.returncode}; its messages are in "
                    f"{config.state}/run/ray.out and under {home / 'r'}"
                )
    finally:
        head.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
    # After a crash the folder stays for diagnosis, until the next start.
    shutil.rmtree(home, ignore_errors=True)


def fresh_home(link: Path) -> Path:
    """Makes a folder with a short path for this user only; removes that of the last head.

    Ray opens its temporary folder to all users (mode 0777), so that is one level below: ``r``, to which
    ``link`` leads. ``h`` has HAProxy's configuration and sockets, ``t`` the workers' temporary files.
    """
    if link.is_symlink():
        last = link.readlink()
        if (old := last if last.name.startswith(_PREFIX) else last.parent).name.startswith(_PREFIX):
            shutil.rmtree(old, ignore_errors=True)
        link.unlink()
    short = "/tmp" if Path("/tmp").is_dir() else None  # macOS has long temporary paths
    home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=short))
    for name in ("r", "h", "t"):
        (home / name).mkdir(mode=0o700)
    link.symlink_to(home / "r")
    return home


def check_closed(home: Path) -> None:
    """Raises PermissionError where another user could enter the head's folder."""
    status = home.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode != 0o700:
        raise PermissionError(
            f"{home} has owner {status.st_uid} and mode {mode:o}, expected {os.geteuid()} and 700: another "
            "program opened it to other users, who could run code as this one; it starts anew"
        )
