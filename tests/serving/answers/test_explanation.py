"""Reasons by ablation: what an item's score loses without a part of the input."""

import numpy as np
import pytest

from recsys.features.counters import CounterTable
from serving.answers.explanation import explain
from serving.query import Query
from serving.request import Request
from tests.support.serving.replica_harness import NOW_MS, made, policy, viewer
from tests.support.training.small_feed import FEATURES


def asked(session: object) -> Query:
    return Query(Request("u", context={"surface": "feed"}), session, policy(), NOW_MS)  # type: ignore[arg-type]


def test_the_reason_that_a_score_depends_on_has_the_largest_effect() -> None:
    """The planted score is the number of liked items by a3 in the history, and nothing else."""
    replica = made()
    session = viewer(replica, liked=(3, 12, 8))  # 3 and 12 by a3; 3 and 8 about t3
    by_a3 = {int(replica.catalogue.keys[i, 0]) for i in (3, 12)}

    def score(query: Query, _: CounterTable) -> np.ndarray:
        return np.full(2, float(sum(e.keys[0] in by_a3 for e in query.session.history)))

    first, second = explain(score, asked(session), replica.catalogue, replica.counters, [3, 21])
    assert first[0]["feature"] in ("author", "profile") and first[0]["effect"] == 2.0
    effects = {(r["feature"], r.get("value")): r.get("effect") for r in first}
    assert effects["author", "a3"] == 2.0 and effects["tags", "t3"] == 1.0
    assert effects["profile", None] == 2.0
    assert ("context", None) not in effects and ("popularity", None) not in effects
    assert ("author", "a3") in {(r["feature"], r.get("value")) for r in second}


@pytest.mark.parametrize(("name", "part"), [("context", 5.0), ("popularity", 7.0)])
def test_context_and_popularity_are_reasons(name: str, part: float) -> None:
    replica = made()
    replica.counters.add([1], np.ones(len(FEATURES.kinds), np.float32), NOW_MS)

    def score(query: Query, counters: CounterTable) -> np.ndarray:
        return np.array([5.0 * bool(query.request.context) + 7.0 * bool(len(counters))])

    session = viewer(replica)
    [reasons] = explain(score, asked(session), replica.catalogue, replica.counters, [3])
    assert {"feature": name, "effect": part} in reasons


def test_an_own_author_or_tag_has_how_often_it_was_met_and_liked() -> None:
    replica = made()
    session = viewer(replica, liked=(3, 8, 13), seen=(18, 12))
    [reasons] = explain(lambda *_: np.zeros(1), asked(session), replica.catalogue, replica.counters, [3])
    met = {(r["feature"], r["value"]): (r["met"], r["liked"]) for r in reasons}
    assert met == {("tags", "t3"): (4.0, 0.75), ("author", "a3"): (2.0, 0.5)}


def test_a_stranger_s_list_has_no_reasons_of_history() -> None:
    replica = made()
    session = viewer(replica)
    [reasons] = explain(lambda *_: np.ones(1), asked(session), replica.catalogue, replica.counters, [3])
    assert reasons == ()


@pytest.mark.parametrize(("part", "reported"), [(1.02, True), (0.98, False)])
def test_an_effect_of_a_hundredth_of_the_score_is_a_reason(part: float, reported: bool) -> None:
    replica = made()

    def score(query: Query, _: CounterTable) -> np.ndarray:
        return np.array([100 - part * (not query.request.context)])

    [reasons] = explain(score, asked(viewer(replica)), replica.catalogue, replica.counters, [3])
    assert ("context" in {reason["feature"] for reason in reasons}) == reported
