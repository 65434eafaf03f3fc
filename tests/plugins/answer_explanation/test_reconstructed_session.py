"""Which keys an item had at a time, or before an offset; who is found by a request's id."""

from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_fields

from plugins.answer_explanation.reconstructed_answer import fold_events
from plugins.answer_explanation.reconstructed_replica import NotReconstructible
from plugins.answer_explanation.reconstructed_session import (
    ItemVersions,
    ReconstructedSessions,
    find_impression,
)
from recsys.config.system_config import Config
from recsys.events.event_types import (
    Engagement,
    Event,
    Impression,
    Item,
    RequestInputs,
    ServedItem,
    Stamp,
    User,
    encode,
)
from recsys.events.hashing import digest_of, partition_of
from recsys.events.records import EVENTS, ITEMS, topics
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.session import Session
from recsys.log.protocol import Append, MemoryLog
from serving.sessions.session_fold import fold_event

FEATURES = FeatureSet(FEED_SCHEMA)


def made() -> MemoryLog:
    log = MemoryLog()
    for topic in topics(4):
        log.create(topic)
    return log


def put(log: MemoryLog, item_id: str, time_ms: int, author: str | None) -> None:
    item = Item(time_ms=time_ms, item_id=item_id, fields={"author": author} if author else {})
    if author is None:
        item.removed = True
    log.append(ITEMS, [Append(0, b"", encode(item))])


def author_of(keys: object) -> int:
    return int(keys[FEATURES.slot("item.author").start])  # type: ignore[index]


def test_an_item_that_was_changed_has_its_keys_of_then() -> None:
    log = made()
    for item_id, time_ms, author in (
        ("v1", 10, "a"), ("v2", 11, "a"), ("v1", 20, "b"), ("v1", 20, "b"), ("v1", 30, None),
        ("v1", 40, "c"),
    ):  # fmt: skip
        put(log, item_id, time_ms, author)
    items = ItemVersions(log, FEATURES)
    items.read()
    a, b, c = (author_of(FEATURES.item_keys("v", {"author": name})) for name in "abc")
    assert [author_of(items.by_time(t)("v1")) for t in (5, 10, 19, 20, 35, 40)] == [a, a, a, b, b, c]
    assert [author_of(items.before(n)("v1")) for n in (1, 2, 3, 5, 6)] == [a, a, b, b, c]
    assert author_of(items.by_time(0)("v2")) == a and items.changed(["v2", "v1", "x"]) == ["v1"]
    assert (items.by_time(0)("nobody") == FEATURES.item_keys("nobody", {})).all()
    put(log, "v2", 50, "b")
    items.read()
    assert author_of(items.by_time(60)("v2")) == b and items.changed(["v2"]) == ["v2"]


@pytest.mark.parametrize("user", [None, "u7"])
def test_an_impression_is_found_among_many(user: str | None) -> None:
    log, partition = made(), partition_of("u7", 4)
    for n in range(2_500):
        shown = Impression(time_ms=n, request_id=f"r{n}", user_id="u7", items=[])
        log.append(EVENTS, [Append(partition, b"u7", encode(shown))])
    log.trim(EVENTS, partition, 10)
    for n in (10, 1_499, 2_499):
        found = find_impression(log, f"r{n}", user)
        assert found is not None and found[:2] == (partition, n) and found[2].time_ms == n
    assert find_impression(log, "r9", user) is None
    assert find_impression(log, "r250", user) is not None  # not r2500, nor r25
    other = next(f"u{n}" for n in range(99) if partition_of(f"u{n}", 4) != partition)
    assert find_impression(log, "r250", other) is None


