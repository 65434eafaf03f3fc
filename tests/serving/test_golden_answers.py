"""Answers stay as recorded while the code of the pipeline changes."""

import pytest

from serving.admission.deadline import RecordedDeadline
from serving.pipeline import Pipeline
from serving.query import Query, ShardResults
from serving.request import Answer
from tests.support.serving.golden_answers import (
    GoldenCase,
    answers,
    digest_of_answers,
    hashed_predictions,
    item_keys,
)
from tests.support.serving.replica_harness import NOW_MS

DIGEST = "60b98a6d14b5b989"


def ask(case: GoldenCase, request_id: str, deadline: RecordedDeadline) -> Answer:
    pipeline, results = Pipeline(case.replica), None
    if case.from_shards is not None:
        keys = {name: item_keys(*numbers) for name, numbers in case.from_shards.items()}
        results = ShardResults(pipeline.version, "2:flat+none", keys, missing=True)
    request, session = case.request, case.session
    query = Query(request, session, case.policy, NOW_MS, request_id, deadline, results)
    return pipeline.recommend(query)


def test_answers_are_those_that_were_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.scorers.ranker.probabilities", hashed_predictions)
    assert digest_of_answers(ask) == DIGEST


def test_the_recorded_answers_cover_what_a_pipeline_can_do() -> None:
    made = [answer for _, answer in answers(ask)]
    degraded = {stage for answer in made for stage in answer.degraded}
    removed = {stage for answer in made for stage, count in answer.removed.items() if count}
    sources = {source for answer in made for shown in answer.items for source in shown.sources}
    assert degraded == {"model", "retrieval", "retrieval:popular", "rank:short", "rank:none"}
    assert removed >= {"gone", "excluded", "hidden", "seen", "unknown", "rules", "per_author"}
    assert sources >= {"trial", "vector", "similar", "topic", "popular", "given", "fixed", "quota"}
    assert any(answer.impression.teams for answer in made)
