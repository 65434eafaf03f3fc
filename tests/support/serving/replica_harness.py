"""A replica of a small catalogue, as it is after some steps: for tests of what is served from it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from experiments.assignment.policy import Policies, Policy
from parameter_server.publish.deltas import Changed, StepDelta
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config, ServeConfig, tables_of
from recsys.events.event_types import Engagement, Item
from recsys.events.hashing import uniforms
from recsys.events.records import ItemState
from recsys.features.feature_set import FeatureSet
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session
from recsys.model.choice_model import choice_size
from serving.replica.replica import Replica
from tests.support.training.small_feed import FEATURES, START_MS, toy_config

NOW_MS = START_MS + 3_600_000


def config(candidates: int = 60) -> Config:
    return replace(toy_config(), serve=ServeConfig(candidates=candidates))


def policy(**changes: object) -> Policy:
    return Policies(PolicyConfig(**changes)).resolve("u")  # type: ignore[arg-type]


def item(n: int, **more: object) -> Item:
    fields = {"author": f"a{n % 9}", "tags": [f"t{n % 5}"], "duration_ms": 4_000 + 900 * (n % 8)}
    return Item(time_ms=START_MS, item_id=f"v{n}", fields=fields | more)


def step_delta(replica: Replica, step: int, items: int = 40, dense: bool = True) -> StepDelta:
    """A step that changes some rows of every table, as hashes say."""
    tables = {}
    for table in tables_of(replica.config.model):
        known = replica.catalogue.keys[:items]
        keys = np.unique(known[known != 0] if table.name == "features" else known[:, 0])
        keys = keys[uniforms(step, keys, 1)[:, 0] < 0.6]
        rows = (uniforms(step + 7, keys, table.dim) - 0.5).astype(np.float32)
        tables[table.name] = Changed(keys, rows, np.empty(0, np.int64))
    flat = replica.model.read_dense()
    moved = flat + np.float32(0.05) * np.sin(np.arange(len(flat), dtype=np.float32) + step)
    moved[len(flat) - choice_size(replica.features) :] = 0.0  # the ranker alone orders candidates
    return StepDelta(step, START_MS + step, tables, moved if dense else None, {})


def made(
    items: int = 40, steps: int = 1, features: FeatureSet = FEATURES, its_config: Config | None = None
) -> Replica:
    replica = Replica(features, its_config or config())
    replica.apply_items([item(n) for n in range(items)], items)
    for step in range(1, steps + 1):
        replica.apply_step(step_delta(replica, step, items))
    return replica


def viewer(replica: Replica, liked: tuple[int, ...] = (), seen: tuple[int, ...] = ()) -> Session:
    """A session that liked some items and passed others by."""
    return session_of(replica, (*((n, False) for n in seen), *((n, True) for n in liked)))


def session_of(replica: Replica, items: Iterable[tuple[int, bool]]) -> Session:
    """A session of these items in turn, and whether each was liked."""
    session = Session("u", replica.features)
    for place, (n, likes) in enumerate(items):
        keys = replica.catalogue.keys[n]
        for kind in ("view", "long_view", "like")[: 3 if likes else 1]:
            event = Engagement(
                time_ms=START_MS + 1_000 * place, request_id=f"s{place}", user_id="u",
                item_id=f"v{n}", kind=kind, watch_ms=9_000 if likes else 500,
            )  # fmt: skip
            session.fold_engagement(event, keys)
    return session


def popular(replica: Replica, likes: Mapping[int, int]) -> None:
    """Tells the replica how often items were liked."""
    fold = ItemCounters(replica.features)
    for n, times in likes.items():
        for k in range(times):
            event = Engagement(
                time_ms=START_MS + k, request_id="r", user_id="x", item_id=f"v{n}", kind="long_view"
            )
            fold.engagement(event, replica.catalogue.keys[n])
    columns = (column.tobytes() for column in fold.counters.export())
    replica.apply_item_state(
        ItemState(offsets=[1], **dict(zip(("keys", "values", "last_ms"), columns, strict=True))), 1
    )
