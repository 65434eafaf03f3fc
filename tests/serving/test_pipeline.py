from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from experiments.assignment.policy import Policy
from recsys.events.event_types import Item, encode
from recsys.events.hashing import digest_of, key_of
from recsys.features.request_features import read_block
from recsys.features.session import Session
from serving.admission.deadline import NO_DEADLINE, POPULAR, SHORT, Deadline, RecordedDeadline
from serving.index.item_index import NoIndex
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Answer, Request
from serving.retrieval.retrieval_plan import RetrievalPlan
from serving.scorers.probabilities import probabilities
from serving.selection.sampling import level
from serving.selection.selector import sampling_input
from serving.selection.slate_propensities import SlateWalk
from tests.support.serving.replica_harness import NOW_MS, item, made, policy, popular, viewer
from tests.support.training.small_feed import FEATURES

ANY_AUTHOR = policy(per_author=0)


def ask(
    replica: Replica, its: Session | None = None, request_id: str = "r1",
    by: Policy = ANY_AUTHOR, **request: Any,
) -> Answer:  # fmt: skip
    wanted = Request("u", **({"n": 5} | request))
    session = its or viewer(replica, liked=(3, 8), seen=(1,))
    return Pipeline(replica).recommend(Query(wanted, session, by, NOW_MS, request_id))


def ids(answer: Answer) -> list[str]:
    return [str(i.item_id) for i in answer.items]


def test_an_answer_has_its_list_its_impression_and_its_stamp() -> None:
    replica = made()
    session = viewer(replica, liked=(3,))
    session.offset = 17
    replica.catalogue_offset, replica.item_state_offset = 40, 9
    answer = ask(replica, session, context={"surface": "feed"})
    assert len(answer.items) == 5 and answer.degraded == ()
    assert [i.rank for i in answer.items] == list(range(5))
    stamp, impression = answer.stamp, answer.impression
    assert (stamp.line, stamp.step, stamp.catalogue_offset) == ("main", 1, 40)
    assert (stamp.item_state_offset, stamp.session_offset) == (9, 17)
    assert stamp.policy == ANY_AUTHOR.digest and impression.stamp == stamp
    assert (impression.time_ms, impression.request_id, impression.user_id) == (NOW_MS, "r1", "u")
    for shown, served in zip(answer.items, impression.items, strict=True):
        assert (shown.item_id, shown.score) == (served.item_id, served.score)
        assert (shown.propensity, list(shown.sources)) == (served.propensity, served.sources)
        assert shown.sources and 0 < shown.propensity <= 1 and shown.fields["author"]
        assert shown.predictions is None and shown.reasons is None


def test_the_impression_carries_the_features_of_the_chosen_items_in_order() -> None:
    replica = made()
    session = viewer(replica, liked=(3, 8))
    answer = ask(replica, session)
    block = answer.impression.features
    assert block is not None
    features = read_block(block, FEATURES)
    assert features.items_NI[:, 0].tolist() == [key_of("item", i) for i in ids(answer)]
    chosen = np.array([replica.catalogue.index_of(i) for i in ids(answer)])
    again = Pipeline(replica).builder.build(
        session, "feed", {}, chosen, replica.catalogue, replica.counters, NOW_MS
    )
    assert again.block() == block


def test_the_scores_are_the_weighted_sum_of_what_the_model_predicts() -> None:
    replica = made()
    weights = {"long_view": 2.0, "like": -1.0, "watch": 0.5, "click": 9.0}
    answer = ask(replica, by=policy(weights=weights, per_author=0), explain=True)
    assert answer.impression.features is not None
    features = read_block(answer.impression.features, FEATURES)
    predicted = probabilities(replica.model, replica.rows, [features])
    for shown, row in zip(answer.items, predicted, strict=True):
        assert shown.predictions is not None
        assert shown.predictions["long_view"] == row[0] and shown.predictions["like"] == row[1]
        minutes = shown.predictions["watch_s"] / 60
        assert shown.score == pytest.approx(2 * row[0] - row[1] + 0.5 * minutes, rel=1e-5)
        assert shown.reasons is not None


