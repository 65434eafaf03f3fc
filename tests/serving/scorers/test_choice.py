"""The choice model orders all candidates, the ranker the first of them."""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from experiments.assignment.policy import Policy
from serving.answers.choices import is_looked_at
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Answer, Request
from tests.support.serving.replica_harness import NOW_MS, made, policy, viewer
from tests.support.training.small_feed import FEATURES

GREEDY = policy(explore=0.0, quota=0.0, per_author=0, weights={"long_view": 1.0})


def query_of(replica: Replica, by: Policy = GREEDY, request_id: str = "r1", **request: Any) -> Query:
    wanted = Request("u", **({"n": 5, "by_score": True} | request))
    return Query(wanted, viewer(replica, liked=(3,)), by, NOW_MS, request_id)


def ask(replica: Replica, **request: Any) -> Answer:
    return Pipeline(replica).recommend(query_of(replica, **request))


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch) -> Replica:
    """A replica whose choice model takes a candidate the sooner, the later a source retrieved it."""
    replica = made()
    with torch.no_grad():
        replica.model.choice.weights_W[0] = 1.0
    monkeypatch.setattr(
        "serving.scorers.choice.utilities", lambda weights, dense, odds, features: 1.0 * np.arange(len(dense))
    )
    return replica


def test_the_list_holds_what_is_taken_most_likely_in_the_order_of_the_ranker(choosing: Replica) -> None:
    answer = ask(choosing)
    candidates = answer.candidates
    assert candidates is not None
    last = np.arange(len(candidates.indices_N))[-5:]
    wanted = sorted(last, key=lambda at: -candidates.scores_N[at])
    names = choosing.catalogue.ids
    assert [i.item_id for i in answer.items] == [names[candidates.indices_N[at]] for at in wanted]
    assert [i.score for i in answer.items] == candidates.scores_N[wanted].tolist()


def test_candidates_beyond_the_list_come_below_it_by_their_odds(choosing: Replica) -> None:
    candidates = ask(choosing).candidates
    assert candidates is not None
    order, size = np.argsort(-candidates.final_N), len(candidates.indices_N)
    assert set(order[:5]) == set(range(size - 5, size))
    assert np.array_equal(order[5:], np.arange(size - 6, -1, -1))
    assert (candidates.final_N > 0).all() and candidates.scores_N.min() > 0


def test_without_weights_the_ranker_orders_all() -> None:
    answer = ask(made())
    assert answer.candidates is not None and answer.candidates.chances_N is None
    scores = answer.candidates.scores_N
    assert [i.score for i in answer.items] == pytest.approx(np.sort(scores)[::-1][:5].tolist())


def test_a_policy_s_weights_count_in_what_is_chosen(
    choosing: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the chance of being taken times the score of an engagement: with equal chances by this."""
    replica = choosing
    monkeypatch.setattr("serving.scorers.choice.utilities", lambda w, dense, odds, f: np.zeros(len(dense)))
    likes = policy(explore=0.0, quota=0.0, per_author=0, weights={"like": 1.0})
    answer = ask(replica, by=likes)
    candidates = answer.candidates
    assert candidates is not None and candidates.predictions_NL is not None
    predicted = candidates.predictions_NL
    wanted = np.argsort(-predicted[:, 1] / predicted[:, 0])[:5]
    assert {candidates.indices_N[at] for at in wanted} == {
        replica.catalogue.index_of(i.item_id) for i in answer.items
    }


def test_another_policy_of_the_same_weights_has_the_same_scores(choosing: Replica) -> None:
    own, query = Pipeline(choosing), query_of(choosing)
    candidates = own.recommend(query).candidates
    assert candidates is not None
    again = own.adjusted(query, candidates)
    np.testing.assert_allclose(again.final_N, candidates.final_N)


def test_all_of_a_caller_s_few_candidates_are_ranked(choosing: Replica) -> None:
    answer = ask(choosing, candidate_ids=("v1", "v2", "v3"))
    assert answer.candidates is not None and answer.candidates.chances_N is None
    assert len(answer.items) == 3


def looked_at(wanted: bool) -> str:
    return next(name for name in map(str, range(99)) if is_looked_at(name) is wanted)


def test_some_lists_of_a_caller_s_candidates_tell_what_the_sources_had() -> None:
    replica = made()
    given = ("v1", "v2", "v39")
    choice = ask(replica, candidate_ids=given, request_id=looked_at(True)).impression.choice
    assert choice is not msgspec.UNSET
    others = np.frombuffer(choice.others, np.float32).reshape(-1, len(FEATURES.dense_names))
    standing = np.frombuffer(choice.standing, np.float32)
    assert len(others) == 16 and len(standing) == 3
    assert choice.each * 16 + standing.sum() > 16
    without = ask(replica, candidate_ids=given, request_id=looked_at(False)).impression
    assert without.choice is msgspec.UNSET
    assert ask(replica, request_id=looked_at(True)).impression.choice is msgspec.UNSET
