from dataclasses import replace

import numpy as np
import pytest

from experiments.assignment.policy import Policy
from recsys.config.safety_config import SafetyConfig, SafetyRule
from recsys.events.hashing import key_of
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Request
from tests.support.serving.candidate_sources import names_by_index
from tests.support.serving.replica_harness import NOW_MS, config, item, made, policy, popular, viewer
from tests.support.training.small_feed import FEATURES


def test_each_filter_says_how_many_it_removed() -> None:
    replica = made(items=20)
    replica.apply_item(item(19).__class__(time_ms=0, item_id="v19", removed=True), 21)
    session = viewer(replica, seen=(1, 2, 3), liked=(4,))
    session.hidden.append(key_of("item", "v5"))
    excluded = ("v6", 7, "v6", "nobody", "v5")
    query = Query(Request("u", 5, exclude_ids=excluded), session, policy(), NOW_MS)
    wanted, removed = Pipeline(replica).allowed_items(query)
    assert removed == {"gone": 1, "excluded": 2, "hidden": 0, "seen": 4}
    assert np.flatnonzero(~wanted.mask()).tolist() == [1, 2, 3, 4, 5, 6, 19]


def test_what_was_seen_comes_again_rather_than_an_empty_feed_but_never_what_was_hidden() -> None:
    replica = made(items=6)
    session = viewer(replica, seen=(0, 1, 2, 3))
    session.hidden.append(key_of("item", "v4"))
    query = Query(Request("u", 1), session, policy(), NOW_MS)
    wanted, removed = Pipeline(replica).allowed_items(query)
    assert np.flatnonzero(wanted.mask()).tolist() == [5] and removed["seen"] == 4
    wanted, removed = Pipeline(replica).allowed_items(replace(query, request=Request("u", 2)))
    assert np.flatnonzero(wanted.mask()).tolist() == [0, 1, 2, 3, 5] and removed["seen"] == 0


def test_what_was_seen_is_open_where_items_repeat() -> None:
    replica = made(items=6)
    replica.config = replace(replica.config, sessions=replace(replica.config.sessions, repeats=True))
    query = Query(Request("u", 1), viewer(replica, seen=(0, 1)), policy(), NOW_MS)
    wanted, removed = Pipeline(replica).allowed_items(query)
    assert wanted.count == 6 and removed["seen"] == 0


def test_of_an_empty_catalogue_nothing_is_wanted() -> None:
    replica = made(items=0, steps=0)
    session = viewer(replica)
    session.hidden.append(key_of("item", "v4"))
    query = Query(Request("u", 5, exclude_ids=("v1",)), session, policy(), NOW_MS)
    wanted, removed = Pipeline(replica).allowed_items(query)
    assert len(wanted) == 0 and not any(removed.values())


def closing(**by: object) -> Policy:
    sources = {"trial": 10, "vector": 30, "popular": 30, "fresh": 10}
    return policy(rules=(by,), per_author=0, sources=sources)


def wide(**more: object) -> Replica:
    """5,000 items; the 30 with the tag "rare" are the oldest and the least popular."""
    replica = Replica(FEATURES, replace(config(), **more))  # type: ignore[arg-type]
    tags = (["rare"] if n < 30 else ["usual"] for n in range(5_000))
    replica.apply_items([item(n, tags=tag, labels=tag) for n, tag in enumerate(tags)], 5_000)
    replica.step = 1
    popular(replica, dict.fromkeys(range(1_000, 5_000), 5) | {3: 1, 4: 2})
    return replica


@pytest.mark.parametrize(
    "closes",
    [
        {"field": "tags", "value": "rare", "do": "require"},
        {"field": "tags", "value": "usual", "do": "limit", "amount": 0},
    ],
)
def test_a_rule_that_closes_most_items_leaves_a_full_list_of_all_sources(
    closes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.replica.popularity._TOP", 500)
    replica = wide()
    query = Query(Request("u"), viewer(replica), closing(**closes), NOW_MS, "r")
    answer = Pipeline(replica).recommend(query)
    assert len(answer.items) == 10 and answer.removed["rules"] == 4_970
    assert {(*shown.fields["tags"],) for shown in answer.items} == {("rare",)}
    assert answer.candidates is not None
    of = names_by_index(answer.candidates)
    assert {source for names in of.values() for source in names} == {"trial", "vector", "popular", "fresh"}
    assert {index for index, names in of.items() if "popular" in names} == {3, 4}


def test_a_safety_rule_that_closes_most_items_leaves_a_full_list() -> None:
    replica = wide(safety=SafetyConfig((SafetyRule("usual", unless={"age": "adult"}),)))
    for age, closed in (("child", 4_970), ("adult", 0)):
        request = Request("u", context={"age": age})
        answer = Pipeline(replica).recommend(Query(request, viewer(replica), policy(), NOW_MS, "r"))
        assert len(answer.items) == 10 and answer.removed.get("safety", 0) == closed
        assert ({(*shown.fields["tags"],) for shown in answer.items} == {("rare",)}) is bool(closed)


def test_of_two_arms_in_one_list_either_gets_what_its_rules_let_through() -> None:
    replica = wide()
    one = closing(field="tags", value="rare", do="require")
    author = closing(field="author", value="a1", do="require")
    for other, allowed in ((policy(), 5_000), (one, 30), (author, 30 + 556 - 4)):
        both = replace(one, rivals=(("control", one), ("other", other)))
        wanted, removed = Pipeline(replica).allowed_items(Query(Request("u"), viewer(replica), both, NOW_MS))
        assert wanted.count == allowed and removed.get("rules", 0) == 5_000 - allowed