def test_an_item_that_two_policies_drew_in_turns_has_the_score_of_whoever_drew_it() -> None:
    """Also where it is nobody's, as the control had nothing left."""
    replica = made()
    control = policy(weights={"long_view": 1.0}, per_author=1)
    treatment = policy(weights={"like": 2.0}, per_author=0)
    both = replace(control, rivals=(("control", control), ("treatment", treatment)))
    answer = ask(replica, by=both, n=30, explain=True)
    teams = answer.impression.teams
    assert len(teams) == 30 and "" in teams and {"control", "treatment"} < set(teams)
    for shown, team in zip(answer.items, teams, strict=True):
        assert shown.predictions is not None
        one, other = shown.predictions["long_view"], 2 * shown.predictions["like"]
        assert shown.score == pytest.approx(one if team == "control" else other, rel=1e-5)


def test_the_same_question_to_the_same_version_has_the_same_answer() -> None:
    first, second = made(), made()
    warmed = [ask(second, request_id=f"before{n}") for n in range(3)]  # asking changes nothing
    assert ask(first) == ask(second) and ask(first) == ask(first)
    lists = {tuple(ids(a)) for a in warmed}
    assert len(lists) > 1  # another request is another draw


@pytest.mark.parametrize("steps", [0, 1])
def test_an_empty_catalogue_has_an_empty_answer(steps: int) -> None:
    replica = made(items=0, steps=0)
    replica.step = steps
    answer = ask(replica, Session("u", FEATURES))
    assert answer.items == () and answer.impression.items == []
    assert "retrieval" not in answer.degraded and "rank" not in answer.degraded


def test_one_item_is_shown_again_and_again() -> None:
    replica = made(items=1)
    for session in (Session("u", FEATURES), viewer(replica, seen=(0,))):
        answer = ask(replica, session)
        assert ids(answer) == ["v0"] and answer.items[0].propensity == 1.0


def test_a_stranger_gets_a_whole_list() -> None:
    answer = ask(made(), Session("stranger", FEATURES), n=20)
    assert len(set(ids(answer))) == 20 and answer.degraded == ()


def test_more_than_there_is_gives_all_there_is() -> None:
    answer = ask(made(items=12), Session("u", FEATURES), n=99)
    assert sorted(ids(answer)) == sorted(f"v{n}" for n in range(12))
    assert answer.items[-1].propensity == pytest.approx(1.0)


def test_what_was_seen_comes_again_only_where_nothing_else_is_left() -> None:
    replica = made(items=12)
    seen = tuple(range(8))
    assert set(ids(ask(replica, viewer(replica, seen=seen), n=4))) == {"v8", "v9", "v10", "v11"}
    answer = ask(replica, viewer(replica, seen=tuple(range(12))), n=4)
    assert len(answer.items) == 4 and answer.removed["seen"] == 0


def test_what_is_excluded_hidden_or_gone_never_comes() -> None:
    replica = made(items=12)
    replica.apply_item(Item(time_ms=1, item_id="v2", removed=True), 13)
    session = Session("u", FEATURES)
    session.hidden.append(key_of("item", "v3"))
    for n in range(5):
        answer = ask(replica, session, f"r{n}", n=12, exclude_ids=("v4", "nobody"))
        assert set(ids(answer)) == {f"v{n}" for n in range(12)} - {"v2", "v3", "v4"}
    assert answer.removed == {"gone": 1, "excluded": 1, "hidden": 1, "seen": 0}


def test_given_candidates_are_ranked_and_nothing_else() -> None:
    replica = made()
    replica.apply_item(Item(time_ms=1, item_id="v5", removed=True), 41)
    given = ("v1", "v4", "nobody", "v5", "v1", "v7")
    answer = ask(replica, candidate_ids=given, exclude_ids=("v4",))
    assert sorted(ids(answer)) == ["v1", "v7"]
    assert answer.removed == {"unknown": 2, "excluded": 1}
    assert all(i.sources == ("given",) for i in answer.items)
    assert ask(replica, candidate_ids=()).items == ()


