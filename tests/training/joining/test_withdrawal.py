"""A joiner learns nothing from pending items that a withdrawal names, and marks their end."""

from pathlib import Path

import pytest

from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Event, Withdrawal
from recsys.events.records import Example, Withdrawn
from tests.support.training.small_feed import START_MS, engagement, impression
from training.joining.joiner import Joined, Joiner
from training.joining.spill import Spill

LABELS = ["long_view", "like"]
MINUTE_MS = 60_000


def joiner() -> Joiner:
    return Joiner(0, LABELS, JoinConfig())


def withdrawal(at_ms: int, **requests: list[str]) -> Withdrawal:
    return Withdrawal(time_ms=START_MS + at_ms, user_id="u1", from_ms=START_MS, requests=requests)


def fed(fold: Joiner, *events: Event) -> list[Joined]:
    out = [made for offset, event in enumerate(events) for made in fold.feed(offset, event)]
    return [*out, *fold.advance(START_MS + 10**7)]


def places(out: list[Joined]) -> list[tuple[str, int, bool]]:
    return [(e.request_id, e.index, e.correction) for e in out if isinstance(e, Example)]


FIRST, SECOND = impression(1, 1, START_MS), impression(2, 1, START_MS + 1_000)
OTHER = impression(3, 2, START_MS + 2_000)
ALL = [(SECOND, 0), (SECOND, 1), (OTHER, 0)]
CASES: dict[str, tuple[dict[str, list[str]], list[str]]] = {
    "all": ({}, ["r3/0"]),
    "a list": ({"r2": []}, ["r3/0"]),
    "an item": ({"r2": [str(SECOND.items[0].item_id)]}, ["r2/1", "r3/0"]),
    "another": ({"r7": []}, ["r2/0", "r2/1", "r3/0"]),
    "of another user": ({"r3": []}, ["r2/0", "r2/1", "r3/0"]),
    "no request": ({"": [str(SECOND.items[1].item_id)]}, ["r2/0", "r3/0"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_pending_of_it_is_not_learned(case: str) -> None:
    requests, expected = CASES[case]
    fold = joiner()
    events: list[Event] = [
        FIRST, SECOND, OTHER, engagement(FIRST, 0, "view", 3_000),
        engagement(SECOND, 1, "like", 4_000), withdrawal(6_000, **requests),
        *(engagement(shown, index, "view", 9_000) for shown, index in ALL),
    ]  # fmt: skip
    out = fed(fold, *events)
    assert [f"{r}/{i}" for r, i, _ in places(out)][1:] == expected
    (mark,) = [e for e in out if isinstance(e, Withdrawn)]
    assert (mark.offset, mark.user_id, mark.from_ms) == (5, "u1", START_MS)
    assert mark.requests == requests
    # The first was emitted before: it isn't corrected either, if all is named.
    assert fold.counts["withdrawn"] == {"all": 6, "a list": 3}.get(case, fold.counts["withdrawn"])


def test_a_late_engagement_corrects_nothing_that_is_named() -> None:
    view = engagement(FIRST, 0, "view", 3_000)
    late = engagement(FIRST, 0, "like", 40 * MINUTE_MS)
    assert places(fed(joiner(), FIRST, view, late)) == [("r1", 0, False), ("r1", 0, True)]
    named = withdrawal(20 * MINUTE_MS, r1=[])  # its window is over: it is packed
    assert places(fed(joiner(), FIRST, view, named, late)) == [("r1", 0, False)]


@pytest.mark.parametrize("requests", [{}, {"r1": []}])
def test_state_on_disk_is_named_as_well(tmp_path: Path, requests: dict[str, list[str]]) -> None:
    shown = [impression(n, 1, START_MS + n) for n in range(6)]

    def run(memory_bytes: int, name: str) -> list[tuple[str, int, bool]]:
        spill = Spill(tmp_path / name)
        fold = Joiner(0, LABELS, JoinConfig(), spill=spill, memory_bytes=memory_bytes)
        views = [engagement(each, 0, "view", 9_000) for each in shown]
        out = fed(fold, *shown, withdrawal(5_000, **requests), *views)
        spill.close()
        return places(out)

    expected = [] if not requests else [(f"r{n}", 0, False) for n in (0, 2, 3, 4, 5)]
    assert run(5_000, "small") == run(10**9, "large") == expected


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_restored_joiner_goes_on_as_the_one_before(cut: int) -> None:
    events: list[Event] = [
        FIRST, SECOND, engagement(FIRST, 0, "view", 3_000), withdrawal(6_000, r2=[], r1=["v1"]),
        engagement(SECOND, 0, "view", 8_000), engagement(FIRST, 0, "like", 40 * MINUTE_MS),
    ]  # fmt: skip
    expected, first, again = joiner(), joiner(), joiner()
    out = [made for n, event in enumerate(events) for made in expected.feed(n, event)]
    split = [made for n, event in enumerate(events[:cut]) for made in first.feed(n, event)]
    again.restore(first.pack())
    split += [made for n, event in enumerate(events[cut:], cut) for made in again.feed(n, event)]
    assert split == out and again.pack() == expected.pack()