@pytest.mark.parametrize("lag_ms", [0, 40, 900])
def test_a_session_is_found_though_its_fold_was_behind(lag_ms: int) -> None:
    """The item was changed after the event, and before it was folded."""
    log, config = made(), replace(Config(), state="nowhere")
    for time_ms, author in ((0, "a"), (1_000 + lag_ms, "b")):
        put(log, "v1", time_ms, author)
    liked = Engagement(time_ms=1_000, request_id="r", user_id="u7", item_id="v1", kind="like", event_id="e")
    partition = partition_of("u7", 4)
    (offset,) = log.append(EVENTS, [Append(partition, b"u7", encode(liked))])
    session = Session("u7", FEATURES)
    session.fold_engagement(liked, FEATURES.item_keys("v1", {"author": "b"}))
    session.offset = offset + 1
    stamp = Stamp(session_offset=session.offset, catalogue_offset=1)
    asked = RequestInputs(n=1, session=digest_of(session.pack()))
    shown = Impression(time_ms=2_000, request_id="s", user_id="u7", items=[], stamp=stamp, inputs=asked)
    past = ReconstructedSessions(log, config, FEATURES)
    assert past.of(shown).pack() == session.pack()
    other = replace_fields(shown, inputs=RequestInputs(n=1, session="another"))
    with pytest.raises(NotReconstructible, match="items in it were changed: v1"):
        past.of(other)
    with pytest.raises(NotReconstructible):
        past.of(replace_fields(shown, user_id="without events"))


@pytest.mark.parametrize("event", [
    Engagement(time_ms=1_000, request_id="", user_id="u7", item_id="v1", kind="like"),
    Impression(time_ms=1_000, request_id="r", user_id="u7", items=[ServedItem(item_id="v1")]),
])  # fmt: skip
def test_a_session_with_an_item_that_was_published_or_changed_later_is_found(event: Event) -> None:
    """It was clicked before the catalogue had it, or shown in a list and changed before the fold read it."""
    is_list = isinstance(event, Impression)
    schema = replace(FEED_SCHEMA, shown_by="impression" if is_list else "view")
    log, features, partition = made(), FeatureSet(schema), partition_of("u7", 4)
    if is_list:
        put(log, "v1", 0, "a")
    put(log, "v1", 1_050 if is_list else 90_000, "b")
    (offset,) = log.append(EVENTS, [Append(partition, b"u7", encode(event))])
    session = Session("u7", features)
    fields = {"author": "b"} if is_list else {}
    fold_event(session, event, lambda item_id: features.item_keys(item_id, fields))
    session.offset = offset + 1
    shown = Impression(
        time_ms=2_000, request_id="s", user_id="u7", items=[],
        stamp=Stamp(session_offset=session.offset, catalogue_offset=0),
        inputs=RequestInputs(n=1, session=digest_of(session.pack())),
    )  # fmt: skip
    past = ReconstructedSessions(log, replace(Config(), state="nowhere"), features)
    assert past.of(shown).pack() == session.pack()


def test_after_an_erasure_a_viewer_may_be_shown_seen_items_as_before() -> None:
    erased = User(time_ms=1, user_id="u", removed=True)
    for seen in (0, 7):
        session = fold_events(Session("u", FEATURES, seen), [(3, erased)], lambda time_ms: {})
        assert session.seen.maxlen == seen and session.offset == 4


def test_an_answer_from_what_outlived_a_session_is_found() -> None:
    log, partition = made(), partition_of("u7", 4)
    past = [
        User(time_ms=1, user_id="u7", fields={"country": "NZ"}),
        Engagement(time_ms=2, request_id="r", user_id="u7", item_id="v1", kind="like"),
    ]
    log.append(EVENTS, [Append(partition, b"u7", encode(event)) for event in past])
    session = Session("u7", FEATURES)
    session.fold_user(past[0])  # type: ignore[arg-type]
    session.offset = 2
    asked = RequestInputs(n=1, session=digest_of(session.lasting()))
    stamp = Stamp(session_offset=2, catalogue_offset=0)
    shown = Impression(time_ms=3, request_id="s", user_id="u7", items=[], stamp=stamp, inputs=asked)
    found = ReconstructedSessions(log, Config(), FEATURES).of(shown)
    assert found.pack() == session.lasting()
