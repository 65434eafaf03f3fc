"""Features are filled in as of an impression, in another feature set too, and never look ahead."""

from dataclasses import replace as changed

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from plugins.backfill.fill import FILLED, KEPT, Backfill
from plugins.feature_audit.recompute import Recomputer, split_by_counter_offsets
from recsys.events.event_types import Engagement, Item, RequestInputs
from recsys.events.field_schema import CATEGORICAL
from recsys.events.records import Example
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import item_block, read_block
from tests.support.past_events import ToyPast, toy_past
from tests.support.training.small_feed import FEATURES, SCHEMA, START_MS, example

WIDER = FeatureSet(
    changed(SCHEMA, item=(*SCHEMA.item, ("mood", CATEGORICAL)), groups=("author", "tags")), "all", 6
)


def filled(past: ToyPast, features: FeatureSet) -> Backfill:
    items = past.history(features)
    fill = Backfill(Recomputer(items), features)
    for shown in split_by_counter_offsets(past.shown()).values():
        fill.compute(shown, past.sessions(items), past.counters(items))
    return fill


def examples(past: ToyPast) -> list[Example]:
    return [
        example(n, partition=s.partition, offset=s.offset, index=1,
                item_id=s.impression.items[1].item_id, features=None)
        for n, s in enumerate(past.shown())
    ]  # fmt: skip


def test_what_is_filled_in_is_what_was_logged_and_says_so() -> None:
    past = toy_past()
    fill = filled(past, FEATURES)
    for its, shown in zip(examples(past), past.shown(), strict=True):
        done = fill.fill(its)
        assert done is not None and done.features is not None and done.features.backfilled
        logged = item_block(shown.impression.features, 1, 3)  # type: ignore[arg-type]
        again = replace(done.features, backfilled=False)
        assert (again.user_keys, again.item_keys, again.history, again.outcomes) == (
            logged.user_keys, logged.item_keys, logged.history, logged.outcomes)  # fmt: skip
        assert len(again.dense) == len(logged.dense)
    assert fill.counts == {KEPT: 0, FILLED: 60}


def test_another_feature_set_is_filled_in_and_what_has_it_is_left_alone() -> None:
    past = toy_past(20)
    fill = filled(past, WIDER)
    first = fill.fill(examples(past)[0])
    assert first is not None and first.features is not None
    assert first.features.feature_set == WIDER.digest != FEATURES.digest
    assert fill.fill(first) is first
    assert fill.counts == {KEPT: 1, FILLED: 1}


def test_a_list_without_profile_is_filled_in_without_its_viewer() -> None:
    past = toy_past()
    shown = past.shown()[40]
    plain = replace(shown.impression, inputs=RequestInputs(n=3, plain=True))
    past.partitions[shown.partition][shown.offset] = (shown.offset, plain)
    done = filled(past, FEATURES).fill(examples(past)[40])
    assert done is not None and done.features is not None and shown.impression.features is not None
    logged, again = (read_block(b, FEATURES) for b in (shown.impression.features, done.features))
    user, profile, context, _hour = FEATURES.user_slots
    assert logged.history_TH.any() and logged.user_U[user.start]
    assert not again.history_TH.any() and not again.user_U[: profile.stop].any()
    assert (again.user_U[context.start :] == logged.user_U[context.start :]).all()


def test_what_cannot_be_filled_in_is_counted_by_its_reason() -> None:
    past = toy_past(10)
    fill = filled(past, FEATURES)
    its = examples(past)[0]
    assert fill.fill(replace(its, offset=10_000)) is None
    assert fill.fill(replace(its, item_id="another")) is None
    assert sorted(fill.counts.items())[2:] == [
        ("its impression has no such item at its place", 1),
        ("its impression isn't archived", 1),
    ]


PAST = toy_past(16)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_it_never_looks_ahead(data: st.DataObject) -> None:
    """Whatever else happens after an impression, its features stay what they were."""
    shown = data.draw(st.sampled_from(PAST.shown()))
    at_ms = shown.impression.time_ms
    past = ToyPast(items=list(PAST.items), partitions=[list(p) for p in PAST.partitions])
    later = Item(time_ms=at_ms + 1, item_id="v1", fields={"author": "later", "tags": ["later"]})
    past.items.append(later)
    for user in data.draw(st.lists(st.integers(0, 11), max_size=4)):
        of = data.draw(st.sampled_from(shown.impression.items)).item_id
        kind = data.draw(st.sampled_from(["like", "view", "long_view"]))
        past.add(Engagement(time_ms=START_MS + 10**9, request_id=shown.impression.request_id,
                            user_id=f"u{user}", item_id=of, kind=kind, watch_ms=9_000))  # fmt: skip
    cut = ToyPast(
        items=[its for its in PAST.items if its.time_ms <= at_ms],
        partitions=[[(o, e) for o, e in events if e.time_ms <= at_ms] for events in PAST.partitions],
    )
    blocks = []
    for its in (PAST, past, cut):
        items = its.history()
        block = Recomputer(items).block(shown, its.sessions(items).of(shown), its.counters(items).of(shown))
        blocks.append(block)
    assert blocks[0] == blocks[1] == blocks[2]


def test_a_session_is_asked_for_in_any_order() -> None:
    past = toy_past(30)
    items = past.history()
    forward = {s.offset: past.sessions(items).of(s).pack() for s in past.shown() if s.partition == 0}
    sessions = past.sessions(items)
    for shown in reversed([s for s in past.shown() if s.partition == 0]):
        assert sessions.of(shown).pack() == forward[shown.offset]
