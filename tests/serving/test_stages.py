from typing import Any

import numpy as np
import pytest

from recsys.events.event_types import Engagement
from recsys.events.hashing import key_of
from recsys.features.session import Session
from serving.pipeline import Pipeline, Stage
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Answer, Candidates, Request
from serving.selection.selector import trust_of
from tests.support.serving.replica_harness import NOW_MS, made, policy, popular, viewer
from tests.support.serving.replica_harness import item as item_of
from tests.support.training.small_feed import FEATURES, START_MS

QUIET = {"explore": 0.0, "quota": 0.0, "temperature": 1e-3, "per_author": 0}


def ask(replica: Replica, session: Session, n: int = 6, request_id: str = "r", **by: Any) -> Answer:
    query = Query(Request("u", n), session, policy(**(QUIET | by)), NOW_MS, request_id)
    return Pipeline(replica).recommend(query)


def rule(do: str, field: str, value: str, amount: float = 1.0) -> dict[str, Any]:
    return {"do": do, "field": field, "value": value, "amount": amount}


def of(answer: Answer, field: str) -> list[Any]:
    return [item.fields[field] for item in answer.items]


def hides(session: Session, replica: Replica, n: int) -> None:
    event = Engagement(time_ms=START_MS + 50_000, request_id="h", user_id="u", item_id=f"v{n}", kind="hide")
    session.fold_engagement(event, replica.catalogue.keys[n])


def test_who_hides_an_item_sees_less_of_its_author_and_tags() -> None:
    replica = made()
    session = viewer(replica)
    hides(session, replica, 4)  # author a4, tag t4
    answer = ask(replica, session, n=30, not_interested=2.0)
    assert answer.candidates is not None
    added = dict(zip(answer.candidates.indices_N, answer.candidates.added["not_interested"], strict=True))
    assert added[13] == added[9] == -1.0  # one hide, nothing liked: half of it, by author or tag
    assert added[7] == 0.0 and "v4" not in [item.item_id for item in answer.items]
    ordered = [
        a in ("a4",) or "t4" in t for a, t in zip(of(answer, "author"), of(answer, "tags"), strict=True)
    ]
    assert ordered == sorted(ordered)  # what is damped comes last
    indifferent = ask(replica, session, not_interested=0.0).candidates
    assert indifferent is not None and "not_interested" not in indifferent.added


def test_what_is_liked_beside_weighs_against_a_hide() -> None:
    replica = made()
    session = viewer(replica, liked=(9, 14, 19))  # three of tag t4
    hides(session, replica, 4)
    answer = ask(replica, session, n=30, not_interested=1.0)
    assert answer.candidates is not None
    added = dict(zip(answer.candidates.indices_N, answer.candidates.added["not_interested"], strict=True))
    assert added[13] == pytest.approx(-0.5)  # author a4: hidden once, never liked
    assert added[24] == pytest.approx(-1 / 5, abs=0.01)  # tag t4: one hide, three likes


def test_rules_boost_bury_require_and_limit() -> None:
    replica, session = made(), viewer(made())
    boosted = ask(replica, session, rules=(rule("boost", "author", "a3", 50.0),), n=4)
    assert of(boosted, "author") == ["a3"] * 4
    buried = ask(replica, session, rules=(rule("bury", "tags", "t2", 50.0),), n=40)
    assert of(buried, "tags")[-8:] == [["t2"]] * 8 and ["t2"] not in of(buried, "tags")[:-8]
    either = (rule("require", "author", "a3"), rule("require", "author", "a5"))
    required = ask(replica, session, rules=(*either, rule("require", "tags", "t0")), n=40)
    assert {(a, t) for a, [t] in zip(of(required, "author"), of(required, "tags"), strict=True)} == {
        ("a3", "t0"),
        ("a5", "t0"),
    }
    assert required.removed["rules"] == 40 - len(required.items)
    none = ask(replica, session, rules=(rule("limit", "author", "a3", 0),), n=40)
    assert "a3" not in of(none, "author") and none.removed["rules"] == 5
    limited = ask(replica, session, rules=(rule("limit", "tags", "t1", 2),), n=40)
    assert of(limited, "tags").count(["t1"]) == 2 and len(limited.items) == 34
    assert limited.removed["limit tags=t1"] == 6


