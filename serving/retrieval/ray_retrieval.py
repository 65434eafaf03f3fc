"""The retrieval shards as Serve deployments, one for each.

A request goes to all shards, and Serve chooses one replica of a deployment for a call. Serve restarts a shard
that dies, and lets a new one catch up before the old one leaves, as for replicas of the feed.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from ray import serve

from recsys.config.system_config import Config
from recsys.observability.log_lines import keep_newest, log_in_worker
from recsys.process.clock_file import clock_of
from recsys.process.latency_tuning import tune_for_latency
from recsys.process.open_log import open_log
from recsys.process.process_priority import STARTING, STARTS

NAME: Final = "Retrieval"  # and the shard's number
HEALTH_PERIOD_S: Final = 5.0
GRACE_S: Final = 5.0
# Startup ends here at the latest: a replica still behind takes calls all the same, and reports it.
CATCH_UP_S: Final = 600.0
_CALLS: Final = 1_000  # concurrent calls of a shard: each replica lets in far fewer


class RetrievalDeployment:
    """The class behind a shard's deployment. ``config`` is the configuration as JSON, as for the feed."""

    # Ray awaits a constructor that is a coroutine.
    async def __init__(self, config: str, shard: int) -> None:  # type: ignore[misc]
        from serving.retrieval.retrieval_service import RetrievalService

        decoded = msgspec.json.decode(config, type=Config)
        state, log_format = decoded.state, decoded.logging.format
        name = serve.get_replica_context().replica_id.unique_id
        keep_newest(state, f"retrieval-{shard}-*.log*")
        labels = {"shard": shard, "replica": name}
        log_in_worker("serve", state, f"retrieval-{shard}-{name}", log_format, labels)
        shards = decoded.serve.retrieval_shards
        self.service = RetrievalService(decoded, open_log(decoded), shard, shards, clock_of(decoded))
        await self.service.start()
        await self.service.thread.caught_up(CATCH_UP_S)
        await asyncio.to_thread(tune_for_latency)

    async def search(self, request: bytes) -> bytes:
        return await self.service.search(request)

    async def check_health(self) -> None:
        """Raises once the shard has stopped following the log: only a restart helps."""
        if self.service.thread.failure:
            raise RuntimeError(self.service.thread.failure)


def name_of(shard: int) -> str:
    return f"{NAME}-{shard}"


def deployment_options(hooked: bool) -> dict[str, Any]:
    """Options of each deployment. Without our hook they set no environment: it would replace the driver's."""
    actor: dict[str, Any] = {"num_cpus": 1}
    if hooked:
        actor["runtime_env"] = {"env_vars": {STARTING: STARTS}}
    return {
        "ray_actor_options": actor,
        "health_check_period_s": HEALTH_PERIOD_S,
        "graceful_shutdown_timeout_s": GRACE_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},  # a line per request
    }


def deployments(config: Config, encoded: str, hooked: bool = False) -> list[Any]:
    """All shards, bound: arguments of the feed's constructor, which gets their handles."""
    return [
        serve.deployment(
            name=name_of(shard),
            num_replicas=1,
            max_ongoing_requests=_CALLS,
            max_surge_percent=100,  # a new one catches up beside the old one
            **deployment_options(hooked),
        )(RetrievalDeployment).bind(encoded, shard)
        for shard in range(config.serve.retrieval_shards)
    ]


def client_of(handles: Sequence[Any]) -> Any:
    """A ``RetrievalClient`` of the shards behind handles; None without any."""
    from serving.retrieval.retrieval_client import RetrievalClient

    def call_of(handle: Any) -> Any:
        async def search(request: bytes) -> bytes:
            response: bytes = await handle.search.remote(request)
            return response

        return search

    return RetrievalClient([call_of(handle) for handle in handles]) if handles else None
