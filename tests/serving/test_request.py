"""Candidates between the stages of a request, and the items of its answer."""

import msgspec
import numpy as np

from serving.request import AnswerItem, Candidates


def candidates() -> Candidates:
    features = None  # stages here read scores alone
    indices_N, sources_N = np.array([4, 7, 9]), np.array([0b10, 0b11, 0b01])
    return Candidates(features, None, indices_N, sources_N, ("vector", "new"))  # type: ignore[arg-type]


def test_scores_open_all_candidates_and_stages_add_to_them() -> None:
    first = candidates().scored(np.array([1.0, 2.0, 3.0]))
    assert first.indices_N.tolist() == [4, 7, 9] and first.open_N.all()
    boosted = first.add_scores("rules", np.array([0.5, 0.0, -1.0])).add_scores("mmr", np.ones(3))
    assert boosted.final_N.tolist() == [2.5, 3.0, 3.0]
    assert boosted.scored(np.zeros(3)).final_N.tolist() == [0.0, 0.0, 0.0]


def test_a_stage_closes_candidates_and_counts_those_that_were_open() -> None:
    first = candidates().scored(np.zeros(3)).close("seen", np.array([False, True, False]))
    second = first.close("rules", np.array([9, 7, 100]))
    assert second.open_N.tolist() == [True, False, False]
    assert second.removed == {"seen": 1, "rules": 1}


def test_skipped_stages_are_listed_in_order() -> None:
    first = candidates()
    assert first.degrade() is first
    assert first.degrade("sessions").degrade("ranker", "rules").degraded == ("sessions", "ranker", "rules")


def test_an_item_without_an_explanation_is_encoded_without_its_fields() -> None:
    item = AnswerItem("v1", 0, 0.5, 1.0, ("new",), {})
    assert set(msgspec.json.decode(msgspec.json.encode(item))) == {
        "item_id", "rank", "score", "propensity", "sources", "fields"
    }  # fmt: skip


def test_a_candidate_names_its_sources_in_their_order() -> None:
    assert [candidates().sources_of(position) for position in range(3)] == [
        ("new",),
        ("vector", "new"),
        ("vector",),
    ]


def test_changed_candidates_leave_those_before_as_they_were() -> None:
    first = candidates()
    other = first.having(indices_N=np.array([5]), removed={"seen": 2})
    assert other.indices_N.tolist() == [5] and other.source_names == first.source_names
    assert other.removed == {"seen": 2} and other.degraded == first.degraded
    assert first.indices_N.tolist() == [4, 7, 9] and not first.removed
