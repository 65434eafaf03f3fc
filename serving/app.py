"""Serve deployment: one replica is one service with its HTTP app.

User code runs on the replica's own event loop (RAY_SERVE_THROUGHPUT_OPTIMIZED), so nothing in it may block.
Only replicas import what answers, not the part that deploys them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from ray import serve

from recsys.clock import machine_ns
from recsys.config.system_config import Config, ServeConfig
from recsys.observability.log_lines import keep_newest, log_in_worker
from recsys.observability.tracer import open_tracer
from recsys.process.clock_file import clock_of
from recsys.process.latency_tuning import tune_for_latency
from recsys.process.open_log import open_log
from serving.access.key_files import ADMIN_KEY, SecretFile
from serving.admission.admission import EVENT_CALLS
from serving.retrieval.ray_retrieval import CATCH_UP_S, client_of, deployment_options, deployments

if TYPE_CHECKING:
    from fastapi import FastAPI

APP = "recsys"
_UPSCALE_S: Final = 5.0  # during which the load must call for more replicas


class Feed:
    """Class behind the deployment. ``config``: the configuration as JSON, so that no pickle ties it to one
    version of the code. ``shards``: handles of the retrieval shards."""

    def __init__(self, config: str, shards: Sequence[Any] = ()) -> None:
        import torch

        from serving.service import Service
        from serving.sessions.open_store import session_reader
        from serving.tracing.swipe_traces import SwipeTraces

        self._config = msgspec.json.decode(config, type=Config)
        # Sums must not depend on the number of cores; two threads also cost more here.
        torch.set_num_threads(1)
        self._name = name = serve.get_replica_context().replica_id.unique_id
        self._log_as(name)
        log = open_log(self._config)
        self._tracer = tracer = open_tracer(self._config, "serve", name)
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

        lines = SecretFile(self.service.callers.folder / ADMIN_KEY)

        def admin_key() -> str:
            return "".join(lines())

        return build_app(self.service, admin_key, CATCH_UP_S, tune_for_latency, self._name)

    async def check_health(self) -> None:
        """Raises if only a new replica can help, because this one stopped following the log."""
        if self.service.failure:
            raise RuntimeError(self.service.failure)

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
        "upscale_delay_s": _UPSCALE_S,
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
    most = 2 * config.serve.max_ongoing + EVENT_CALLS + config.doors.connections
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
