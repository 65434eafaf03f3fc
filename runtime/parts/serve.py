"""The part that drives the Serve application: starts it, watches it, takes it down at the end."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from recsys.config.system_config import Config
from recsys.process.part_process import Stop
from runtime.parts.restart import GAUGE, requested
from runtime.supervision import launch_plan as plans
from runtime.supervision.ray_environment import client_environment, serve_host

AWAY: Final = "retrieval_shards_away"  # of the heartbeat: how many don't run
_REQUEST_TIMEOUT_S: Final = 30.0
_LOOK_EVERY_S: Final = 2.0
# Serve replaces replicas by itself: only what it can't mend ends the part.
_UNHEALTHY_S: Final = 60.0
_STARTING_S: Final = 660.0  # where a replica is still catching up: it counts as started after that
_log = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """The part. Ready once a replica has caught up with the log and answers."""
    _, plan = plans.read(config.state)
    if "RAY_ADDRESS" not in os.environ:
        # A part that a person runs: what Ray's client needs, before its import.
        os.environ.update(client_environment(config, plan))
    import ray
    from ray import serve

    from serving.app import APP, application

    ray.init(
        address=os.environ["RAY_ADDRESS"],
        log_to_driver=False,
        job_config=ray.job_config.JobConfig(metadata={"part": "serve", "application": APP}),
    )
    try:
        serve.start(
            http_options={
                "host": serve_host(config, plan),
                "port": config.serve.port,
                "request_timeout_s": _REQUEST_TIMEOUT_S,
                "keep_alive_timeout_s": 75,
            }
        )
        asked = requested(config.state)
        deploy = partial(_deploy, serve, APP, partial(application, config, plan.owns_ray))
        deploy()
        url = plans.feed_url(config)
        stop.heartbeat.address("feed", url)
        _wait_until_ready(serve, APP, url, stop)
        restarts = Restarts(config.state, asked, deploy)
        _watch(serve, APP, stop, restarts, config.serve.retrieval_shards)
    finally:
        take_down(serve, APP, plan.owns_ray)
        ray.shutdown()


def _deploy(serve: Any, app: str, application: Callable[[], Any]) -> None:
    """Deploys, and doesn't wait. Where the application runs, its replicas are replaced one by one."""
    target = serve.RunTarget(target=application(), name=app, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)


class Restarts:
    """Deploys again where ``recsys restart`` asks for it. ``done`` is the last request that was fulfilled."""

    def __init__(self, state: str, asked: int, deploy: Callable[[], None]) -> None:
        self._state, self._deploy = state, deploy
        self.done = self._asked = asked

    def look(self) -> None:
        if (asked := requested(self._state)) != self._asked:
            self._asked = asked
            self._deploy()

    def fulfilled(self) -> None:
        self.done = self._asked


class Shards:
    """The shards of retrieval, by their deployments. Lists go on without one, so that nothing else tells of
    one that never comes up."""

    def __init__(self, count: int, stop: Stop) -> None:
        from serving.retrieval.ray_retrieval import name_of

        self._names = [name_of(shard) for shard in range(count)]
        self._stop, self._away = stop, list[str]()

    def look(self, deployments: Mapping[str, Any]) -> None:
        """Tells the heartbeat how many don't run, and the log which, where they are others than before."""
        if not self._names:
            return
        away = [
            name
            for name in self._names
            if name not in deployments or not deployments[name].replica_states.get("RUNNING")
        ]
        self._stop.heartbeat.gauge(AWAY, len(away))
        if away == self._away:
            return
        self._away = away
        if away:
            why = {name: deployments[name].message for name in away if name in deployments}
            _log.warning("shards of retrieval don't run", extra={"away": away, "why": why})
        else:
            _log.info("all shards of retrieval run")


def take_down(serve: Any, app: str, owns_ray: bool) -> None:
    """Ends all of Serve where the Ray cluster is ours; else our application alone: others may run there."""
    if owns_ray:
        serve.shutdown()
    elif app in serve.status().applications:
        serve.delete(app)


def _wait_until_ready(serve: Any, app: str, url: str, stop: Stop) -> None:
    """Returns once a replica answers. Raises where none can be started: the constructor failed, again and
    again."""
    import httpx

    while not stop.is_set(starting=True):
        found = serve.status().applications.get(app)
        if found is not None and found.status.value == "DEPLOY_FAILED":
            raise RuntimeError(f"the Serve application can't be started: {found.message}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # HAProxy reads its configuration, or the replica its catalogue
        stop.wait(0.2, starting=True)


def _watch(serve: Any, app: str, stop: Stop, restarts: Restarts, shards: int = 0) -> None:
    """Returns when asked to stop; raises where the application stays unhealthy. ``shards``: of retrieval."""
    well_at, retrieval = time.monotonic(), Shards(shards, stop)
    while not stop.wait(_LOOK_EVERY_S):
        restarts.look()
        found = serve.status().applications.get(app)
        status = "GONE" if found is None else str(found.status.value)
        its: dict[str, Any] = {} if found is None else found.deployments
        states = its["Feed"].replica_states if "Feed" in its else {}
        answering = states.get("RUNNING", 0)
        starting = any(one.replica_states.get("STARTING") for one in its.values())
        stop.heartbeat.gauge("replicas", answering)
        retrieval.look(its)
        if status == "RUNNING":
            restarts.fulfilled()
        stop.heartbeat.gauge(GAUGE, restarts.done)
        # Lists go on without a shard of retrieval, and Serve starts another by itself.
        lists_go_on = answering and str(its["Feed"].status.value) == "HEALTHY"
        if status == "RUNNING" or (status == "DEPLOYING" and answering) or lists_go_on:
            well_at = time.monotonic()
        elif time.monotonic() - well_at > (_STARTING_S if starting else _UNHEALTHY_S):
            raise RuntimeError(
                f"the Serve application is {status}: {found.message if found else ''}"
            )
