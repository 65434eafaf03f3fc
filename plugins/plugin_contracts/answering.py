"""Contracts of sources (``recsys.sources``) and stages (``recsys.stages``), on answers of a small replica.

Items are the feed's; the plug-in's ``sample_items`` are fields that they get in turn. Requests have its
``sample_context``.
"""

from functools import partial
from typing import Any, Final

from experiments.assignment.policy import Policies
from parameter_server.publish.deltas import StepDelta
from plugins.answer_explanation.reconstructed_answer import differences, query_of
from plugins.plugin_contracts.determinism import Contract, deterministic, require, version
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config, ServeConfig
from recsys.events.event_types import Engagement, Item
from recsys.events.hashing import uniform
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.session import Session
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Request
from serving.scorers.added_stages import apply_stage
from serving.sources.source import Checked

_START_MS: Final = 1_700_000_000_000
_ITEMS: Final = 200
_NAME: Final = "checked@1"  # of the plug-in, in the configuration
_SOURCE: Final = Config(policy=PolicyConfig(sources={_NAME: 30, "popular": 20}))
_STAGE: Final = Config(serve=ServeConfig(stages=(_NAME,)))


def _pipeline(plugin: Any, config: Config) -> Pipeline:
    """A pipeline that has the plug-in under the name ``_NAME``."""
    replica = Replica(FeatureSet(FEED_SCHEMA, "all", 20), config)
    samples = list(getattr(plugin, "sample_items", ())) or [{}]
    items = []
    for n in range(_ITEMS):
        fields = {"author": f"a{n % 9}", "tags": [f"t{n % 5}"], "duration_ms": 3_000 + 700 * n}
        fields |= samples[n % len(samples)]
        items.append(Item(time_ms=_START_MS + n, item_id=f"v{n}", fields=fields))
    replica.apply_items(items, _ITEMS)
    # The first step: from it on the model ranks.
    replica.apply_step(StepDelta(1, _START_MS, {}, replica.model.read_dense(), {}))
    return Pipeline(replica, lambda group, name: plugin)


def _queries(plugin: Any, replica: Replica) -> list[Query]:
    """Queries of viewers with histories of 6, 0 and 30 items."""
    request = Request("u", context=getattr(plugin, "sample_context", {}))
    policy, queries = Policies(replica.config.policy).resolve("u"), []
    for seed, entries in enumerate((6, 0, 30)):
        session, now_ms = Session("u", replica.features), _START_MS + 10**6
        for k in range(entries):
            n = int(_ITEMS * uniform(seed, k))
            view = Engagement(
                time_ms=_START_MS + 1_000 * k, request_id=f"r{k}", user_id="u", item_id=f"v{n}",
                kind="long_view" if n % 2 else "view", watch_ms=90 * n,
            )  # fmt: skip
            session.fold_engagement(view, replica.catalogue.keys[n])
        queries.append(Query(request, session, policy, now_ms, f"r{seed}"))
    return queries


def _source_calls(plugin: Any) -> list[partial[bytes]]:
    pipeline = _pipeline(plugin, Config())
    replica = pipeline.replica

    def call(query: Query) -> bytes:
        viewer, allowed = pipeline.candidates(query).features, pipeline.allowed_items(query)[0]
        return Checked(plugin)(replica, query, viewer, allowed, 30).tobytes()

    return [partial(call, query) for query in _queries(plugin, replica)]


def _stage_calls(plugin: Any) -> list[partial[bytes]]:
    pipeline = _pipeline(plugin, Config())
    replica = pipeline.replica

    def call(query: Query, before: Candidates) -> bytes:
        after = apply_stage(_NAME, plugin, replica, query, before)
        same = (before.final_N == after.final_N).all() and (before.open_N == after.open_N).all()
        return b"" if same else after.final_N.tobytes() + after.open_N.tobytes()

    ranked = [(query, pipeline.recommend(query).candidates) for query in _queries(plugin, replica)]
    return [partial(call, query, before) for query, before in ranked if before is not None]


def _explained(config: Config, plugin: Any) -> None:
    """Answers again with another replica, from the impression as logged."""
    one, other = (_pipeline(plugin, config) for _ in range(2))
    for query in _queries(plugin, one.replica):
        answer = one.recommend(query)
        require(not answer.degraded, f"an answer lacks {', '.join(answer.degraded)}")
        again = query_of(answer.impression, query.session, query.policy, explain=True)
        changed = differences(answer.impression, other.recommend(again).impression)
        require(not changed, f"an answer made again has other values: {changed[:3]}")


SOURCES: Final[dict[str, Contract]] = {
    "version": version,
    **deterministic(_source_calls),
    "explain": partial(_explained, _SOURCE),
}
STAGES: Final[dict[str, Contract]] = {
    "version": version,
    **deterministic(_stage_calls),
    "explain": partial(_explained, _STAGE),
}
