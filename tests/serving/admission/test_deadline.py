"""What is left out where time is short; and that a past answer can be made again from what it says."""

from dataclasses import replace

import numpy as np
import pytest

from serving.admission.deadline import (
    POPULAR,
    SHORT,
    UNRANKED,
    RecordedDeadline,
    TimeLeftDeadline,
    first_of_each,
)
from serving.pipeline import Pipeline
from serving.query import Query
from serving.request import Request
from tests.support.serving.replica_harness import NOW_MS, config, made, policy, popular, viewer

NEEDS_MS = {POPULAR: 10.0, SHORT: 20.0, UNRANKED: 8.0}


def test_a_stage_is_missed_below_what_it_needs() -> None:
    left_ms = [15.0]
    deadline = TimeLeftDeadline(lambda: left_ms[0], NEEDS_MS)
    assert [deadline.skips(s) for s in (POPULAR, SHORT, UNRANKED)] == [False, True, False]
    left_ms[0] = 0.5
    assert all(deadline.skips(s) for s in NEEDS_MS) and not deadline.skips("other")
    left_ms[0] = -5.0
    assert all(deadline.skips(s) for s in (*NEEDS_MS, "other"))


def test_of_each_source_its_first_ones_stay() -> None:
    sources_N = np.array([0b100] * 60 + [0b011] * 30)  # one source, then two others
    assert first_of_each(sources_N, 30).tolist() == [*range(20), *range(60, 70)]
    assert first_of_each(sources_N, 90).tolist() == [*range(90)]
    assert first_of_each(1 << np.arange(50), 10).tolist() == [*range(10)]


@pytest.mark.parametrize(
    ("left_ms", "missed"),
    [(50.0, ()), (15.0, (SHORT,)), (9.0, (POPULAR, SHORT)), (-1.0, (POPULAR, SHORT, UNRANKED))],
)
def test_an_answer_says_what_it_did_without_and_is_made_again(
    left_ms: float, missed: tuple[str, ...]
) -> None:
    replica = made(items=400, its_config=config(candidates=300))
    popular(replica, {n: n for n in range(150)})
    pipeline, session = Pipeline(replica), viewer(replica, liked=(3, 8))
    request, by = Request("u", n=10), policy()
    late = TimeLeftDeadline(lambda: left_ms, NEEDS_MS)
    query = Query(request, session, by, NOW_MS, "r1", late)
    answer = pipeline.recommend(query)
    assert len(answer.items) == 10
    assert answer.degraded == missed
    assert (answer.items[0].sources == ("popular",)) == (POPULAR in missed)
    assert answer.impression.degraded == list(answer.degraded)
    recorded = RecordedDeadline(answer.impression.degraded)
    again = pipeline.recommend(replace(query, deadline=recorded))
    assert again == answer
