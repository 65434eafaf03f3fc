from dataclasses import replace

import numpy as np
import pytest

from recsys.config.policy_config import PolicyConfig
from recsys.features.counters import amounts
from recsys.features.source_credits import ALL, KEYS, UNION, source_key
from serving.replica.replica import Replica
from serving.retrieval.source_shares import engaged_shares, recall_by_source
from tests.support.serving.replica_harness import NOW_MS, made

POLICY = {"covisit": 100, "popular": 80, "fresh": 20, "vector": 0}


def engaged(floor: float = 0.5, **counts: int) -> Replica:
    replica = made(items=3)
    serve = replace(replica.config.serve, source_floor=floor)
    replica.config = replace(replica.config, serve=serve)
    kinds = replica.features.kinds
    one = amounts(kinds, "shown") + amounts(kinds, "long_view")
    keys = KEYS | {"union": UNION, "every": ALL}
    for name, count in counts.items():
        replica.counters.add((keys[name],), np.float32(count) * one, NOW_MS)
    return replica


def shares(replica: Replica) -> dict[str, int]:
    return engaged_shares(replica, POLICY, NOW_MS)


def test_shares_follow_engagement_above_a_floor() -> None:
    assert shares(engaged()) == POLICY
    moved = shares(engaged(popular=2_000, covisit=10))
    assert moved["popular"] > 110 and 50 <= moved["covisit"] < 70 and 10 <= moved["fresh"] < 20
    assert moved["vector"] == 0 and abs(sum(moved.values()) - 200) <= 2
    assert shares(engaged(vector=2_000)) == POLICY  # it is switched off


def test_shares_are_set_by_hand_at_a_floor_of_one() -> None:
    assert shares(engaged(1.0, popular=2_000)) == POLICY
    assert engaged_shares(engaged(0.0), {"fresh": 0}, NOW_MS) == {"fresh": 0}
    assert shares(engaged(0.0, fresh=10**7))["covisit"] == 0


def test_recall_is_the_part_of_engaged_items_that_a_source_had() -> None:
    recall = recall_by_source(engaged(every=10, union=8, covisit=5, fresh=1), NOW_MS)
    assert recall == pytest.approx(
        dict.fromkeys(KEYS, 0.0) | {"union": 0.8, "covisit": 0.5, "fresh": 0.1}, rel=1e-5
    )
    assert recall_by_source(engaged(), NOW_MS) == {}


def test_the_default_policy_names_places_for_all_candidates() -> None:
    assert sum(PolicyConfig().sources.values()) == 300


def test_a_plug_in_has_shares_and_recall_as_the_others() -> None:
    replica, name = engaged(every=10, union=8, fresh=1), "near@1"
    one = amounts(replica.features.kinds, "shown") + amounts(replica.features.kinds, "long_view")
    replica.counters.add((source_key(name),), np.float32(600) * one, NOW_MS)
    sources = {"fresh": 50, name: 50}
    moved = engaged_shares(replica, sources, NOW_MS)
    assert moved[name] > 65 > 35 > moved["fresh"]
    assert name not in recall_by_source(replica, NOW_MS)
    policy = replace(replica.config.policy, sources=sources)
    replica.config = replace(replica.config, policy=policy)
    assert recall_by_source(replica, NOW_MS)[name] == pytest.approx(60, rel=1e-5)