@pytest.mark.parametrize(("value", "said"), [("true", True), ("false", False), ("True", True)])
def test_rules_know_the_booleans_of_json(value: str, said: bool) -> None:
    replica, session = made(), viewer(made())
    replica.apply_items([item_of(n, tags=[said if n < 5 else not said]) for n in range(40)], 80)
    required = ask(replica, session, rules=(rule("require", "tags", value),), n=40)
    assert {shown.item_id for shown in required.items} == {f"v{n}" for n in range(5)}
    limited = ask(replica, session, rules=(rule("limit", "tags", value, 2),), n=40)
    assert of(limited, "tags").count([said]) == 2 and len(limited.items) == 37


def test_vary_gives_a_liked_value_a_share_that_grows_and_short_runs() -> None:
    replica, vary = made(), rule("vary", "tags", "*", 2)
    only_t4 = {"sources": {"popular": 40}, "rules": (vary, rule("boost", "tags", "t4", 50.0))}
    shares = []
    for liked in ((), (4,), (4, 9, 14)):
        tags = of(ask(replica, viewer(replica, liked=liked), n=9, **only_t4), "tags")
        shares.append(tags.count(["t4"]))
        runs = "".join("x" if tag == ["t4"] else "." for tag in tags).split(".")
        assert not liked or max(map(len, runs)) == 2
    assert shares == [8, 3, 5]  # as many as there are; 9 × 1 / 3; 9 × 3 / 5
    answer = ask(replica, viewer(replica, liked=(4,)), n=9, **only_t4)
    assert answer.removed["vary tags 1"] > 0
    elsewhere = ask(replica, viewer(replica, liked=(4,)), rules=(rule("vary", "title", "*", 2),))
    assert len(elsewhere.items) == 6  # a field of which no taste is kept


def test_a_fixed_item_stands_whatever_the_rules_say_and_a_cap_says_whom_it_shut_out() -> None:
    replica, session = made(), viewer(made())
    by = {"fixed": {1: "v4"}, "rules": (rule("require", "author", "a3"),), "per_author": 2}
    answer = ask(replica, session, **by)
    assert of(answer, "author") == ["a3", "a4", "a3"] and answer.removed["per_author"] == 3


def test_items_on_trial_have_their_quota_and_the_answer_says_which_they_are() -> None:
    replica, session = made(), viewer(made())
    for _ in range(2):
        popular(replica, dict.fromkeys(range(36), 60))
    replica.popularity._shown[:36] = 60  # toy engagements have no views
    drawn = offered = 0
    for n in range(150):
        answer = ask(replica, session, 5, f"r{n}", quota=0.2, trust_after=50)
        offered += answer.offered
        for item, served in zip(answer.items, answer.impression.items, strict=True):
            by_quota = "quota" in item.sources
            drawn += by_quota
            assert by_quota == ("quota" in served.sources)
            assert not by_quota or (item.item_id in ("v36", "v37", "v38", "v39"))
    assert 600 < offered <= 750 and abs(drawn / offered - 0.2) < 0.05
    replica.popularity._shown[:] = 60
    assert ask(replica, session, quota=0.2, trust_after=50).offered == 0


def test_trust_grows_with_every_showing() -> None:
    shown = np.array([0.0, 10.0, 50.0, 999.0])
    trust = trust_of(shown, policy(trust_after=50).config)
    assert trust.tolist() == pytest.approx([1.0, 0.8, 0.0, 0.0])
    assert not trust_of(shown, policy(trust_after=0).config).any()


def test_a_stage_runs_in_its_place_and_its_removals_are_counted_under_its_name() -> None:
    def odd(query: Query, candidates: Candidates) -> Candidates:
        return candidates.close("odd", candidates.indices_N % 2 == 0)

    replica = made()
    pipeline, query = Pipeline(replica), Query(Request("u", 40), viewer(replica), policy(), NOW_MS)
    pipeline.stages = (*pipeline.stages[:-1], Stage("odd", odd), pipeline.stages[-1])
    answer = pipeline.recommend(query)
    assert len(answer.items) <= 20 == answer.removed["odd"]
    assert {int(str(item.item_id)[1:]) % 2 for item in answer.items} == {1}


def test_a_viewer_without_a_past_that_is_told_apart_has_nothing_added() -> None:
    session = Session("u", FEATURES)
    session.hidden.append(key_of("item", "unheard of"))
    answer = ask(made(), session)
    assert answer.candidates is not None and not answer.candidates.added
    assert answer.candidates.final_N is answer.candidates.scores_N