def test_by_score_nothing_is_drawn_and_nothing_moved() -> None:
    """Whatever the policy explores; and the impression says so, so that the answer can be made again."""
    replica = made()
    loose = policy(temperature=5.0, explore=0.5, quota=0.5, diversity=0.5)
    given = tuple(f"v{n}" for n in range(30))
    answer = ask(replica, by=loose, n=12, candidate_ids=given, by_score=True)
    assert answer.candidates is not None
    final = dict(zip(answer.candidates.indices_N.tolist(), answer.candidates.final_N.tolist(), strict=True))
    best = sorted(final, key=lambda index: -final[index])[:12]
    assert ids(answer) == [f"v{index}" for index in best] and len(set(final.values())) == 30
    assert {shown.propensity for shown in answer.items} == {1.0}
    assert answer.impression.inputs is not None and answer.impression.inputs.by_score
    drawn = ask(replica, by=loose, n=12, candidate_ids=given)
    assert ids(drawn) != ids(answer)


def test_a_relative_temperature_draws_rare_events_as_it_draws_frequent_ones() -> None:
    """Scores of a hundredth give the same list with the same propensities, which else is nearly random."""
    replica, weights = made(), policy().config.weights
    rare = {label: weight / 100 for label, weight in weights.items()}
    lists = {
        (scale, relative): ask(
            replica, by=policy(per_author=0, weights=by, relative=relative, temperature=0.1), n=12
        )
        for scale, by in (("usual", weights), ("rare", rare))
        for relative in (True, False)
    }
    usual, scaled = lists["usual", True], lists["rare", True]
    assert ids(usual) == ids(scaled)
    propensities = [[shown.propensity for shown in answer.items] for answer in (usual, scaled)]
    np.testing.assert_allclose(propensities[0], propensities[1], rtol=1e-4)
    assert max(shown.propensity for shown in lists["rare", False].items) < max(propensities[0])


def test_a_relative_temperature_is_of_scores_before_they_are_adjusted() -> None:
    """What a stage adds to some items makes the draw no wider."""
    replica = made()
    by = policy(per_author=0, relative=True, temperature=0.1)
    answer = ask(replica, by=by, candidate_ids=tuple(f"v{n}" for n in range(20)))
    assert answer.candidates is not None
    query = Query(Request("u", n=2), viewer(replica), by, NOW_MS, "r")
    scored = answer.candidates.scored(np.linspace(0.1, 1.0, 20))
    raised = scored.add_scores("stage", np.full(20, 4.0))
    params = [sampling_input(replica, query, each).params for each in (scored, raised)]
    assert params[0].temperature == params[1].temperature == pytest.approx(0.1 * level(scored.scores_N))


def test_the_level_of_scores_is_a_size_whatever_their_number_and_sign() -> None:
    assert level(np.array([0.5, 0.5001])) == 0.5001 and level(np.array([-0.4])) == 0.4
    assert level(np.array([np.nan, np.inf, 2.0])) == 2.0
    assert level(np.zeros(3)) == level(np.empty(0)) == level(np.array([np.nan])) == 0.0


@pytest.mark.parametrize("scores", [[0.5] * 19 + [0.5001], [0.0] * 19 + [0.01]])
def test_nearly_equal_scores_of_a_relative_policy_are_drawn_evenly(scores: list[float]) -> None:
    """Also where nine in ten have no level: the temperature is then as configured."""
    replica = made()
    by = policy(per_author=0, relative=True, temperature=0.1, explore=0.0, quota=0.0)
    answer = ask(replica, by=by, candidate_ids=tuple(f"v{n}" for n in range(20)))
    assert answer.candidates is not None
    query = Query(Request("u", n=2), viewer(replica), by, NOW_MS, "r")
    given = sampling_input(replica, query, answer.candidates.scored(np.array(scores)))
    probabilities_N = SlateWalk(given, 2).step(np.empty(0, np.int64)).total_N
    np.testing.assert_allclose(probabilities_N, 0.05, rtol=0.15)


def test_one_author_has_no_more_places_than_the_policy_gives() -> None:
    replica = made(items=60)
    for n in range(10):
        answer = ask(replica, Session("u", FEATURES), f"r{n}", policy(per_author=1), n=9)
        authors = [i.fields["author"] for i in answer.items]
        assert len(set(authors)) == len(authors) == 9


