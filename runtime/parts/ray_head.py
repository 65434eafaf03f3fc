"""The part that carries the Ray head: how it is started, kept on loopback and ended.

Ray rewrites a loopback node address to one that other machines reach, and then GCS, raylet, agents and
workers listen on all interfaces. The setting by which Ray on macOS and Windows stays a single machine,
``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0``, is read on Linux too: with it the address stays 127.0.0.1, and so do
all the ports (``recsys up`` looks after the start, and says so where one doesn't). Only Serve adds three
that it doesn't reach: see ``ray_loopback``. Every call to Ray needs the token in ``state/run/ray.token``
besides; HTTP to a deployment needs none.

``ray stop`` ends every Ray on the machine, so it is never used: the head runs in this part's session.
"""

import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from recsys.config.system_config import Config
from recsys.process.part_process import Stop
from runtime.parts.ray_loopback import write_haproxy
from runtime.supervision import launch_plan as plans
from runtime.supervision.launch_plan import Plan, RayPorts
from runtime.supervision.ray_environment import client_environment, dashboard_url, haproxy

_LOOPBACK: Final = "127.0.0.1"
_OBJECT_STORE_BYTES: Final = 300_000_000  # rows travel beside Ray, so its store holds little
# Ray's unix sockets lie under the temporary folder and may be 107 bytes long, which a state folder
# easily takes up alone.
_PREFIX: Final = "rs-"


def head_environment(config: Config, plan: Plan, folder: Path) -> dict[str, str]:
    """The head's environment, which every Ray worker inherits."""
    environment = {**os.environ, **client_environment(config, plan)}
    # Of a driver, not of a replica; and the head is no client of itself.
    for name in ("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "RAY_ADDRESS"):
        environment.pop(name, None)
    serve = folder / "h"
    scripts = sysconfig.get_path("scripts")
    environment |= {
        # A job's command line is run with it: `recsys` is found where nothing was activated.
        "PATH": os.pathsep.join(filter(None, (scripts, environment.get("PATH")))),
        "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "runtime.parts.ray_worker.begin",
        "AUTOSCALER_METRIC_PORT": str(plan.ray.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(plan.ray.dashboard_metrics),
        # Gloo would listen on the address that the machine's name stands for.
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        # There is no other node that could take over: end at once instead of draining for half a minute.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Ray's workers would run at nice 15, the replica among them; trainers step back by themselves.
        "RAY_worker_niceness": "0",
        # Arrays up to 8 MB travel inside the call: through the object store a step takes twice as long.
        "RAY_max_direct_call_object_size": "8000000",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(serve / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(serve / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(serve / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(serve),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(serve / "server-state"),
    }
    if binary := haproxy():
        script = folder / "haproxy"
        write_haproxy(script, binary, config.serve.host, config.serve.port)
        environment["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(script)
    return environment


def command(config: Config, ports: RayPorts, folder: Path) -> list[str]:
    """The command line of the head. ``--block``: it runs until it is ended, and its services end with it."""
    ray = shutil.which("ray", path=sysconfig.get_path("scripts")) or "ray"
    options = {
        "node-ip-address": _LOOPBACK,
        "port": ports.gcs,
        "node-manager-port": ports.node_manager,
        "object-manager-port": ports.object_manager,
        "ray-client-server-port": ports.client,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "include-dashboard": str(config.serve.dashboard).lower(),
        "dashboard-host": _LOOPBACK,
        "dashboard-port": config.serve.dashboard_port,
        "dashboard-agent-listen-port": ports.agent_http,
        "dashboard-agent-grpc-port": ports.agent_grpc,
        "runtime-env-agent-port": ports.runtime_env,
        "metrics-export-port": ports.metrics,
        "num-cpus": logical_cpus(config),
        "object-store-memory": _OBJECT_STORE_BYTES,
        "temp-dir": folder,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, ray, "start", "--head", "--block", "--disable-usage-stats", *flags]


def logical_cpus(config: Config) -> int:
    """What Ray may hand out: the machine's, or more where the parts ask for more. It is bookkeeping only."""
    trainer = config.trainer.workers * config.trainer.cpus_per_worker
    replicas = max(config.serve.replicas, config.serve.max_replicas) + 1  # one more at a restart
    retrieval = (
        2 * config.serve.retrieval_shards
    )  # a restart starts all of them anew, beside the old
    wanted = math.ceil(trainer) + replicas + retrieval + config.parameter_server.shards
    return max(os.cpu_count() or 1, wanted + 1)  # one for an offline job


def run(config: Config, stop: Stop) -> None:
    """Runs the head and ends with it, either way round."""
    _, plan = plans.read(config.state)
    folder = _fresh_folder(Path(config.state) / "run" / "ray")
    head = subprocess.Popen(
        command(config, plan.ray, folder),
        env=head_environment(config, plan, folder),
        stdin=subprocess.DEVNULL,
    )
    try:
        while not _started(folder) and head.poll() is None:
            if stop.wait(0.05, starting=True):
                break
        stop.heartbeat.address("gcs", f"{_LOOPBACK}:{plan.ray.gcs}")
        if config.serve.dashboard:
            stop.heartbeat.address("dashboard", dashboard_url(config))
        stop.heartbeat.address("metrics", f"http://{_LOOPBACK}:{plan.ray.metrics}/metrics")
        while head.poll() is None and not stop.wait(0.2):
            pass
        if head.returncode is not None:
            raise RuntimeError(
                f"the Ray head ended by itself with exit status {head.returncode}; its messages are in "
                f"{config.state}/run/ray.out and under {folder}"
            )
    finally:
        if head.poll() is None:
            head.terminate()
            head.wait()
    shutil.rmtree(
        folder, ignore_errors=True
    )  # after a crash it stays, to be read, until the next start


def _started(folder: Path) -> bool:
    """The head writes this file once its services answer."""
    return (folder / "ray_current_cluster").exists()


def _fresh_folder(link: Path) -> Path:
    """A new short folder, with a link to it beside the state; that of the last head is removed."""
    if link.is_symlink():
        last = link.readlink()
        if last.name.startswith(_PREFIX):
            shutil.rmtree(last, ignore_errors=True)
        link.unlink()
    short = "/tmp" if Path("/tmp").is_dir() else None  # macOS gives each user a long one
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=short))
    (folder / "h").mkdir()
    link.symlink_to(folder)
    return folder
