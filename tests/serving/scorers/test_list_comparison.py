"""Features that compare the items of a list: the best candidates are ranked again as a list."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recsys.events.event_types import Engagement
from recsys.events.records import ItemState
from recsys.features.families.declared import Declared
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.item_counters import ItemCounters
from recsys.features.request_features import read_block
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Answer, Request
from serving.scorers.probabilities import probabilities
from serving.scorers.weighted_sum import weighted_sum
from tests.support.serving.replica_harness import NOW_MS, made, policy, viewer
from tests.support.training.small_feed import FEATURES, START_MS

COMPARED = replace(FEATURES, declared=Declared(item_age=True, list_context=("item",)))
GREEDY = policy(explore=0.0, quota=0.0, per_author=0, temperature=1e-6)


def shown(replica: Replica) -> None:
    """Tells the replica that each item was shown ten times, with a rate of its own."""
    fold = ItemCounters(replica.features)
    for n in range(40):
        for k in range(10):
            for kind in ("view", "long_view") if k < n % 7 else ("view",):
                fold.engagement(
                    Engagement(time_ms=START_MS + k, request_id="r", user_id="x", item_id=f"v{n}", kind=kind),
                    replica.catalogue.keys[n],
                )
    columns = (column.tobytes() for column in fold.counters.export())
    state = dict(zip(("keys", "values", "last_ms"), columns, strict=True))
    replica.apply_item_state(ItemState(offsets=[1], **state), 1)


def answer(replica: Replica, n: int = 5) -> Answer:
    query = Query(Request("u", n=n), viewer(replica, liked=(3,)), GREEDY, NOW_MS, "r1")
    return Pipeline(replica).recommend(query)


def columns(features: FeatureSet) -> list[int]:
    return [i for i, name in enumerate(features.dense_names) if name.startswith("list.")]


def test_the_impression_compares_the_items_of_its_own_list() -> None:
    replica = made(features=COMPARED)
    shown(replica)
    impression = answer(replica).impression
    assert impression.features is not None
    logged = read_block(impression.features, COMPARED)
    ids = [served.item_id for served in impression.items]
    indices = np.array([replica.catalogue.index_of(item_id) for item_id in ids], np.int64)
    again = Pipeline(replica).builder.build(
        viewer(replica, liked=(3,)), "feed", {}, indices, replica.catalogue, replica.counters,
        NOW_MS, is_list=True,
    )  # fmt: skip
    assert again.block() == impression.features
    compared = logged.dense_NF[:, columns(COMPARED)]
    assert np.abs(compared).max() > 0 and np.abs(compared.mean(0)).max() < 1e-5


def test_the_best_are_scored_as_the_list_that_they_make_and_others_by_themselves() -> None:
    replica = made(features=COMPARED)
    shown(replica)
    candidates = answer(replica).candidates
    assert candidates is not None and candidates.predictions_NL is not None
    alone = probabilities(replica.model, replica.rows, [candidates.features])
    changed = np.any(candidates.predictions_NL != alone, 1)
    assert changed.sum() == 5
    pipeline = Pipeline(replica)
    first = weighted_sum(replica.features, alone, GREEDY)
    assert set(np.flatnonzero(changed)) == set(np.argsort(-first, kind="stable")[:5])
    listed = candidates.features.rows(np.argsort(-first, kind="stable")[:5])
    pipeline.builder.compare(listed.dense_NF)
    wanted = probabilities(replica.model, replica.rows, [listed])
    order = [int(i) for i in np.argsort(-first, kind="stable")[:5]]
    assert np.array_equal(candidates.predictions_NL[order], wanted)


def test_a_list_beyond_the_longest_that_is_logged_is_compared_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Comparing n items takes n² steps, and a client chooses n."""
    replica, sizes = made(features=COMPARED), list[int]()
    shown(replica)
    for module in ("serving.scorers.list_comparison", "serving.answers.answer_assembly"):
        monkeypatch.setattr(f"{module}.MAX_LIST_LENGTH", 7)
    compare = FeatureBuilder.compare

    def noting(builder: FeatureBuilder, dense: Any) -> None:
        sizes.append(len(dense))
        compare(builder, dense)

    monkeypatch.setattr(FeatureBuilder, "compare", noting)
    assert len(answer(replica, n=20).items) == 20 and max(sizes) == 7


def test_without_such_features_nothing_is_ranked_twice() -> None:
    replica = made()
    shown(replica)
    candidates = answer(replica).candidates
    assert candidates is not None and candidates.predictions_NL is not None
    alone = probabilities(replica.model, replica.rows, [candidates.features])
    assert not FEATURES.compared and np.array_equal(candidates.predictions_NL, alone)