def test_a_fixed_item_stands_at_its_rank_and_the_impression_says_so() -> None:
    replica, by = made(), policy(per_author=0, fixed={0: "v11", 3: "v30", 9: "v2"})
    for n in range(20):
        answer = ask(replica, request_id=f"r{n}", by=by)
        assert (ids(answer)[0], ids(answer)[3]) == ("v11", "v30") and len(set(ids(answer))) == 5
        for rank, (shown, served) in enumerate(zip(answer.items, answer.impression.items, strict=True)):
            pinned = rank in (0, 3)
            assert (shown.sources == ("fixed",)) == pinned == ("fixed" in served.sources)
            assert (served.propensity == 1.0) == pinned and shown.score is not None
    seen = viewer(replica, liked=(3,), seen=(11, 30))
    assert ids(ask(replica, seen, by=by))[0] == "v11"


def test_a_fixed_item_that_the_viewer_may_not_have_leaves_its_rank_to_the_others() -> None:
    replica = made()
    replica.apply_item(Item(time_ms=1, item_id="v5", removed=True), 41)
    session = Session("u", FEATURES)
    session.hidden.append(key_of("item", "v6"))
    by = policy(per_author=0, fixed={0: "v5", 1: "v6", 2: "v7", 3: "nobody", 4: "v8"})
    for n in range(5):
        answer = ask(replica, session, f"r{n}", by=by, exclude_ids=("v7",), n=5)
        assert len(answer.items) == 5 and not {"v5", "v6", "v7"} & set(ids(answer))
        assert [i.sources == ("fixed",) for i in answer.items] == [False] * 4 + [True]
    given = ask(replica, session, by=by, candidate_ids=("v1", "v8", "v2", "v3", "v4", "v9"))
    assert ids(given)[4] == "v8" and given.items[4].propensity == 1.0
    given = ask(replica, session, by=by, candidate_ids=("v1", "v2", "v3"))
    assert sorted(ids(given)) == ["v1", "v2", "v3"]


def test_in_a_catalogue_of_fixed_items_alone_they_move_up() -> None:
    replica = made(items=2)
    answer = ask(replica, Session("u", FEATURES), by=policy(fixed={1: "v1", 3: "v0"}), n=5)
    assert ids(answer) == ["v1", "v0"]
    assert [i.propensity for i in answer.items] == [1.0, 1.0]


def test_without_a_model_the_popular_come_first_and_the_answer_says_so() -> None:
    replica = made(steps=0)
    popular(replica, {7: 30, 9: 20})
    by = policy(temperature=1e-3, explore=0.0)
    answer = ask(replica, Session("u", FEATURES), by=by)
    assert answer.degraded == ("model",) and answer.impression.degraded == ["model"]
    assert ids(answer)[:2] == ["v7", "v9"]
    assert not any("vector" in i.sources for i in answer.items)


def test_without_a_model_and_without_a_past_all_are_equal() -> None:
    replica = made(steps=0)
    counts = np.zeros(40)
    for n in range(200):
        answer = ask(replica, Session("u", FEATURES), f"r{n}", policy(explore=0.0), n=1)
        counts[int(ids(answer)[0][1:])] += 1
    assert (counts > 0).sum() > 30 and counts.max() < 25


def broken(*_: Any, **__: Any) -> None:
    raise RuntimeError("broken on purpose")


