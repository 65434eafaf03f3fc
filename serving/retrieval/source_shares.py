"""Numbers of candidates by source: a part is set by the policy, the rest follows what viewers engage with."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from recsys.features.source_credits import ALL, KEYS, UNION, source_key
from serving.replica.replica import Replica

_PRIOR: Final = 200.0  # engagements that weigh as much as those counted, divided as the policy says


def engaged_shares(replica: Replica, shares: Mapping[str, int], now_ms: int) -> dict[str, int]:
    """Shares of a policy, moved towards the sources of engaged items. Each keeps ``serve.source_floor`` of
    its share, so that every source goes on being explored."""
    floor, budget = replica.config.serve.source_floor, sum(max(0, n) for n in shares.values())
    if floor >= 1.0 or not budget:
        return dict(shares)
    features = replica.features
    keys = np.array([source_key(name) for name in shares], np.int64)
    label = features.slow_counter(features.main_labels[0])
    engaged = replica.counters.read(keys, now_ms)[:, label].astype(np.float64)
    policy = np.array([max(0, n) for n in shares.values()], np.float64)
    engaged = np.where(policy > 0, engaged, 0.0) + _PRIOR * policy / budget
    moved = floor * policy + (1.0 - floor) * budget * engaged / engaged.sum()
    return dict(zip(shares, np.rint(moved).astype(np.int64).tolist(), strict=True))


def recall_by_source(replica: Replica, now_ms: int) -> dict[str, float]:
    """Part of the engaged items of late that each source, and all together, had among the candidates for the
    viewer's list; empty without engagement."""
    keys_of = {name: source_key(name) for name in (*KEYS, *replica.config.policy.sources)}
    names = {**keys_of, "union": UNION}
    keys = np.array([ALL, *names.values()], np.int64)
    counts = replica.counters.read(keys, now_ms)[:, replica.features.slow_counter("shown")]
    if counts[0] <= 0:
        return {}
    return {name: float(n / counts[0]) for name, n in zip(names, counts[1:], strict=True)}
