"""Serve deployment: one replica is one service with its HTTP app.

User code runs on the replica's own event loop (RAY_SERVE_THROUGHPUT_OPTIMIZED), so nothing in it may block.
Only replicas import what answers, not the part that deploys them.
"""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from ray import serve
from ray.util.metrics import Counter, Gauge

from recsys.clock import machine_ns
from recsys.config.system_config import Config, ServeConfig
from recsys.observability.log_lines import LogThrottle, keep_newest, log_in_worker
from recsys.observability.tracer import open_tracer_in_actor
from recsys.process.clock_file import clock_of
from recsys.process.latency_tuning import tune_for_latency
from recsys.process.open_log import open_log
from serving.access.key_files import ADMIN_KEY, SecretFile
from serving.retrieval.ray_retrieval import CATCH_UP_S, client_of, deployment_options, deployments

if TYPE_CHECKING:
    from fastapi import FastAPI
    from prometheus_client.registry import Collector

APP = "recsys"
_LOG_EVERY_S: Final = 60.0
_LOG: Final = logging.getLogger(__name__)
_EXPORTED: Final = {
    "recsys_requests_total": ("recsys_requests", "Requests answered", ("route", "status")),
    "recsys_degraded_total": ("recsys_degraded", "Answers that skipped a stage", ("stage",)),
}


class RayMetrics:
    """Exports some of a replica's Prometheus metrics to Ray's dashboard and endpoint.

    It copies them at each health check (5 s), so a request pays nothing. Tags: the labels, and ``replica``.
    """

    def __init__(self, registry: "Collector", replica: str) -> None:
        self._registry, self._replica = registry, replica
        self._counters = {
            source: Counter(name, description, tag_keys=(*labels, "replica"))
            for source, (name, description, labels) in _EXPORTED.items()
        }
        tags = ("line", "epoch", "replica")
        self._step = Gauge("recsys_served_step", "Step that answers", tag_keys=tags)
        self._exported: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def export(self, line: str, epoch: int, step: int) -> None:
        """Adds the increments since the last call."""
        replica = {"replica": self._replica}
        self._step.set(step, {"line": line, "epoch": str(epoch)} | replica)
        for metric in self._registry.collect():
            for sample in metric.samples:
                counter = self._counters.get(sample.name)
                if counter is None:
                    continue
                key = sample.name, tuple(sorted(sample.labels.items()))
                increment = sample.value - self._exported.get(key, 0.0)
                self._exported[key] = sample.value
                if increment > 0:
                    counter.inc(increment, dict(sample.labels) | replica)


class Feed:
    """Class behind the deployment. ``config``: the configuration as JSON, so that no pickle ties it to one
    version of the code. ``shards``: handles of the retrieval shards."""

    def __init__(self, config: str, shards: Sequence[Any] = ()) -> None:
        import torch

        from serving.service import Service
        from serving.sessions.cluster_store import session_reader
        from serving.tracing.swipe_traces import SwipeTraces

        self._config = msgspec.json.decode(config, type=Config)
        # Sums must not depend on the number of cores; two threads also cost more here.
        torch.set_num_threads(1)
        self._name = name = serve.get_replica_context().replica_id.unique_id
        self._metrics: RayMetrics | None = None  # until there is an app
        self._throttle = LogThrottle(_LOG_EVERY_S)
        self._log_as(name)
        log = open_log(self._config)
        self._tracer = tracer = open_tracer_in_actor(self._config, "serve", name)
        traces = SwipeTraces(tracer, name, machine_ns) if tracer else None
        sessions, client = session_reader(self._config), client_of(shards)
        self.service = Service(
            self._config, log, sessions, clock_of(self._config), shards=client, traces=traces
        )

    def _log_as(self, name: str) -> None:
        state, form = self._config.state, self._config.logging.format
        replicas = max(self._config.serve.replicas, self._config.serve.max_replicas)
        keep_newest(state, "replica-*.log*", 8 + 2 * replicas)
        keep_newest(state, "audit-*.log*", 8 * (8 + 2 * replicas))
        log_in_worker("serve", state, f"replica-{name}", form, {"replica": name})

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Builds the app; Serve calls this once, after the constructor."""
        from serving.http_app import build_app

        lines = SecretFile(self.service.run_folder / ADMIN_KEY)

        def admin_key() -> str:
            return "".join(lines())

        app = build_app(self.service, admin_key, CATCH_UP_S, tune_for_latency, self._name)
        self._metrics = RayMetrics(app.state.metrics.registry, self._name)
        return app

    async def check_health(self) -> None:
        """Raises if only a new replica can help, because this one stopped following the log. Serve calls this
        every few seconds, so it also exports the metrics; a failure to export doesn't count."""
        if self.service.failure:
            raise RuntimeError(self.service.failure)
        try:
            if self._metrics is not None:
                self._metrics.export(*self.service.replica.version)
        except Exception:
            if times := self._throttle.due("metrics", time.monotonic()):
                _LOG.exception("metrics can't be exported to Ray", extra={"times": times})

    def __del__(self) -> None:
        """Sends the newest spans: the service has stopped, or the constructor raised."""
        if tracer := getattr(self, "_tracer", None):
            tracer.close()

    def reconfigure(self, description: dict[str, Any]) -> None:
        """Does nothing: ``description`` is for Ray's dashboard."""


def _scaling(serve: ServeConfig) -> dict[str, Any]:
    """Options for the number of replicas: fixed, or autoscaled by load."""
    if not serve.max_replicas:
        return {"num_replicas": serve.replicas}
    autoscaling = {
        "min_replicas": serve.min_replicas,
        "max_replicas": serve.max_replicas,
        "target_ongoing_requests": serve.target_ongoing,
        "upscale_delay_s": serve.upscale_s,
        "downscale_delay_s": serve.downscale_s,
    }
    return {"autoscaling_config": autoscaling}


def _describe(config: Config) -> dict[str, Any]:
    """Description of the deployment for Ray's dashboard, without addresses and secrets."""
    serve = config.serve
    return {
        "about": "one replica answers lists and takes events: session, retrieval, ranking, selection",
        "configuration": config.name, "features": config.model.features, "candidates": serve.candidates,
        "index": serve.index, "retrieval_shards": serve.retrieval_shards,
        "deadline_ms": serve.deadline_ms, "traced": config.tracing.share if config.tracing.on else 0.0,
    }  # fmt: skip


def application(config: Config, hooked: bool = False) -> Any:
    """Builds the Serve application. ``hooked``: Ray's workers run our hook, so that a replica can lower its
    priority while it starts.

    A replica refuses requests by its own admission limits. Serve's limit lies above all connections: clients
    that send or read slowly would fill it, and nobody else would be answered. On a restart a new replica
    catches up before an old one leaves.
    """
    most = 2 * config.serve.max_ongoing + config.serve.max_events + config.doors.connections
    deployment = serve.deployment(
        name="Feed",
        **_scaling(config.serve),
        max_ongoing_requests=most,
        max_queued_requests=most,
        max_surge_percent=1,  # of the replicas, rounded up: one at a time
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        user_config=_describe(config),
        **deployment_options(hooked),
    )
    encoded = msgspec.json.encode(config).decode()
    return deployment(serve.ingress()(Feed)).bind(encoded, deployments(config, encoded, hooked))


def build(arguments: dict[str, str]) -> Any:
    """Builds the application for `serve deploy` and KubeRay's RayService: ``import_path: serving.app:build``,
    ``args: {config: NAME_OR_FILE}``. The environment (RECSYS__...) overrides, as everywhere."""
    from recsys.config.loader import load

    return application(load(arguments.get("config", "cluster")))
