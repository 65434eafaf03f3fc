"""Contracts of sources (``recsys.sources``) and stages (``recsys.stages``), on answers of a small replica.

Items are the feed's, with the plug-in's ``sample_items``: fields that they get in turn; requests have its
``sample_context``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from experiments.assignment.policy import Policies
from parameter_server.publish.deltas import StepDelta
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config, ServeConfig
from recsys.events.event_types import Engagement, Item
from recsys.events.hashing import uniform
from recsys.events.records import ItemState
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session
from runtime.contracts.determinism import Contract, deterministic, require
from serving.pipeline import Pipeline
from serving.query import Query
from serving.ranking.added_stages import apply_stage
from serving.reconstruction.reconstructed_answer import differences, query_of
from serving.replica.replica import Replica
from serving.request import Candidates, Request
from serving.retrieval.filters import allowed_items
from serving.retrieval.retrieval import run_source

_START_MS: Final = 1_700_000_000_000
_ITEMS: Final = 200
_NAME: Final = "checked@1"  # of the plug-in, in the configuration


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
    fold = ItemCounters(replica.features)
    for n in range(0, _ITEMS, 3):
        fold.engagement(_view("popular", n), replica.catalogue.keys[n])
    keys, values, last_ms = (column.tobytes() for column in fold.counters.export())
    state = ItemState(offsets=[1], keys=keys, values=values, last_ms=last_ms)
    replica.apply_item_state(state, 1)
    # The first step: from it on the model ranks.
    replica.apply_step(StepDelta(1, _START_MS, {}, replica.model.read_dense(), {}))
    return Pipeline(replica, lambda group, name: plugin)


def _view(user_id: str, n: int) -> Engagement:
    return Engagement(
        time_ms=_START_MS + 1_000 * n, request_id=f"r{n}", user_id=user_id, item_id=f"v{n}",
        kind="long_view" if n % 2 else "view", watch_ms=90 * n,
    )  # fmt: skip


def _queries(plugin: Any, replica: Replica, policy: PolicyConfig) -> Iterator[Query]:
    """Queries of viewers with histories of 6, 0 and 30 items."""
    request = Request("u", context=getattr(plugin, "sample_context", {}))
    for seed, entries in enumerate((6, 0, 30)):
        session = Session("u", replica.features)
        for n in sorted({int(_ITEMS * uniform(seed, k)) for k in range(entries)}):
            session.fold_engagement(_view("u", n), replica.catalogue.keys[n])
        resolved = Policies(policy).resolve("u")
        yield Query(request, session, resolved, _START_MS + 10**6, f"r{seed}")


def _source_calls(plugin: Any) -> list[partial[bytes]]:
    pipeline = _pipeline(plugin, Config())

    def call(query: Query) -> bytes:
        viewer, allowed = (
            pipeline.candidates(query).features,
            allowed_items(pipeline.replica, query),
        )
        found = run_source(plugin, pipeline.replica, query, viewer, allowed[0], 30)
        return found.tobytes()

    return [partial(call, query) for query in _queries(plugin, pipeline.replica, PolicyConfig())]


def _stage_calls(plugin: Any) -> list[partial[bytes]]:
    pipeline = _pipeline(plugin, Config())

    def call(query: Query, before: Candidates) -> bytes:
        after = apply_stage(plugin, pipeline.replica, query, before)
        same = (before.final_N == after.final_N).all() and (before.open_N == after.open_N).all()
        return b"" if same else after.final_N.tobytes() + after.open_N.tobytes()

    queries = list(_queries(plugin, pipeline.replica, PolicyConfig()))
    ranked = [(query, pipeline.recommend(query).candidates) for query in queries]
    return [partial(call, query, before) for query, before in ranked if before is not None]


def _explained(policy: PolicyConfig, serve: ServeConfig, plugin: Any) -> None:
    """Answers again with another replica, from the impression as logged."""
    config = Config(serve=serve, policy=policy)
    one, other = (_pipeline(plugin, config) for _ in range(2))
    for query in _queries(plugin, one.replica, policy):
        answer = one.recommend(query)
        require(not answer.degraded, f"an answer lacks {', '.join(answer.degraded)}")
        again = query_of(answer.impression, query.session, query.policy, explain=True)
        changed = differences(answer.impression, other.recommend(again).impression)
        require(not changed, f"an answer made again has other values: {changed[:3]}")


_SOURCE: Final = PolicyConfig(sources={_NAME: 30, "popular": 20})
SOURCES: Final[dict[str, Contract]] = {
    **deterministic(_source_calls),
    "explain": partial(_explained, _SOURCE, ServeConfig()),
}
STAGES: Final[dict[str, Contract]] = {
    **deterministic(_stage_calls),
    "explain": partial(_explained, PolicyConfig(), ServeConfig(stages=(_NAME,))),
}
