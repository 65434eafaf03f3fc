"""Features of a past are computed again: nothing is told of an honest one, and planted skew is found."""

from dataclasses import replace as changed

import numpy as np
import pytest
from msgspec.structs import replace

from plugins.feature_audit.audit import Audit, AuditReport, is_sampled
from plugins.feature_audit.audit_source import PlacedImpression
from plugins.feature_audit.recompute import ItemHistory, Recomputer, split_by_counter_offsets
from recsys.events.event_types import FeatureBlock, Item
from recsys.features.families.declared import Declared
from recsys.features.request_features import RequestFeatures, read_block
from tests.support.past_events import ToyPast, toy_past
from tests.support.training.small_feed import DENSE, FEATURES


@pytest.fixture
def past() -> ToyPast:
    return toy_past()


def audit(past: ToyPast, **more: float) -> AuditReport:
    items = past.history()
    sessions = past.sessions(items)
    found = Audit(Recomputer(items), FEATURES, **more)
    for shown in split_by_counter_offsets(past.shown()).values():
        found.look(shown, sessions.of, past.counters(items))
    return found.report


def plant(past: ToyPast, shown: PlacedImpression, block: FeatureBlock | None) -> None:
    its = replace(shown.impression, features=block)
    past.partitions[shown.partition][shown.offset] = (shown.offset, its)


def with_dense(block: FeatureBlock, column: int, by: float) -> FeatureBlock:
    its = read_block(block, FEATURES)
    its.dense_NF[:, column] += np.float32(by)
    return its.block()


def test_nothing_is_told_of_an_honest_past(past: ToyPast) -> None:
    report = audit(past)
    assert (report.sampled, report.equal, report.skewed) == (60, 60, False)
    assert not report.differing and not report.not_recomputed and not report.without_counters


def test_sessions_folded_on_the_way_are_those_folded_from_the_beginning(past: ToyPast) -> None:
    items = past.history()
    sessions = past.sessions(items)
    for shown in past.shown():
        assert sessions.of(shown).pack() == packed(past, items, shown)


def packed(past: ToyPast, items: object, shown: PlacedImpression) -> bytes:
    session = past.session_of(items, shown)  # type: ignore[arg-type]
    before = [o for o, e in past.partitions[shown.partition]
              if o < shown.offset and getattr(e, "user_id", None) == session.user_id]  # fmt: skip
    session.offset = before[-1] + 1 if before else 0
    return session.pack()


@pytest.mark.parametrize("column", [0, DENSE // 2, DENSE - 1])
def test_a_dense_column_a_little_off_in_one_of_a_hundred_is_found(past: ToyPast, column: int) -> None:
    shown = past.shown()[37]
    block = shown.impression.features
    assert block is not None
    plant(past, shown, with_dense(block, column, 0.01))
    report = audit(past)
    name = Recomputer(past.history()).builder.features.dense_names[column]
    assert list(report.differing) == [name]
    its = report.differing[name]
    assert (its.impressions, its.numbers) == (1, 3)
    assert its.largest == pytest.approx(0.01, abs=1e-5) == its.mean
    assert its.first == shown.impression.request_id
    assert report.skewed and report.equal == 59


def test_a_changed_key_is_found(past: ToyPast) -> None:
    shown = past.shown()[11]
    assert shown.impression.features is not None
    its = read_block(shown.impression.features, FEATURES)
    its.items_NI[1, FEATURES.slot("item.tags").start] += 1
    plant(past, shown, its.block())
    report = audit(past)
    assert {name: d.numbers for name, d in report.differing.items()} == {"item.item.tags": 1}


def test_a_stale_history_is_found(past: ToyPast) -> None:
    shown = next(s for s in past.shown() if s.impression.features
                 and (read_block(s.impression.features, FEATURES).history_TH[:2, 0] != 0).all())  # fmt: skip
    assert shown.impression.features is not None
    its = read_block(shown.impression.features, FEATURES)
    zeros = np.zeros((1, FEATURES.history_keys), np.int64)
    stale = changed(its, history_TH=np.concatenate([its.history_TH[1:], zeros]))
    plant(past, shown, stale.block())
    assert "history" in audit(past).differing


def test_what_cannot_be_computed_again_is_counted_with_its_reason(past: ToyPast) -> None:
    first, second = past.shown()[:2]
    assert second.impression.features is not None
    plant(past, first, None)
    plant(past, second, replace_set(second.impression.features))
    report = audit(past)
    assert report.not_recomputed == {
        "no features were logged: see recsys backfill": 1,
        "logged with another feature set: see recsys backfill": 1,
    }
    assert report.equal == report.compared == 58


def replace_set(block: FeatureBlock) -> FeatureBlock:
    return replace(block, feature_set="another")


def test_where_events_are_missing_counters_are_no_skew_and_all_else_is_compared(past: ToyPast) -> None:
    victim = next(p for p, events in enumerate(past.partitions)
                  if any(getattr(e, "user_id", "") == "u1" for _, e in events))  # fmt: skip
    past.partitions[victim] = [
        (o, e) for o, e in past.partitions[victim] if getattr(e, "user_id", "") != "u1"
    ]
    report = audit(past)
    assert not report.skewed
    assert sum(report.without_counters.values()) > 10


def test_an_impression_without_items_is_compared(past: ToyPast) -> None:
    shown = past.shown()[0]
    block = shown.impression.features
    assert block is not None
    impression = replace(shown.impression, items=[], features=replace(block, item_keys=b"", dense=b""))
    past.partitions[shown.partition][shown.offset] = (shown.offset, impression)
    report = audit(past)
    assert (report.sampled, report.equal, report.not_recomputed) == (60, 60, {})


def test_an_items_age_is_that_of_its_first_version() -> None:
    items = ItemHistory(FEATURES)
    for offset, time_ms in enumerate((5_000, 7_000, 9_000)):
        fields = {"author": f"a{offset}"}
        items.take(offset, Item(time_ms=time_ms, item_id="v", fields=fields))
    for end in (1, 2, 3):
        catalogue = items.catalogue(["v"], end, 0)
        assert catalogue.published_ms.tolist() == [5_000]
        assert catalogue.fields[0] == {"author": f"a{end - 1}"} and len(catalogue) == 1
    assert items.catalogue(["w"], 3, 0).published_ms.tolist() == [0]


def test_every_column_is_audited_also_of_co_visits_and_within_a_list() -> None:
    declared = Declared(entities=("all", "item"), near=True, list_context=("item",))
    features = changed(FEATURES, declared=declared)
    compare = Audit(Recomputer(ItemHistory(features)), features)._compare
    width = len(features.dense_names)
    keys, length = np.ones((2, features.item_columns), np.int64), features.history_length
    block = RequestFeatures(
        features.digest,
        np.ones(features.user_columns, np.int64),
        keys,
        np.zeros((length, features.history_keys), np.int64),
        np.zeros((length, features.outcomes), np.float32),
        np.zeros((2, width), np.float32),
    )
    differing = []
    for column in range(width):
        dense = block.dense_NF.copy()
        dense[:, column] = 9.0
        differing += compare(changed(block, dense_NF=dense).block(), block.block())
    assert differing == list(features.dense_names)


def test_a_sample_is_a_hash() -> None:
    ids = [f"r{n}" for n in range(20_000)]
    chosen = {id_ for id_ in ids if is_sampled(id_, 0.05)}
    assert 800 < len(chosen) < 1_200
    assert chosen <= {id_ for id_ in ids if is_sampled(id_, 0.1)}
