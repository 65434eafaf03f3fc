"""Items by value: as a look at each item's fields finds them, whatever was published, changed or removed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events.event_types import Item
from recsys.events.field_schema import spellings_of, values_of
from serving.replica import value_index
from serving.replica.catalogue_snapshot import CatalogueSnapshot
from serving.replica.replica import Replica
from serving.replica.value_index import ValueIndex
from tests.support.serving.replica_harness import config, item, made
from tests.support.training.small_feed import FEATURES

WANTED = [("tags", "t1"), ("tags", "true"), ("author", "a3"), ("labels", "adult"), ("author", "nobody")]
TAG = st.sampled_from(["t0", "t1", "t2", "t3", "t4", "t5", "t6", True, None])
FIELDS = st.fixed_dictionaries({
    "tags": st.lists(TAG, max_size=8), "author": st.sampled_from(["a3", "a4"]),
    "labels": st.sampled_from([None, "adult", ["other", "adult"], []]),
})  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), FIELDS)), min_size=1, max_size=6)


def expected(replica: Replica, field: str, value: str) -> list[int]:
    return [
        index
        for index, fields in enumerate(replica.catalogue.fields)
        if {*values_of(fields.get(field))} & {*spellings_of(value)}
    ]


def has(values: ValueIndex, field: str, value: str) -> list[int]:
    return np.flatnonzero(values.items(field, value).mask()).tolist()


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(CHANGES, min_size=1, max_size=4))
def test_a_kept_set_is_what_the_fields_of_all_items_say(
    batches: list[list[tuple[int, dict[str, Any] | None]]],
) -> None:
    replica = Replica(FEATURES, config())
    for at, batch in enumerate(batches, 1):
        changes = (
            Item(time_ms=at, item_id=f"v{n}", fields=fields or {}, removed=fields is None)
            for n, fields in batch
        )
        replica.apply_items([*changes], at)
        for field, value in WANTED:
            assert has(replica.values, field, value) == expected(replica, field, value)


def test_the_sets_are_those_of_the_restored_items(tmp_path: Path) -> None:
    full, empty = made(items=50), Replica(FEATURES, config())
    assert has(empty.values, "tags", "t1") == []
    snapshot = CatalogueSnapshot(tmp_path, "log", full)
    snapshot.acquire(0, lambda: True)
    snapshot.save(0)
    snapshot.release()
    CatalogueSnapshot(tmp_path, "log", empty).restore()
    assert has(empty.values, "tags", "t1") == [*range(1, 50, 5)]
    empty.apply_item(item(2, tags=["t1"]), 51)
    assert has(empty.values, "tags", "t1")[:2] == [1, 2]


def test_only_so_many_sets_are_kept_those_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_index, "_MOST", 2)
    values = made().values
    first = values.items("tags", "t0")
    values.items("tags", "t1")
    assert values.items("tags", "t0") is first
    values.items("tags", "t2")
    assert values.items("tags", "t0") is first and len(values._kept) == 2
