"""The part that drives the Serve application: starts it, watches it, takes it down at the end."""

import os
import time
from typing import Any, Final

from recsys.cli import plan as plans
from recsys.cli.ray_head import client_environment, serve_host
from recsys.config import Config
from recsys.loops import Stop

_REQUEST_TIMEOUT_S: Final = 30.0
_LOOK_EVERY_S: Final = 2.0
# Serve replaces replicas by itself: only what it can't mend ends the part.
_UNHEALTHY_S: Final = 60.0


def run(config: Config, stop: Stop) -> None:
    """The part. Ready once a replica has caught up with the log and answers."""
    _, plan = plans.read(config.state)
    if "RAY_ADDRESS" not in os.environ:
        # A part that a person runs: what Ray's client needs, before its import.
        os.environ.update(client_environment(config, plan))
    import ray
    from ray import serve

    from serving.app import APP, application

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    try:
        serve.start(
            http_options={
                "host": serve_host(config, plan),
                "port": config.serve.port,
                "request_timeout_s": _REQUEST_TIMEOUT_S,
                "keep_alive_timeout_s": 75,
            }
        )
        serve.run(application(config), name=APP, route_prefix="/", blocking=False)
        url = plans.feed_url(config)
        stop.heartbeat.address("feed", url)
        _wait_until_ready(url, stop)
        _watch(serve, APP, stop)
    finally:
        take_down(serve, APP, plan.owns_ray)
        ray.shutdown()


def take_down(serve: Any, app: str, owns_ray: bool) -> None:
    """Ends all of Serve where the Ray cluster is ours; else our application alone: others may run there."""
    if owns_ray:
        serve.shutdown()
    elif app in serve.status().applications:
        serve.delete(app)


def _wait_until_ready(url: str, stop: Stop) -> None:
    import httpx

    while not stop.is_set(starting=True):
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # HAProxy reads its configuration, or the replica its catalogue
        stop.wait(0.2, starting=True)


def _watch(serve: Any, app: str, stop: Stop) -> None:
    """Returns when asked to stop; raises where the application stays unhealthy."""
    well_at = time.monotonic()
    while not stop.wait(_LOOK_EVERY_S):
        found = serve.status().applications.get(app)
        status = "GONE" if found is None else str(found.status.value)
        if status == "RUNNING":
            well_at = time.monotonic()
            replicas = found.deployments["Feed"].replica_states
            stop.heartbeat.gauge("replicas", replicas.get("RUNNING", 0))
        elif time.monotonic() - well_at > _UNHEALTHY_S:
            raise RuntimeError(
                f"the Serve application is {status}: {found.message if found else ''}"
            )