def test_a_broken_ranker_leaves_the_popular_order(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = made()
    popular(replica, {7: 30, 9: 20})
    monkeypatch.setattr("serving.scorers.ranker.probabilities", broken)
    by = policy(temperature=1e-3, explore=0.0)
    answer = ask(replica, Session("u", FEATURES), by=by, explain=True)
    assert answer.degraded == ("rank",) and ids(answer)[:2] == ["v7", "v9"]
    assert answer.items[0].predictions is None


def test_a_broken_index_leaves_the_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = made()
    monkeypatch.setattr(replica.index, "search", broken)
    answer = ask(replica)
    assert answer.degraded == ("retrieval",) and len(answer.items) == 5


def test_with_everything_broken_a_list_still_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = made()
    monkeypatch.setattr(replica.index, "search", broken)
    monkeypatch.setattr("serving.sources.newest.sample", broken)
    monkeypatch.setattr("serving.scorers.ranker.probabilities", broken)
    answer = ask(replica)
    assert answer.degraded == ("retrieval", "rank") and len(answer.items) == 5


def test_a_prediction_that_is_no_number_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = made(items=8)

    def poisoned(*arguments: Any) -> np.ndarray:
        found = probabilities(*arguments)
        found[arguments[2][0].items_NI[:, 0] == key_of("item", "v3")] = np.nan
        return found

    monkeypatch.setattr("serving.scorers.ranker.probabilities", poisoned)
    for n in range(10):
        answer = ask(replica, Session("u", FEATURES), f"r{n}", n=8, explain=True)
        last = answer.items[-1]
        assert (last.item_id, last.score, last.predictions) == ("v3", None, None)
        assert answer.degraded == ()


def test_where_no_prediction_is_a_number_the_impression_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be told from a list that wasn't ranked in time; the list is of what is popular."""
    replica = made()
    popular(replica, {7: 30, 9: 20})
    monkeypatch.setattr("serving.scorers.ranker.probabilities", lambda *a: probabilities(*a) * np.nan)
    by = policy(temperature=1e-3, explore=0.0)
    answer = ask(replica, Session("u", FEATURES), by=by, explain=True)
    assert answer.degraded == ("rank",) and ids(answer)[:2] == ["v7", "v9"]
    assert answer.items[0].predictions is None
    predicted = np.frombuffer(answer.impression.predicted, np.float32)
    assert predicted.size and predicted.size % len(answer.items) == 0
    assert np.isnan(predicted).all()


def test_ids_as_numbers_and_as_text_are_the_same() -> None:
    replica = made(items=3)
    replica.apply_item(Item(time_ms=0, item_id=7, fields=item(7).fields), 4)
    session = Session("u", FEATURES)
    answer = ask(replica, session, candidate_ids=("7", 7))
    assert [i.item_id for i in answer.items] == [7]
    assert ask(replica, session, candidate_ids=("7",), exclude_ids=(7,)).items == ()


def test_the_impression_says_what_was_asked_and_what_else_the_answer_rests_on() -> None:
    replica = made()
    replica.item_state_from = 7
    packed = Session.unpack(viewer(replica, liked=(3,)).pack(), FEATURES)
    answer = ask(replica, packed, n=4, exclude_ids=("v1", 2), candidate_ids=("v5", "v6"))
    asked = answer.impression.inputs
    assert asked is not None
    assert (asked.n, asked.exclude_ids, asked.candidate_ids) == (4, ["v1", 2], ["v5", "v6"])
    assert (asked.candidates, asked.item_state_from) == (60, 7)
    assert asked.session == digest_of(packed.pack())
    plain = ask(replica, packed).impression
    size = len(encode(plain)) - len(encode(msgspec.structs.replace(plain, inputs=None)))
    assert size < 100  # beside some ten thousand of features


def test_candidates_come_with_the_answer() -> None:
    answer = ask(made(), candidate_ids=("v5", "v6", "v7"), n=2)
    assert answer.candidates is not None
    assert [answer.candidates.sources_of(position) for position in range(3)] == [("given",)] * 3
    assert len(answer.candidates.scores_N) == 3


def test_shards_are_asked_where_the_index_is_theirs_and_there_is_time() -> None:
    replica = made()
    session = viewer(replica, liked=(3,), seen=(1,))

    def plan(deadline: Deadline = NO_DEADLINE, **request: Any) -> RetrievalPlan | None:
        query = Query(Request("u", n=5, **request), session, ANY_AUTHOR, NOW_MS, "r1", deadline)
        return Pipeline(replica).plan(query)

    assert plan() is None
    replica.index = NoIndex(replica.index.dim, 2)
    asked = plan()
    assert asked is not None and asked.version == Pipeline(replica).version
    assert {query.source for query in asked.queries} == {"vector", "similar"}
    taken = {int(replica.catalogue.keys[n, 0]) for n in (1, 3)}
    assert taken <= set(asked.keys.tolist())
    assert plan(candidate_ids=["v1"]) is None
    assert plan(RecordedDeadline([POPULAR])) is None and plan(RecordedDeadline([SHORT])) is not None
