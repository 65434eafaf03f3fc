"""Engagements without proof: all folds end as they would without them."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.system_config import Config, JoinConfig
from recsys.events.event_types import (
    AGAIN,
    UNPROVEN,
    USER_PROVEN,
    Engagement,
    Event,
    dedupe_key,
    encode,
    event_id_of,
    with_proof,
)
from recsys.events.records import EVENTS
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session
from recsys.log.protocol import Append
from serving.sessions.event_reader import EventReader
from serving.sessions.session_fold import fold_event
from tests.support.serving.session_events import NOW_MS, did, keys_of, shown
from tests.support.training.small_feed import FEATURES, SCHEMA, feed, toy_log
from training.joining.joiner import Joiner
from training.lines.line import learning_digest

HONEST = feed(12)


def forged(number: int, proof: int) -> Engagement:
    """An engagement with an item of a real list, of a later time, that proves too little."""
    real = [event for event in HONEST if isinstance(event, Engagement)][number % 7]
    return msgspec.structs.replace(
        real, kind="like", event_id=f"forged-{number}", time_ms=real.time_ms + 60_000, proof=proof,
        source=number,
    )  # fmt: skip


def with_forged(places: list[tuple[int, int]]) -> list[Event]:
    events = list(HONEST)
    for number, (place, proof) in enumerate(places):
        events.insert(place % (len(events) + 1), forged(number, proof))
    return events


def joined(events: list[Event]) -> tuple[list[object], bytes]:
    joiner = Joiner(0, list(SCHEMA.labels), JoinConfig())
    # Offsets of the honest events alone, since examples carry them.
    honest = {id(event): offset for offset, event in enumerate(HONEST)}
    examples = [e for event in events for e in joiner.feed(honest.get(id(event), 0), event)]
    examples += joiner.advance(NOW_MS * 2)
    joiner.counts |= {"unproven": 0, "repeats": 0}
    return examples, joiner.pack()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from([UNPROVEN, USER_PROVEN, AGAIN])), max_size=6))
def test_the_joiner_ends_as_without_them(places: list[tuple[int, int]]) -> None:
    assert joined(with_forged(places)) == joined(HONEST)


def test_the_joiner_counts_a_further_view_as_a_repeat() -> None:
    joiner = Joiner(0, list(SCHEMA.labels), JoinConfig())
    for proof in (AGAIN, UNPROVEN):
        joiner.feed(0, did("r", 1, "view", proof=proof))
    assert (joiner.counts["repeats"], joiner.counts["unproven"]) == (1, 1)


@pytest.mark.parametrize("proof", [UNPROVEN, USER_PROVEN, AGAIN])
def test_item_counters_end_as_without_them(proof: int) -> None:
    counters = ItemCounters(FEATURES)
    counters.engagement(did("r", 1, "like", proof=proof), keys_of(1))
    assert counters.take_changed() == [] and len(counters.counters) == 0
    counters.engagement(did("r", 1, "like"), keys_of(1))
    assert counters.take_changed()


def test_a_session_takes_only_its_own_viewer_s_wish_to_hide() -> None:
    def folded(*events: Event) -> Session:
        session = Session("u", FEATURES)
        for event in (shown("r", 1, 2), *events):
            fold_event(session, event, lambda item_id: keys_of(int(str(item_id)[1:])))
        return session

    nothing = folded().pack()
    assert folded(did("r", 1, "hide", proof=UNPROVEN)).pack() == nothing
    assert folded(did("r", 1, "like", proof=USER_PROVEN)).pack() == nothing
    hidden = folded(did("r", 1, "hide", proof=USER_PROVEN))
    assert list(hidden.hidden) == [int(keys_of(1)[0])] and not hidden.history
    assert folded(did("r", 1, "like")).pack() != nothing


def test_a_reader_neither_returns_nor_remembers_them() -> None:
    log = toy_log()
    real = did("r", 1, "like", event_id="e1")
    for event in (with_proof(real, UNPROVEN, 7), with_proof(real, AGAIN, 7), real):
        log.append(EVENTS, [Append(0, b"u", encode(event))])
    reader = EventReader(log, FEATURES)
    reader.seek(None)
    assert [event for _, _, event in reader.read()] == [real], "the forged one isn't a repeat of it"


def test_an_attributed_engagement_is_stored_as_before() -> None:
    event = did("r", 1, "like")
    stored = msgspec.msgpack.decode(encode(event))
    assert not {"proof", "source", "token"} & stored.keys()
    sent = msgspec.structs.replace(event, token="abc", choice="clicked:1")  # its sender may claim none
    assert encode(with_proof(sent, msgspec.UNSET, msgspec.UNSET)) == encode(event)
    assert event_id_of(sent) == event_id_of(event) == event_id_of(with_proof(event, UNPROVEN, 3))
    assert dedupe_key(sent) == dedupe_key(event)


def test_learning_does_not_depend_on_access() -> None:
    config = Config()
    other = replace(config, access=replace(config.access, mode="keys"))
    assert learning_digest(config, FEATURES) == learning_digest(other, FEATURES)
