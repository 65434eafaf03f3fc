from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events.event_types import FeatureBlock
from recsys.events.field_keys import CONTENT_WIDTH, CONTEXT_WIDTH, GROUP_WIDTH, PROFILE_WIDTH
from recsys.events.field_schema import CATEGORICAL
from recsys.events.hashing import key_of
from recsys.features.families import moment
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.request_features import RequestFeatures, UnknownFeatureSet, item_block, read_block
from tests.support.field_values import WIDE, anything, names
from tests.support.training.small_feed import FEATURES, SCHEMA, block


def same(a: RequestFeatures, b: RequestFeatures) -> bool:
    names = ("user_U", "items_NI", "history_TH", "outcomes_TO", "dense_NF")
    return all(
        getattr(a, n).shape == getattr(b, n).shape and getattr(a, n).tobytes() == getattr(b, n).tobytes()
        for n in names
    )


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "ids"},
        {"history": 5},
        {"schema": replace(SCHEMA, labels=("long_view",))},
        {"schema": replace(SCHEMA, shown_by="impression")},
        {"schema": replace(SCHEMA, groups=("tags",))},
        {"schema": replace(SCHEMA, vectors=(("embedding", 4),))},
        {"schema": replace(SCHEMA, user=())},
    ],
)
def test_the_digest_changes_with_every_part(change: dict[str, Any]) -> None:
    assert replace(FEATURES, **change).digest != FEATURES.digest


@pytest.mark.parametrize("kind", ["ids", "ids+history", "all"])
def test_every_column_has_a_name(kind: str) -> None:
    features = FeatureSet(WIDE, kind)
    widths = {name: len(names) for name, names in features.columns.items()}
    assert widths == {
        "user": features.user_columns,
        "item": features.item_columns,
        "history": features.history_keys,
        "outcomes": features.outcomes,
        "dense": FeatureBuilder(features).dense_width,
    }
    assert len(set(features.dense_names)) == len(features.dense_names)


def test_the_digest_changes_with_a_dense_column(monkeypatch: pytest.MonkeyPatch) -> None:
    before, without = FEATURES.digest, FeatureSet(SCHEMA, "ids+history", 4).digest
    monkeypatch.setattr(moment, "MOMENT", ("hour.cos", *moment.MOMENT[1:]))
    assert FeatureSet(SCHEMA, "all", 4).digest != before
    assert FeatureSet(SCHEMA, "ids+history", 4).digest == without  # it reads none


def test_the_digest_does_not_hang_on_what_was_asked_before() -> None:
    used = FeatureSet(SCHEMA, "all", 4)
    keys = used.item_keys("v1", {"author": "a"})
    assert used.counted_keys(keys) and used.slot("item") and used.kinds and used.main_labels
    assert used.digest == FeatureSet(SCHEMA, "all", 4).digest == FEATURES.digest


def test_slots_stand_side_by_side_without_a_gap() -> None:
    features = FeatureSet(WIDE)
    for slots, width in (
        (features.user_slots, features.user_columns),
        (features.item_slots, features.item_columns),
    ):
        assert [s.start for s in slots] == [0, *[s.stop for s in slots[:-1]]]
        assert slots[-1].stop == width
    with pytest.raises(KeyError, match="no slot 'mood'"):
        features.slot("mood")


def test_the_keys_of_an_item_stand_in_their_slots() -> None:
    features = FeatureSet(WIDE)
    keys = features.item_keys(7, {"author": "a3", "tags": ["x", 9], "kind": "short", "duration_ms": 8000})
    assert keys[0] == key_of("item", "7")
    assert keys[features.slot("item.author").start] == key_of("item.author", "a3")
    tags = features.slot("item.tags")
    expected = [key_of("item.tags", "x"), key_of("item.tags", "9"), 0, 0]
    assert keys[tags.start : tags.stop].tolist() == expected
    assert keys[features.slot("content").start] == key_of("item.kind", "short")
    assert keys[features.slot("duration").start] == key_of("duration", 6)
    assert (keys != 0).sum() == 6


def test_what_is_too_much_is_cut() -> None:
    features = FeatureSet(WIDE)
    many = [f"t{i}" for i in range(100)]
    keys = features.item_keys("v", {"tags": many, "author": many, "kind": many})
    for name, width in (("item.tags", GROUP_WIDTH), ("item.author", GROUP_WIDTH), ("content", CONTENT_WIDTH)):
        slot = features.slot(name)
        assert (keys[slot.start : slot.stop] != 0).all() and slot.stop - slot.start == width
    assert len(features.profile_keys({"country": "de", "likes": many})) == PROFILE_WIDTH
    assert len(features.context_keys("feed", {"page": many, "surface": "x"})) == CONTEXT_WIDTH


