"""Wishes of viewers and safety rules: they hold in every source, and can be taken back."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.policy_config import SOURCES
from recsys.config.safety_config import SafetyConfig, SafetyRule
from recsys.events.event_types import Preference, User
from recsys.events.field_schema import CATEGORICAL
from recsys.events.hashing import key_of
from recsys.features.feature_set import FeatureSet
from recsys.features.session import WISHES, Session
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Answer, Request
from tests.support.serving.replica_harness import NOW_MS, config, item, made, policy, viewer
from tests.support.training.small_feed import FEATURES, SCHEMA

# v3 is by a3, has the tag t3, and the label adult.
WISHED = [("item_id", "v3"), ("author", "a3"), ("tags", "t3")]


def catalogue(rules: tuple[SafetyRule, ...] = ()) -> Replica:
    replica = made(its_config=replace(config(), safety=SafetyConfig(rules)))
    replica.apply_item(item(3, labels=["adult"]), 41)
    return replica


def wish(session: Session, field: str, value: str, wish: str = "block") -> Session:
    session.fold_preference(Preference(time_ms=NOW_MS, user_id="u", field=field, value=value, wish=wish))
    return session


def ask(replica: Replica, session: Session, known: bool = True, **request: Any) -> Answer:
    sources = request.pop("sources", None)
    by = policy(per_author=0, **({"sources": sources} if sources else {}), **request.pop("by", {}))
    asked = Request("u", **({"n": 40} | request))
    return Pipeline(replica).recommend(Query(asked, session, by, NOW_MS, "r1", viewer_known=known))


def ids(answer: Answer) -> set[str]:
    return {str(shown.item_id) for shown in answer.items}


@pytest.mark.parametrize("source", [*SOURCES, "given", "pinned", "any"])
@pytest.mark.parametrize(("field", "value"), WISHED)
def test_a_blocked_item_comes_from_no_source(source: str, field: str, value: str) -> None:
    replica = catalogue()
    more: dict[str, Any] = {}
    if source in SOURCES:
        more = {"sources": {source: 40}}
    elif source == "given":
        more = {"candidate_ids": ("v3", "v4")}
    elif source == "pinned":
        more = {"by": {"fixed": {0: "v3"}}}
    liked = viewer(replica, liked=(8, 12))
    before, after = ask(replica, liked, **more), ask(replica, wish(liked, field, value), **more)
    assert "v3" in ids(before), "otherwise the wish changes nothing"
    assert "v3" not in ids(after) and ids(after)


@pytest.mark.parametrize("candidate_ids", [None, ("v3", "v4")])
def test_a_blocked_value_counts_also_beyond_the_columns_of_its_field(
    candidate_ids: tuple[str, ...] | None,
) -> None:
    replica = catalogue()
    replica.apply_item(item(3, tags=["a", "b", "c", "d", "fifth"]), 42)
    assert not (replica.catalogue.keys[3] == key_of("item.tags", "fifth")).any()
    session = viewer(replica)
    assert "v3" in ids(ask(replica, session, candidate_ids=candidate_ids))
    blocked = ask(replica, wish(session, "tags", "fifth"), candidate_ids=candidate_ids)
    assert "v3" not in ids(blocked) and ids(blocked)


@settings(deadline=None, max_examples=20)
@given(st.permutations(WISHED))
def test_a_wish_that_is_taken_back_leaves_nothing(order: list[tuple[str, str]]) -> None:
    replica = catalogue()
    session = viewer(replica, liked=(8,))
    before, blob = ask(replica, session), session.pack()
    for kind in ("block", "mute", "less"):
        wish(session, *order[0], kind)
    assert session.pack() != blob
    wish(session, *order[0], "none")
    assert session.pack() == blob and ask(replica, session).items == before.items


def test_a_muted_item_is_shown_where_the_caller_names_it() -> None:
    replica = catalogue()
    session = wish(viewer(replica), "author", "a3", "mute")
    assert "v3" not in ids(ask(replica, session))
    assert "v3" in ids(ask(replica, session, candidate_ids=("v3",)))


def test_less_lowers_scores_and_removes_nothing() -> None:
    replica = catalogue()
    session = viewer(replica)
    before, after = ask(replica, session), ask(replica, wish(session, "tags", "t3", "less"))
    assert ids(before) == ids(after)
    candidates = after.candidates
    assert candidates is not None
    added = zip(candidates.indices_N, candidates.added["not_interested"], strict=True)
    lowered = {replica.catalogue.ids[index]: score for index, score in added if score}
    penalty = policy().config.not_interested
    assert lowered == {f"v{n}": -penalty for n in range(40) if n % 5 == 3}


def test_seen_items_come_back_before_blocked_ones_do() -> None:
    replica = catalogue()
    session = viewer(replica, seen=tuple(range(40)))
    assert ids(ask(replica, session, n=5)), "an empty feed is worse than a repeat"
    for number in range(40):
        wish(session, "item_id", f"v{number}")
    assert ids(ask(replica, session, n=5)) == set()


def test_wishes_are_bounded_and_survive_packing() -> None:
    session = Session("u", FEATURES)
    for number in range(WISHES + 7):
        wish(session, "item_id", f"v{number}")
    again = Session.unpack(session.pack(), FEATURES)
    assert len(again.wishes) == WISHES and again.wishes == session.wishes


def test_a_session_without_wishes_is_packed_as_before() -> None:
    session = Session("u", FEATURES)
    blob = session.pack()
    assert b"wishes" not in blob and b"plain" not in blob
    wish(wish(session, "author", "a1"), "author", "a1", "none")
    assert session.pack() == blob


RULE = SafetyRule(value="adult", unless={"age_band": "adult"})


@pytest.mark.parametrize(
    ("rule", "context", "known", "shown"),
    [
        (RULE, {}, True, False),
        (RULE, {"age_band": "adult"}, True, True),
        (RULE, {"age_band": "child"}, True, False),
        (SafetyRule(value="adult", when={"country": "DE"}), {"country": "DE"}, True, False),
        (SafetyRule(value="adult", when={"country": "DE"}), {"country": "FR"}, True, True),
        (SafetyRule(value="adult", when={"country": "DE"}), {}, True, True),
        (SafetyRule(value="adult", when={"country": "DE"}), {}, False, False),  # nobody knows
        (SafetyRule(value="other"), {}, True, True),
        (SafetyRule(value="a3", field="author"), {}, True, False),
    ],
)
def test_safety_rules_hide_labels(
    rule: SafetyRule, context: dict[str, str], known: bool, shown: bool
) -> None:
    replica = catalogue((rule,))
    answer = ask(replica, viewer(replica), known, context=context)
    assert ("v3" in ids(answer)) is shown
    given_answer = ask(replica, viewer(replica), known, context=context, candidate_ids=("v3",))
    assert ("v3" in ids(given_answer)) is shown
    assert answer.impression.inputs is not None and answer.impression.inputs.safety


def test_a_safety_rule_knows_what_a_long_profile_says_last() -> None:
    schema = replace(SCHEMA, user=(("interests", CATEGORICAL), ("minor", CATEGORICAL)))
    features, interests = FeatureSet(schema, "all", history=4), [f"i{n}" for n in range(60)]
    rule = SafetyRule(value="adult", when={"minor": "true"})
    replica = made(features=features, its_config=replace(config(), safety=SafetyConfig((rule,))))
    replica.apply_item(item(3, labels=["adult"]), 41)
    for minor, shown in ((True, False), ("true", False), (False, True), ("yes", True)):
        fields = {"interests": interests, "minor": minor}
        session = Session("u", features)
        session.fold_user(User(time_ms=NOW_MS, user_id="u", fields=fields))
        for known in (session, session.without_profile(), Session.unpack(session.pack(), features)):
            assert ("v3" in ids(ask(replica, known))) is shown, minor


@pytest.mark.parametrize(("value", "said"), [("true", True), ("false", False), ("True", True)])
def test_a_safety_rule_knows_the_booleans_of_json(value: str, said: bool) -> None:
    replica = catalogue((SafetyRule(value=value, field="adult", when={"minor": value}),))
    replica.apply_item(item(3, adult=said), 42)
    for context, shown in (({"minor": said}, False), ({"minor": not said}, True)):
        assert ("v3" in ids(ask(replica, viewer(replica), context=context))) is shown


@pytest.mark.parametrize(("value", "said"), [("true", True), ("false", False), ("True", True)])
def test_a_wish_knows_the_booleans_of_json(value: str, said: bool) -> None:
    replica = catalogue()
    replica.apply_items([item(3, tags=[said]), item(4, tags=[str(said).lower()])], 43)
    session = wish(viewer(replica), "tags", value)
    shown = ids(ask(replica, session))
    assert "v3" not in shown and ("v4" in shown) is (value == "True")
    assert ids(ask(replica, wish(session, "tags", value, "none"))) >= {"v3", "v4"}
    wish(session, "item_id", value)
    assert list(session.wishes) == [key_of("item", value)]


def test_a_pin_gives_way_to_a_safety_rule() -> None:
    replica = catalogue((SafetyRule(value="adult"),))
    query = Query(Request("u"), viewer(replica), policy(fixed={0: "v3", 1: "v4"}), NOW_MS, "r1")
    answer = Pipeline(replica).recommend(query)
    assert "v3" not in ids(answer) and answer.items[1].item_id == "v4"
    candidates = answer.candidates
    assert candidates is not None
    assert set(Pipeline(replica).pinned(query, candidates)) == {1}


def test_a_plain_list_depends_on_no_history() -> None:
    replica = catalogue()
    stranger, fan = viewer(replica), viewer(replica, liked=(3, 8, 13))
    fan.seen.clear()
    assert ask(replica, stranger).items != ask(replica, fan).items
    plain = [ask(replica, session, plain=True) for session in (stranger, fan)]
    assert plain[0].items == plain[1].items
    features = plain[1].impression.features
    assert features is not None and features == plain[0].impression.features
    start = FEATURES.slot("user").start
    assert np.frombuffer(features.user_keys, np.int64)[start] == 0, "no row of the user's own"
    assert plain[1].impression.inputs is not None and plain[1].impression.inputs.plain
