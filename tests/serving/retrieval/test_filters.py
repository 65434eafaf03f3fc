from dataclasses import replace

import numpy as np

from recsys.events.hashing import key_of
from serving.query import Query
from serving.request import Request
from serving.retrieval.filters import allowed_items
from tests.support.serving.replica_harness import NOW_MS, item, made, policy, viewer


def test_each_filter_says_how_many_it_removed() -> None:
    replica = made(items=20)
    replica.apply_item(item(19).__class__(time_ms=0, item_id="v19", removed=True), 21)
    session = viewer(replica, seen=(1, 2, 3), liked=(4,))
    session.hidden.append(key_of("item", "v5"))
    excluded = ("v6", 7, "v6", "nobody", "v5")
    query = Query(Request("u", 5, exclude_ids=excluded), session, policy(), NOW_MS)
    wanted, removed, taken = allowed_items(replica, query)
    assert sorted(taken.tolist()) == [1, 2, 3, 4, 5, 6]
    assert removed == {"gone": 1, "excluded": 2, "hidden": 0, "seen": 4}
    assert np.flatnonzero(~wanted.mask()).tolist() == [1, 2, 3, 4, 5, 6, 19]


def test_what_was_seen_comes_again_rather_than_an_empty_feed_but_never_what_was_hidden() -> None:
    replica = made(items=6)
    session = viewer(replica, seen=(0, 1, 2, 3))
    session.hidden.append(key_of("item", "v4"))
    query = Query(Request("u", 1), session, policy(), NOW_MS)
    wanted, removed, _ = allowed_items(replica, query)
    assert np.flatnonzero(wanted.mask()).tolist() == [5] and removed["seen"] == 4
    wanted, removed, _ = allowed_items(replica, replace(query, request=Request("u", 2)))
    assert np.flatnonzero(wanted.mask()).tolist() == [0, 1, 2, 3, 5] and removed["seen"] == 0


def test_of_an_empty_catalogue_nothing_is_wanted() -> None:
    replica = made(items=0, steps=0)
    session = viewer(replica)
    session.hidden.append(key_of("item", "v4"))
    query = Query(Request("u", 5, exclude_ids=("v1",)), session, policy(), NOW_MS)
    wanted, removed, _ = allowed_items(replica, query)
    assert len(wanted) == 0 and not any(removed.values())
