"""The shards of retrieval as Serve deployments, one for each: thin, all it knows is in others.

A shard is a deployment of its own, and not one of the replicas of a single one: a request is for all shards,
and which replica of a deployment gets a call is Serve's to choose. Serve starts another where one dies, and
at a restart has it catch up before the old one leaves, as replicas of the feed do.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from ray import serve

from recsys.config.system_config import Config
from recsys.observability.log_lines import keep_newest, log_in_worker
from recsys.process.latency_tuning import tune_for_latency
from recsys.process.open_log import open_log
from recsys.process.process_priority import STARTING, STARTS
from serving.retrieval.retrieval_client import Shard, Shards
from serving.retrieval.retrieval_service import RetrievalService

NAME: Final = "Retrieval"  # and the shard's number
HEALTH_PERIOD_S: Final = 5.0
CATCH_UP_S: Final = 600.0  # then it takes calls all the same, and refuses them with a reason
_CALLS: Final = 1_000  # at work in a shard: each replica lets in far fewer


class Retrieval:
    """The class behind a shard's deployment. ``config`` is the configuration as JSON, as for the feed."""

    async def __init__(self, config: str, shard: int) -> None:
        its = msgspec.json.decode(config, type=Config)
        name = serve.get_replica_context().replica_id.unique_id
        keep_newest(its.state, f"retrieval-{shard}-*.log*")
        who = {"shard": shard, "replica": name}
        log_in_worker("serve", its.state, f"retrieval-{shard}-{name}", its.logging.format, who)
        log, shards = open_log(its), its.serve.retrieval_shards
        self.service = RetrievalService(its, log, shard, shards)
        await self.service.start()
        await self.service.caught_up(CATCH_UP_S)
        await asyncio.to_thread(tune_for_latency)

    async def search(self, asked: bytes) -> bytes:
        return await self.service.search(asked)

    async def check_health(self) -> None:
        """Raises where the shard can't be mended but by a new one: it stopped following the log."""
        if self.service.failure:
            raise RuntimeError(self.service.failure)


def name_of(shard: int) -> str:
    """The name of a shard's deployment."""
    return f"{NAME}-{shard}"


def actor_options(hooked: bool) -> dict[str, Any]:
    """Of a replica. Where our hook doesn't run, nothing is said of its environment: Serve gives it the
    driver's, which one of its own would replace."""
    its: dict[str, Any] = {"num_cpus": 1}
    return its | {"runtime_env": {"env_vars": {STARTING: STARTS}}} if hooked else its


def deployments(config: Config, encoded: str, hooked: bool = False) -> list[Any]:
    """All shards, bound, for the feed's constructor: it gets their handles."""
    return [
        serve.deployment(
            name=name_of(shard),
            num_replicas=1,
            max_ongoing_requests=_CALLS,
            max_surge_percent=100,  # another catches up beside the one that is there
            ray_actor_options=actor_options(hooked),
            health_check_period_s=HEALTH_PERIOD_S,
            graceful_shutdown_timeout_s=HEALTH_PERIOD_S,
            graceful_shutdown_wait_loop_s=0.5,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )(Retrieval).bind(encoded, shard)
        for shard in range(config.serve.retrieval_shards)
    ]


def asked_by_handle(handles: Sequence[Any]) -> Shards | None:
    """The shards behind handles; None without any."""

    def ask(handle: Any) -> Shard:
        async def search(asked: bytes) -> bytes:
            found: bytes = await handle.search.remote(asked)
            return found

        return search

    return Shards([ask(handle) for handle in handles]) if handles else None
