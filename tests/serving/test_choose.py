"""The choice model orders all candidates, the ranker the first of them."""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys.features.feature_set import read_block
from recsys.model.choice_model import log_odds
from serving import pipeline as pipeline_module
from serving.pipeline import Pipeline, is_looked_at
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Answer, Request
from tests.support.serving.replica_harness import NOW_MS, made, policy, viewer
from tests.support.training.small_feed import FEATURES

GREEDY = policy(explore=0.0, quota=0.0, per_author=0, weights={"long_view": 1.0})


def query_of(
    replica: Replica, by: Policy = GREEDY, request_id: str = "r1", **request: Any
) -> Query:
    wanted = Request("u", **({"n": 5, "by_score": True} | request))
    return Query(wanted, viewer(replica, liked=(3,)), by, NOW_MS, request_id)


def ask(replica: Replica, **request: Any) -> Answer:
    return Pipeline(replica).recommend(query_of(replica, **request))


def choosing(by_logit: float) -> Replica:
    """A replica whose choice model goes by the ranker's logit alone, with this weight."""
    replica = made()
    with torch.no_grad():
        replica.model.choice.weights_W[0] = by_logit
    return replica


def first_logits(replica: Replica, answer: Answer) -> NDArray[np.float32]:
    assert answer.candidates is not None and answer.candidates.predictions_NL is not None
    return log_odds(answer.candidates.predictions_NL[:, 0])


def test_the_list_holds_what_the_choice_model_puts_first_in_the_order_of_the_ranker() -> None:
    replica = choosing(by_logit=-3.0)
    answer = ask(replica)
    assert answer.candidates is not None
    logits, names = first_logits(replica, answer), replica.catalogue.ids
    least = np.argsort(logits)[:5]  # of all candidates what the ranker likes least
    wanted = sorted(least, key=lambda at: -logits[at])
    assert [i.item_id for i in answer.items] == [
        names[answer.candidates.indices[at]] for at in wanted
    ]
    scores = [i.score for i in answer.items]
    assert scores == sorted(scores, key=lambda score: -(score or 0.0))


def test_candidates_beyond_the_list_are_scored_below_it_by_their_odds() -> None:
    replica = choosing(by_logit=-3.0)
    candidates = ask(replica).candidates
    assert candidates is not None and candidates.chances_N is not None
    order = np.argsort(-candidates.scores_N)
    logits = log_odds(candidates.predictions_NL[:, 0])  # type: ignore[index]
    assert set(order[:5]) == set(np.argsort(logits)[:5])
    assert np.array_equal(order[5:], np.argsort(logits, kind="stable")[5:])
    assert (candidates.scores_N > 0).all()


def test_without_weights_the_ranker_orders_all() -> None:
    answer = ask(made())
    assert answer.candidates is not None and answer.candidates.chances_N is None
    scores = answer.candidates.scores_N
    assert [i.score for i in answer.items] == pytest.approx(np.sort(scores)[::-1][:5].tolist())


def test_a_policy_s_weights_count_in_what_is_chosen() -> None:
    """By the chance of being taken times the score: with equal chances by the score."""
    replica = choosing(by_logit=1e-6)
    likes = policy(explore=0.0, quota=0.0, per_author=0, weights={"like": 1.0})
    answer = ask(replica, by=likes)
    candidates = answer.candidates
    assert candidates is not None and candidates.predictions_NL is not None
    predicted = candidates.predictions_NL
    wanted = np.argsort(-predicted[:, 1] / predicted[:, 0])[:5]
    assert {candidates.indices[at] for at in wanted} == {
        replica.catalogue.index_of(i.item_id) for i in answer.items
    }


def test_two_policies_draw_from_what_each_finds_worth_most() -> None:
    replica = choosing(by_logit=-3.0)
    own, query = Pipeline(replica), query_of(replica)
    candidates = own.recommend(query).candidates
    assert candidates is not None
    again = own.adjusted(query, candidates)
    np.testing.assert_allclose(again.scores_N, candidates.scores_N)


def test_all_of_a_caller_s_few_candidates_are_ranked() -> None:
    replica = choosing(by_logit=-3.0)
    answer = ask(replica, candidate_ids=("v1", "v2", "v3"))
    assert answer.candidates is not None and answer.candidates.chances_N is None
    assert len(answer.items) == 3


def looked_at(wanted: bool) -> str:
    return next(name for name in map(str, range(99)) if is_looked_at(name, 1) is wanted)


def test_some_lists_of_a_caller_s_candidates_tell_what_the_sources_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replica = made()
    monkeypatch.setattr(pipeline_module, "_EARLY", 0)
    monkeypatch.setattr(pipeline_module, "_ONE_IN", 2)
    given = ("v1", "v2", "v39")
    choice = ask(replica, candidate_ids=given, request_id=looked_at(True)).impression.choice
    assert choice is not msgspec.UNSET
    others = np.frombuffer(choice.others, np.float32).reshape(-1, len(FEATURES.dense_names))
    standing = np.frombuffer(choice.standing, np.float32)
    assert len(others) == 16 and len(standing) == 3
    assert len(np.frombuffer(choice.logits, np.float32)) == 3 + 16
    query = query_of(replica, request_id=looked_at(True))
    candidates = len(Pipeline(replica).candidates(query).sources)
    assert choice.each * 16 + standing.sum() == candidates
    without = ask(replica, candidate_ids=given, request_id=looked_at(False)).impression
    assert without.choice is msgspec.UNSET
    assert ask(replica, request_id=looked_at(True)).impression.choice is msgspec.UNSET


def test_all_lists_are_looked_at_at_first_and_few_in_the_end() -> None:
    names = [str(n) for n in range(3_200)]
    assert all(is_looked_at(name, step) for name in names[:99] for step in (0, 1, 49))
    shares = [np.mean([is_looked_at(name, step) for name in names]) for step in (500, 10_000)]
    assert shares == pytest.approx([0.1, 1 / 32], rel=0.3)


def test_candidates_have_the_features_and_logits_of_the_first_ranking() -> None:
    replica = made()
    own, query = Pipeline(replica), query_of(replica)
    answer = own.recommend(query)
    block = answer.impression.features
    assert block is not None
    index = replica.catalogue.index_of(answer.items[0].item_id)
    assert index is not None
    features, logits = own.first_ranking(query, np.array([index], np.int64))
    assert np.array_equal(features.dense_NF[0], read_block(block, FEATURES).dense_NF[0])
    predicted = np.frombuffer(answer.impression.predicted, np.float32)
    assert logits[0] == log_odds(predicted[:1])[0]


def test_before_the_first_step_there_are_no_logits() -> None:
    replica = made(steps=0)
    _, logits = Pipeline(replica).first_ranking(query_of(replica), np.arange(3))
    assert logits.tolist() == [0.0, 0.0, 0.0]
    assert pipeline_module._OTHERS == 16
