"""The Serve application's part: deploys it, monitors it, and takes it down at the end."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from recsys.config.system_config import Config
from recsys.process.part_process import Stop
from runtime.parts.restart import FAILED, GAUGE, newest_request_number
from runtime.supervision import launch_plan
from runtime.supervision.ray_environment import client_environment, serve_host

SHARDS_AWAY: Final = "retrieval_shards_away"  # heartbeat gauge: number of shards that are down
_REQUEST_TIMEOUT_S: Final = 30.0
_CHECK_EVERY_S: Final = 2.0
# Serve replaces replicas itself: only what it can't repair ends the part.
_UNHEALTHY_S: Final = 60.0
_STARTING_S: Final = 660.0  # limit while a replica is still catching up
_log = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """Runs the part; it is ready once a replica has caught up with the log and answers."""
    _, plan = launch_plan.read(config.state)
    if "RAY_ADDRESS" not in os.environ:
        # Started by hand: Ray's client reads these at import.
        os.environ.update(client_environment(config, plan))
    import ray
    from ray import serve

    from serving.app import APP
    from serving.app import application as build_application

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
                "keep_alive_timeout_s": max(1, round(config.doors.idle_s)),
            }
        )
        number = newest_request_number(config.state)
        deploy = partial(_deploy, serve, APP, partial(build_application, config, plan.hooked))
        deploy()
        url = launch_plan.local_api_url(config)
        stop.heartbeat.address("feed", launch_plan.public_url(config))
        _wait_until_ready(serve, APP, partial(answers, url, config.state), stop)
        restarts = RestartRequests(config.state, number, deploy)
        _monitor(serve, APP, stop, restarts, config.serve.retrieval_shards)
    finally:
        take_down(serve, APP, plan.owns_ray, plan.own_nodes)
        ray.shutdown()


def _deploy(serve: Any, app: str, application: Callable[[], Any]) -> None:
    """Deploys without waiting. Replicas of a running application are replaced one by one."""
    target = serve.RunTarget(target=application(), name=app, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)


class RestartRequests:
    """Redeploys on request of ``recsys restart``. ``number``: of the newest request; ``completed``: of the
    last that was completed."""

    def __init__(self, state: str, number: int, deploy: Callable[[], None]) -> None:
        self._state, self._deploy = state, deploy
        self.completed = self.number = number

    def check(self) -> None:
        """Redeploys where there is a new request."""
        if (number := newest_request_number(self._state)) != self.number:
            self.number = number
            self._deploy()

    def complete(self) -> None:
        self.completed = self.number


class RetrievalShards:
    """Monitors the deployments of retrieval shards.

    Lists are answered without a missing shard, so nothing else would report one that never starts.
    """

    def __init__(self, count: int, stop: Stop) -> None:
        from serving.retrieval.ray_retrieval import name_of

        self._names = [name_of(shard) for shard in range(count)]
        self._stop, self._away = stop, list[str]()

    def check(self, deployments: Mapping[str, Any]) -> None:
        """Reports the number of missing shards in the heartbeat, and logs changes."""
        if not self._names:
            return
        running = [n for n, it in deployments.items() if it.replica_states.get("RUNNING")]
        away = [name for name in self._names if name not in running]
        self._stop.heartbeat.gauge(SHARDS_AWAY, len(away))
        if away == self._away:
            return
        self._away = away
        if away:
            why = {name: deployments[name].message for name in away if name in deployments}
            _log.warning("retrieval shards are down", extra={"away": away, "why": why})
        else:
            _log.info("all retrieval shards run")


def take_down(serve: Any, app: str, owns_ray: bool, own_nodes: bool = False) -> None:
    """Shuts Serve down on an own Ray cluster, and on own nodes of another, whose HAProxy would keep this
    start's settings. Where Serve is shared, or runs another application, deletes this application alone."""
    running = set() if owns_ray else set(serve.status().applications)
    if owns_ray or (own_nodes and running <= {app}):
        serve.shutdown()
    elif app in running:
        serve.delete(app)


def answers(url: str, state: str) -> bool:
    """Whether a replica is ready, and answers a list, which isn't logged."""
    import httpx

    try:
        ready = httpx.get(f"{url}/readyz", timeout=5.0)
        # Where sessions or counters catch up, the part answers, and status says so.
        if ready.status_code == 200 or _catches_up(ready):
            headers = launch_plan.admin_headers(state)
            ready = httpx.get(f"{url}/v1/inspect/users/0", headers=headers, timeout=5.0)
    except httpx.HTTPError:  # HAProxy still reads its configuration, or the replica its catalogue
        return False
    # Without sessions, lists are answered as degraded ones, but nobody can be inspected.
    return ready.status_code == 200 or "session store" in ready.text


def _catches_up(answer: Any) -> bool:
    try:
        return bool(answer.json().get("catching_up"))
    except (ValueError, AttributeError):  # of a proxy
        return False


def _wait_until_ready(serve: Any, app: str, is_answering: Callable[[], bool], stop: Stop) -> None:
    """Returns once a replica answers. Raises RuntimeError where Serve gave up on starting one."""
    while not stop.is_set(starting=True):
        application = serve.status().applications.get(app)
        if application is not None and application.status.value == "DEPLOY_FAILED":
            raise RuntimeError(f"the Serve application can't be started: {_reason(application)}")
        if is_answering():
            return
        stop.wait(0.2, starting=True)


def _monitor(serve: Any, app: str, stop: Stop, restarts: RestartRequests, shards: int = 0) -> None:
    """Returns when asked to stop; raises RuntimeError where the application stays unhealthy.

    ``shards``: number of retrieval shards.
    """
    healthy_at, retrieval, before = time.monotonic(), RetrievalShards(shards, stop), ""
    while not stop.wait(_CHECK_EVERY_S):
        restarts.check()
        application = serve.status().applications.get(app)
        status = "GONE" if application is None else str(application.status.value)
        deployments: dict[str, Any] = {} if application is None else application.deployments
        states = deployments["Feed"].replica_states if "Feed" in deployments else {}
        answering = states.get("RUNNING", 0)
        starting = any(d.replica_states.get("STARTING") for d in deployments.values())
        stop.heartbeat.gauge("replicas", answering)
        retrieval.check(deployments)
        if status == "RUNNING":
            restarts.complete()
        stop.heartbeat.gauge(GAUGE, restarts.completed)
        stop.heartbeat.gauge(FAILED, restarts.number if status == "DEPLOY_FAILED" else 0)
        if status == "DEPLOY_FAILED" != before:
            _log.error("not all replicas start", extra={"why": _reason(application)})
        before = status
        # Lists are answered without a retrieval shard, and Serve restarts it.
        feed_is_healthy = answering and str(deployments["Feed"].status.value) == "HEALTHY"
        if status == "RUNNING" or (answering and status.startswith("DEPLOY")) or feed_is_healthy:
            healthy_at = time.monotonic()
        elif time.monotonic() - healthy_at > (_STARTING_S if starting else _UNHEALTHY_S):
            raise RuntimeError(f"the Serve application is {status}: {_reason(application)}")


def _reason(application: Any) -> str:
    """Serve's message, and those of the deployments: they have the error of a replica that doesn't start."""
    parts = [application, *application.deployments.values()] if application else []
    return " ".join(part.message for part in parts if part.message)
