"""A toy line for tests of the parameter server: its gradients are a hash of (step, lane, key) plus what the
rows are, so that any wrong row, order or repeat changes every digest after it."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from parameter_server.rpc.parameter_client import ParameterClient
from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import ShardSpec
from recsys.config.system_config import TableConfig
from recsys.events.hashing import uniforms

LANES = 4
TABLES = (
    TableConfig("features", 3, 0.1, initial=0.05, ttl_s=20),
    # The smallest sketch: most bytes of a snapshot are its cells, and there are few ids to collide.
    TableConfig("items", 5, 0.05, initial=0.1, admit_after=2, sketch_mb=0.3),
)
DENSE = np.linspace(-1, 1, 7, dtype=np.float32)


def toy_spec(parts: int = 1, **changes: object) -> ShardSpec:
    return ShardSpec(
        TABLES, LANES, parts=parts, expire_every=4, dense_average=0.9, dense_first=3.0, **changes
    )  # type: ignore[arg-type]


def time_of(step: int) -> int:
    return 1_000_000 + 3_000 * step


def keys_of(step: int, lane: int) -> dict[str, np.ndarray]:
    """A lane's distinct keys: some in every step, most in few, and none at all now and then."""
    return dict(_keys_of(step, lane))


@lru_cache(10_000)  # most tests take the same steps
def _keys_of(step: int, lane: int) -> dict[str, np.ndarray]:
    if (step + lane) % 7 == 0:
        return {"features": np.empty(0, np.int64)}
    out = {}
    for number, table in enumerate(TABLES):
        draws = uniforms(number, np.array([1000 * step + lane], np.int64), 12)[0]
        ids = np.unique((40 * draws**2).astype(np.int64) + 3 * (step // 6))
        ids = np.append(ids, 5000 + 9 * step + lane)  # seen once
        out[table.name] = ids * 0x5851F42D4C957F2D - (1 << 62)
        out[table.name].flags.writeable = False
    return out


def lane_of(step: int, lane: int, rows: Mapping[str, np.ndarray], dense: np.ndarray) -> LaneGradients:
    """What a lane "learns" from rows and dense parameters."""
    tables = {}
    for table, keys in keys_of(step, lane).items():
        dim = rows[table].shape[1]
        noise = uniforms(100 * step + lane, keys, dim).astype(np.float32) - np.float32(0.5)
        gradients = noise + rows[table] * np.float32(0.3) + dense[0] * np.float32(0.1)
        tables[table] = RowGradients(keys, gradients, np.ones(len(keys), np.int32))
    gradient = uniforms(step, np.array([lane]), len(dense))[0].astype(np.float32) * dense
    metrics = {"examples": float(len(tables)), "loss": 0.1 * (lane + 1) * step}
    return LaneGradients(lane, tables, gradient, metrics)


def union(step: int, lanes: list[int]) -> dict[str, np.ndarray]:
    """The keys of several lanes, one lane after the other, so that rows can be cut up again."""
    parts = [keys_of(step, lane) for lane in lanes]
    none = np.empty(0, np.int64)
    return {t.name: np.concatenate([p.get(t.name, none) for p in parts]) for t in TABLES}


def cut(step: int, lanes: list[int], rows: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    out, at = [], {t.name: 0 for t in TABLES}
    for lane in lanes:
        own = {}
        for table, keys in keys_of(step, lane).items():
            own[table] = rows[table][at[table] : at[table] + len(keys)]
            at[table] += len(keys)
        out.append(own)
    return out


def work(
    client: ParameterClient,
    lanes: list[int],
    until: int,
    start: int | None = None,
    tick: Callable[[int], None] = lambda step: None,
) -> None:
    """A worker's loop over its lanes, from where the line is (or ``start``), to step ``until``."""
    step = (client.align() if start is None else start) + 1
    rows = client.lookup(step - 1, union(step, lanes))
    dense = client.dense(step - 1)
    while step <= until:
        learned = [
            lane_of(step, lane, own, dense) for lane, own in zip(lanes, cut(step, lanes, rows), strict=True)
        ]
        tick(step)
        rows, dense = client.exchange(step, time_of(step), learned, union(step + 1, lanes))
        step += 1
