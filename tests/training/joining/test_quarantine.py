"""Examples of quarantined users, and of engagements beyond the bounds of influence."""

import msgspec
import pytest

from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Engagement, Event, Verdict
from recsys.events.records import Example, Forget
from recsys.features.influence import Influence
from tests.support.training.small_feed import START_MS, engagement, feed, impression
from training.joining.joiner import Joined, Joiner

LABELS = ["long_view", "like", "share", "follow", "hide"]


def joiner(**bounds: object) -> Joiner:
    influence = Influence(BoundsConfig(**bounds))  # type: ignore[arg-type]
    return Joiner(0, LABELS, JoinConfig(), influence=influence)


def fed(its: Joiner, *events: Event) -> list[Joined]:
    out = [made for offset, event in enumerate(events) for made in its.feed(offset, event)]
    return [*out, *its.advance(START_MS + 10**6)]


def verdict(user: int, quarantined: bool, at_ms: int) -> Verdict:
    return Verdict(time_ms=START_MS + at_ms, user_id=f"u{user}", quarantined=quarantined)


def sent(event: Engagement, source: int = 1) -> Engagement:
    return msgspec.structs.replace(event, source=source)


def test_a_quarantined_user_teaches_nothing_until_it_is_lifted() -> None:
    before, during, after = (impression(n, 1, START_MS + n * 10_000) for n in range(3))
    other = impression(3, 2, START_MS + 15_000)
    events: list[Event] = [
        before, verdict(1, True, 5_000), engagement(before, 0, "view", 9_000), during, other,
        engagement(during, 0, "like", 1_000), engagement(during, 0, "view", 2_000),
        engagement(other, 0, "view", 3_000), verdict(1, False, 19_000), after,
        engagement(after, 0, "view", 1_000),
    ]  # fmt: skip
    its = joiner()
    out = fed(its, *events)
    assert [e.request_id for e in out if isinstance(e, Example)] == ["r3", "r2"]
    [forget] = [e for e in out if isinstance(e, Forget)]
    assert (forget.offset, forget.user_id) == (1, "u1")
    assert its.counts["quarantined"] == 4


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_restored_joiner_goes_on_as_the_one_before(cut: int) -> None:
    shown = [impression(n, n % 2, START_MS + n * 1_000) for n in range(4)]
    events: list[Event] = [
        *shown,
        sent(engagement(shown[1], 0, "like", 5_000)),
        verdict(0, True, 7_000),
        *(sent(engagement(s, i, "view", 9_000 + i)) for s in shown for i in range(2)),
    ]
    expected, first, again = joiner(burst=2), joiner(burst=2), joiner(burst=2)
    out = [made for n, event in enumerate(events) for made in expected.feed(n, event)]
    split = [made for n, event in enumerate(events[:cut]) for made in first.feed(n, event)]
    again.restore(first.pack())
    split += [made for n, event in enumerate(events[cut:], cut) for made in again.feed(n, event)]
    assert split == out and again.pack() == expected.pack()
    assert expected.counts["bounded"] == 2


def test_an_item_beyond_the_bounds_is_no_example_at_all() -> None:
    shown = impression(1, 1, START_MS)
    its = joiner(burst=1)
    out = fed(
        its, shown, sent(engagement(shown, 0, "view", 1_000)),
        sent(engagement(shown, 1, "like", 2_000)), sent(engagement(shown, 1, "view", 3_000)),
    )  # fmt: skip
    assert [(e.index, e.labels[1]) for e in out if isinstance(e, Example)] == [(0, 0.0)]
    assert its.counts["bounded"] == 1 and its.counts["never_shown"] == 1


def test_labels_beyond_the_kinds_that_count_are_not_learned() -> None:
    shown = impression(1, 1, START_MS)
    kinds = ("share", "long_view", "like", "follow", "hide", "view")
    events = [sent(engagement(shown, 0, kind, 1_000 + n)) for n, kind in enumerate(kinds)]
    [example] = [e for e in fed(joiner(), shown, *events) if isinstance(e, Example)]
    assert example.labels == [1.0, 1.0, 1.0, 0.0, 1.0]
    whole = [msgspec.structs.replace(event, source=msgspec.UNSET) for event in events]
    [example] = [e for e in fed(joiner(), shown, *whole) if isinstance(e, Example)]
    assert example.labels == [1.0] * 5


def test_events_without_a_source_are_joined_as_without_bounds() -> None:
    events = feed(30)
    bounded, free = joiner(burst=1, kinds=0, floor=0), joiner(enabled=False)
    assert fed(bounded, *events) == fed(free, *events)
    assert bounded.pack() == free.pack()
