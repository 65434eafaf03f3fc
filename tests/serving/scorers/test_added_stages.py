"""Stages of plug-ins change scores and marks, and nothing else; one that fails is left out and named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.admission.deadline import RecordedDeadline, TimeLeftDeadline
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Request
from serving.scorers.added_stages import AddedStages
from tests.support.serving.replica_harness import NOW_MS, made, policy, viewer


@pytest.fixture(scope="module")
def ranked() -> tuple[Replica, Query, Candidates]:
    """Ranked candidates, of which the first is closed."""
    replica = made()
    query = Query(Request("u"), viewer(replica, liked=(3,)), policy(), NOW_MS, "r1")
    candidates = Pipeline(replica).recommend(query).candidates
    assert candidates is not None
    first_N = np.arange(len(candidates.indices_N)) == 0
    replica.config = replace(replica.config, serve=replace(replica.config.serve, stages=("a@1", "b@1")))
    return replica, query, candidates.close("before", first_N)


Change = Callable[[Candidates], Any]


def run(
    ranked: tuple[Replica, Query, Candidates], a: Change, b: Change = lambda c: c, **query: Any
) -> Candidates:
    stages = {"a@1": lambda _, __, c: a(c), "b@1": lambda _, __, c: b(c)}
    replica, asked, candidates = ranked
    load = lambda group, name: stages[name]  # noqa: E731
    return AddedStages(load)(replica, replace(asked, **query), candidates)


def test_stages_run_in_order_and_change_scores_and_marks(ranked: Any) -> None:
    _, _, before = ranked
    size = len(before.indices_N)
    last_N = np.arange(size) == size - 1
    after = run(
        ranked,
        lambda c: c.add_scores("a@1", np.full(size, 0.5)),
        lambda c: last_N & (c.final_N > before.final_N),
    )
    assert np.array_equal(after.final_N, before.final_N + 0.5)
    assert np.flatnonzero(~after.open_N).tolist() == [0, size - 1]
    assert after.removed["b@1"] == 1 and after.degraded == before.degraded


def test_a_stage_opens_nothing_and_changes_nothing_else(ranked: Any) -> None:
    _, _, before = ranked
    size = len(before.indices_N)
    after = run(
        ranked,
        lambda c: replace(
            c,
            open_N=np.ones(size, np.bool_),
            scores_N=c.scores_N + 1,
            sources_N=c.sources_N * 0,
            degraded=("x",),
        ),
    )
    assert not after.open_N[0] and after.open_N[1:].all()
    assert after.scores_N is before.scores_N and after.sources_N is before.sources_N
    assert after.degraded == before.degraded


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: 1 / 0,
        lambda c: None,
        lambda c: c.add_scores("a@1", np.full(len(c.indices_N), np.nan)),
        lambda c: c.add_scores("a@1", np.zeros(3)),
        lambda c: c.add_scores("a@1", np.zeros((len(c.indices_N), 1))),
        lambda c: np.ones(3, np.bool_),
        lambda c: np.full(3, 0.5),
    ],
)
def test_a_stage_that_fails_is_left_out_and_named(ranked: Any, wrong: Change) -> None:
    _, _, before = ranked
    half = np.full(len(before.indices_N), 0.5)
    after = run(ranked, wrong, lambda c: c.add_scores("b@1", half))
    assert after.degraded == (*before.degraded, "a@1")
    assert np.array_equal(after.final_N, before.final_N + 0.5)


def test_a_late_or_recorded_stage_is_left_out(ranked: Any) -> None:
    late = run(ranked, lambda c: 1 / 0, deadline=TimeLeftDeadline(lambda: -1.0, {}))
    assert late.degraded[-2:] == ("a@1", "b@1")
    recorded = run(ranked, lambda c: 1 / 0, deadline=RecordedDeadline(["a@1"]))
    assert recorded.degraded[-1:] == ("a@1",)


def test_failures_of_stages_and_sources_are_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    replica, loads = made(), list[str]()
    serve = replace(replica.config.serve, stages=("a@1",))
    replica.config = replace(replica.config, serve=serve)

    def load(group: str, name: str) -> Any:
        loads.append(name)
        raise ValueError("not installed")

    pipeline = Pipeline(replica, load)
    for n in range(5):
        now_ms = NOW_MS + 10_000 * n
        chosen = policy(sources={"mine@1": 5, "popular": 5})
        query = Query(Request("u"), viewer(replica), chosen, now_ms, "r1")
        assert {"a@1", "retrieval"} & set(pipeline.recommend(query).degraded)
    failures = [(r.message, r.times) for r in caplog.records]  # type: ignore[attr-defined]
    assert len(loads) == 10 and sorted(failures) == [
        ("a source failed", 1),
        ("a source failed", 3),
        ("a stage failed", 1),
        ("a stage failed", 3),
    ]


@pytest.mark.parametrize("wrong", [{"treatment"}, {"control"}, {"control", "treatment"}])
def test_a_stage_that_fails_for_either_arm_of_an_interleaved_list_is_named_once(wrong: set[str]) -> None:
    replica, weights = made(), {"control": {"like": 1.0}, "treatment": {"like": 3.0}}
    serve = replace(replica.config.serve, stages=("a@1",))
    replica.config = replace(replica.config, serve=serve)

    def stage(_: Replica, query: Query, candidates: Candidates) -> Candidates:
        if query.policy.config.weights in [weights[arm] for arm in wrong]:
            raise ValueError("fails")
        return candidates

    rivals = tuple((name, policy(weights=each)) for name, each in weights.items())
    both = replace(rivals[0][1], rivals=rivals)
    query = Query(Request("u"), viewer(replica), both, NOW_MS, "r1")
    answer = Pipeline(replica, lambda _, __: stage).recommend(query)
    # Else reconstruction would skip it for both.
    names = ("a@1 (treatment)",) if wrong == {"treatment"} else ("a@1",)
    assert answer.degraded == names
    assert answer.impression.degraded == list(answer.degraded) and answer.impression.teams
