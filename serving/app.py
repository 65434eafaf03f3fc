"""The Serve deployment: one replica is one service with its HTTP app. Thin: all it knows is in others.

User code runs on the replica's own event loop (RAY_SERVE_THROUGHPUT_OPTIMIZED), so nothing in it may block.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import torch
from fastapi import FastAPI
from ray import serve

from recsys.config.system_config import Config, ServeConfig
from recsys.observability.log_lines import LogThrottle, keep_newest, log_in_worker
from recsys.observability.tracer import open_tracer_in_actor
from recsys.process.latency_tuning import tune_for_latency
from recsys.process.open_log import open_log
from serving.http_app import build_app
from serving.retrieval.ray_retrieval import actor_options, asked_by_handle, deployments
from serving.service import Service, admin_key_file
from serving.sessions.session_store import RedisSessions
from serving.tracing.ray_metrics import RayMetrics
from serving.tracing.swipe_traces import SwipeTraces

APP = "recsys"
HEALTH_PERIOD_S = 5.0
GRACE_S = 5.0
CATCH_UP_S = (
    600.0  # a replica that hasn't caught up by then takes traffic all the same, and says so
)
_COMPLAIN_EVERY_S: Final = 60.0
_LOG: Final = logging.getLogger(__name__)
_BESIDE = 100  # health, metrics and pages, beside what the gate lets in


class Feed:
    """The class behind the deployment. ``config`` is the configuration as JSON, so that nothing is pickled
    that another version of the code would read otherwise. ``shards``: handles of those of retrieval."""

    def __init__(self, config: str, shards: Sequence[Any] = ()) -> None:
        self._config = msgspec.json.decode(config, type=Config)
        torch.set_num_threads(
            1
        )  # sums must not depend on the number of cores; two also cost more here
        self._name = name = serve.get_replica_context().replica_id.unique_id
        self._metrics: RayMetrics | None = None  # once there is an app
        self._complaints = LogThrottle(_COMPLAIN_EVERY_S)
        self._log_as(name)
        log = open_log(self._config)
        self._tracer = tracer = open_tracer_in_actor(self._config, "serve", name)
        self.service = Service(
            self._config,
            log,
            RedisSessions(self._config.sessions.url),
            shards=asked_by_handle(shards),
            traces=SwipeTraces(tracer, name, time.time_ns) if tracer else None,
        )

    def _log_as(self, name: str) -> None:
        state, form = self._config.state, self._config.logging.format
        its = self._config.serve
        keep_newest(state, "replica-*.log*", 8 + 2 * max(its.replicas, its.max_replicas))
        log_in_worker("serve", state, f"replica-{name}", form, {"replica": name})

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Asked by Serve, once, after the constructor."""
        app = build_app(self.service, self._admin_key, CATCH_UP_S, tune_for_latency)
        self._metrics = RayMetrics(app.state.metrics.registry, self._name)
        return app

    async def check_health(self) -> None:
        """Raises where the replica can't be mended but by a new one: it stopped following the log. Asked for
        each few seconds, so it also tells Ray's metrics."""
        if self.service.failure:
            raise RuntimeError(self.service.failure)
        if self._metrics is not None:
            self._tell(self._metrics)

    def _tell(self, metrics: RayMetrics) -> None:
        """A replica that answers isn't replaced since Ray's metrics took nothing."""
        try:
            metrics.tell(*self.service.replica.version)
        except Exception:
            if times := self._complaints.due("metrics", time.monotonic()):
                _LOG.exception("Ray's metrics aren't told", extra={"times": times})

    def __del__(self) -> None:
        """Called by Serve once the service has stopped: the newest spans go out. Also where the constructor
        raised."""
        if tracer := getattr(self, "_tracer", None):
            tracer.close()

    def reconfigure(self, about: dict[str, Any]) -> None:
        """Nothing to do: ``about`` is there for Ray's dashboard."""

    def _admin_key(self) -> str:
        try:
            return admin_key_file(self._config).read_text().strip()
        except OSError:
            return ""


def _scale(serve: ServeConfig) -> dict[str, Any]:
    """How many replicas: a number, or between two by how much is asked."""
    if not serve.max_replicas:
        return {"num_replicas": serve.replicas}
    scaling = {
        "min_replicas": serve.min_replicas,
        "max_replicas": serve.max_replicas,
        "target_ongoing_requests": serve.target_ongoing,
        "upscale_delay_s": serve.upscale_s,
        "downscale_delay_s": serve.downscale_s,
    }
    return {"autoscaling_config": scaling}


def _about(config: Config) -> dict[str, Any]:
    """What a deployment is, for Ray's dashboard. It says no address and no secret."""
    serve = config.serve
    return {
        "about": "one replica answers lists and takes events: session, retrieval, ranking, selection",
        "configuration": config.name,
        "features": config.model.features,
        "candidates": serve.candidates,
        "rows": serve.rows,
        "index": serve.index,
        "retrieval_shards": serve.retrieval_shards,
        "deadline_ms": serve.deadline_ms,
        "traced": config.tracing.share if config.tracing.on else 0.0,
    }


def application(config: Config, hooked: bool = False) -> Any:
    """The application to give to Serve. ``hooked``: whether Ray's workers run our hook, so that a replica can
    step back while it starts. A replica refuses by its gate, which knows what waits; Serve's own
    limit stands above it. At a restart a new replica catches up before an old one leaves."""
    most = 2 * config.serve.max_ongoing + config.serve.max_events + _BESIDE
    deployment = serve.deployment(
        name="Feed",
        **_scale(config.serve),
        max_ongoing_requests=most,
        max_queued_requests=most,
        max_surge_percent=1,  # of the replicas, rounded up: one at a time
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        ray_actor_options=actor_options(hooked),
        user_config=_about(config),
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=GRACE_S,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"log_level": "WARNING", "enable_access_log": False},  # a line a request
    )
    encoded = msgspec.json.encode(config).decode()
    return deployment(serve.ingress()(Feed)).bind(encoded, deployments(config, encoded, hooked))


def build(arguments: dict[str, str]) -> Any:
    """The application for `serve deploy` and KubeRay's RayService: ``import_path: serving.app:build``, with
    ``args: {config: NAME_OR_FILE}``; the environment (RECSYS__...) wins, as everywhere."""
    from recsys.config.loader import load

    return application(load(arguments.get("config", "cluster")))