@settings(max_examples=80, deadline=None)
@given(fields=st.dictionaries(names, anything, max_size=7))
def test_no_value_of_a_field_breaks_the_keys(fields: dict[str, Any]) -> None:
    features = FeatureSet(WIDE)
    keys = features.item_keys("v", fields)
    assert keys.shape == (features.item_columns,) and keys[0] == key_of("item", "v")
    assert features.counted_keys(keys)[0] == keys[0] and 0 not in features.counted_keys(keys)
    renamed = {"country": fields.get("author"), "likes": fields.get("tags")}
    assert len(features.profile_keys(renamed)) <= PROFILE_WIDTH
    assert features.context_keys("feed", {"page": fields.get("author")})


def test_durations_of_half_an_octave_share_a_key() -> None:
    place = FEATURES.slot("duration").start

    def key(duration: object) -> int:
        return int(FEATURES.item_keys("v", {"duration_ms": duration})[place])

    assert key(8_000) == key(9_000) == key(9_000.5) != key(12_000)
    assert key(None) == key("8000") == key(0) == key(-5) == key(float("nan")) == 0
    assert key(10**400) == key(float("inf")) == key(2.0**53) != key(2.0**52)
    assert key(1) == key(250) != key(400)


def test_what_a_client_adds_to_a_context_takes_no_memory() -> None:
    features = FeatureSet(FEATURES.schema)
    (name, *_) = features.schema.names("context", CATEGORICAL)
    first = features.context_keys("feed", {name: "a"})
    for number in range(50):
        assert features.context_keys("feed", {name: "a", "filler": f"{number}" * 1_000}) == first
        features.context_keys("feed", {name: f"{number}" * 1_000})
    assert len(features._contexts) == 1


def test_a_request_without_context_is_known_by_its_surface() -> None:
    assert FEATURES.context_keys("feed", {}) == FEATURES.context_keys("feed", {"surface": "feed"})
    assert FEATURES.context_keys("feed", {}) != FEATURES.context_keys("shop", {})


def test_the_same_value_of_two_fields_has_two_keys() -> None:
    features = FeatureSet(WIDE)
    assert len(set(features.profile_keys({"country": "x", "likes": "x"}))) == 2


def test_an_entity_that_stands_twice_counts_once() -> None:
    keys = FEATURES.item_keys("v", {"tags": ["a", "a", "b"]})
    assert len(FEATURES.counted_keys(keys)) == 3
    assert FEATURES.counted_keys(keys) is FEATURES.counted_keys(keys.copy())  # kept


@pytest.mark.parametrize("kind", ["ids", "ids+history", "all"])
@pytest.mark.parametrize("items", [0, 1, 5])
def test_a_block_reads_back_bit_for_bit(kind: str, items: int) -> None:
    features = FeatureSet(SCHEMA, kind, history=4)
    rng = np.random.default_rng(items)
    made = RequestFeatures(
        features.digest,
        rng.integers(-(2**62), 2**62, features.user_columns),
        rng.integers(-(2**62), 2**62, (items, features.item_columns)),
        rng.integers(-(2**62), 2**62, (features.history_length, features.history_keys)),
        rng.random((features.history_length, features.outcomes), np.float32),
        rng.random((items, 7 if kind == "all" and items else 0), np.float32),
    )
    assert same(read_block(made.block(), features), made)
    assert len(read_block(made.block(), features).history_TH) == (0 if kind == "ids" else 4)


def test_one_item_of_a_block_is_that_row() -> None:
    whole = block(3, items=4)
    features = read_block(whole, FEATURES)
    for index in range(4):
        assert same(read_block(item_block(whole, index, 4), FEATURES), features.rows([index]))
    assert item_block(FeatureBlock(feature_set="x", backfilled=True), 0, 1).backfilled


def test_features_of_another_set_are_refused_by_name() -> None:
    other = FeatureSet(SCHEMA, "ids", history=4)
    with pytest.raises(UnknownFeatureSet, match=FEATURES.digest):
        read_block(block(1), other)


def test_a_history_entry_keeps_the_item_and_its_first_groups() -> None:
    keys = FEATURES.item_keys("v", {"author": "a", "tags": ["x", "y", "z"]})
    entry = FEATURES.history_entry(keys)
    assert len(entry) == FEATURES.history_keys
    assert entry == [
        key_of("item", "v"), key_of("item.author", "a"), 0,
        key_of("item.tags", "x"), key_of("item.tags", "y"),
    ]  # fmt: skip


def test_rates_of_three_labels_are_features() -> None:
    labels = FEED_SCHEMA.labels
    assert len(labels) > 3 and FeatureSet(FEED_SCHEMA).main_labels == labels[:3]
