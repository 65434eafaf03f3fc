"""Rows of a choice, as examples carry them."""

import numpy as np
import pytest
from msgspec import UNSET, structs
from numpy.typing import NDArray

from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Choice, Event, Impression
from recsys.events.records import CLICK_LIST, Example
from tests.support.training.small_feed import FEATURES, START_MS, engagement, impression
from training.joining.choices import candidates_of, chosen_before
from training.joining.impression_state import SHOWN, new_state
from training.joining.joiner import Joiner

F = len(FEATURES.dense_names)


def dense_of(event: Impression) -> NDArray[np.float32]:
    assert event.features is not None
    return np.frombuffer(event.features.dense, np.float32).reshape(len(event.items), F)


def rows_of(choice: bytes) -> NDArray[np.float32]:
    return np.frombuffer(choice, np.float32).reshape(-1, 1 + F)


def with_candidates(event: Impression, standing: list[float], others: int) -> Impression:
    rows = np.full((others, F), 9.0, np.float32)
    choice = Choice(np.array(standing, np.float32).tobytes(), rows.tobytes(), 4.0)
    return structs.replace(event, choice=choice)


def taken(event: Impression, index: int, *engaged: int) -> NDArray[np.float32]:
    state = new_state(0, event)
    for place in range(len(event.items)):
        state.marks[place] |= SHOWN
        state.labels[place] = int(place in engaged)
    return rows_of(chosen_before(state, index, event))


LIST = impression(1, 4, START_MS)
SIZE = len(LIST.items)


def test_of_a_list_of_the_system_the_items_that_were_shown_are_chosen_from() -> None:
    rows = taken(LIST, 2, 2)
    assert len(rows) == SIZE and np.array_equal(rows[:, 0], np.zeros(SIZE))
    others = [place for place in range(SIZE) if place != 2]
    assert np.array_equal(rows[:, 1:], dense_of(LIST)[[2, *others]])


def test_an_item_that_was_engaged_with_too_is_none_that_was_passed_by() -> None:
    assert len(taken(LIST, 0, 0, 1)) == SIZE - 1


def test_items_that_were_not_shown_say_nothing() -> None:
    state = new_state(0, LIST)
    state.marks[1] |= SHOWN
    assert chosen_before(state, 1, LIST) == b""
    state.marks[0] |= SHOWN
    assert len(rows_of(chosen_before(state, 1, LIST))) == 2


def test_candidates_stand_for_those_that_were_not_looked_at() -> None:
    event = with_candidates(LIST, [1.0] + [0.0] * (SIZE - 1), 3)
    rows = taken(event, 0, 0)
    assert np.array_equal(rows[:, 0], np.log(np.array([1, 4, 4, 4], np.float32)))
    assert np.array_equal(rows[1:, 1:], np.full((3, F), 9.0))


def test_an_item_that_the_sources_did_not_have_teaches_nothing() -> None:
    event = with_candidates(LIST, [0.0] + [1.0] * (SIZE - 1), 3)
    assert len(taken(event, 0, 0)) == 0 and len(taken(event, 1, 1)) > 0


def test_of_a_long_list_a_part_is_looked_at_that_stands_for_all() -> None:
    assert LIST.features is not None
    block = structs.replace(LIST.features, dense=LIST.features.dense * 10)
    event = structs.replace(LIST, items=LIST.items * 10, features=block)
    rows = taken(event, 3, 3)
    assert len(rows) <= 1 + 8
    assert np.exp(rows[1:, 0]).sum() == pytest.approx(len(event.items) - 1, rel=0.2)


@pytest.mark.parametrize("shown_by", ["view", "impression"])
def test_examples_of_the_first_label_carry_their_choice_once(shown_by: str) -> None:
    its = Joiner(0, list(FEATURES.schema.labels), JoinConfig(window_s=60), shown_by=shown_by)
    events: list[Event] = [
        LIST,
        engagement(LIST, 0, "view", 1_000, watch_ms=900),
        engagement(LIST, 1, "long_view", 8_000),
        engagement(LIST, 1, "view", 9_000, watch_ms=9_000),
        engagement(LIST, 1, "like", 9_500),
    ]
    joined = [e for n, event in enumerate(events) for e in its.feed(n, event)]
    joined += its.advance(START_MS + 120_000)
    examples = [e for e in joined if isinstance(e, Example)]
    with_choice = [e for e in examples if e.choice]
    assert len(with_choice) == 1 and with_choice[0].index == 1
    shown = SIZE if shown_by == "impression" else 2
    assert len(rows_of(with_choice[0].choice)) == shown


def click_list(name: str, n: int) -> Impression:
    """A list of the candidates of a click on its first item, in which the last one was no candidate."""
    standing = np.array([1.0] + [7.0] * (SIZE - 2) + [0.0], np.float32)
    event = impression(n, SIZE, START_MS)
    return structs.replace(
        event, request_id=CLICK_LIST + name, user_id="ann", choice=Choice(standing.tobytes())
    )


def test_examples_of_a_list_of_candidates_say_how_many_each_stands_for() -> None:
    its = Joiner(0, ["like"], JoinConfig(window_s=60), shown_by="click")
    event = click_list("a", 1)
    its.feed(0, event)
    its.feed(1, engagement(event, 0, "like", 0))
    examples = [e for e in its.advance(START_MS + 120_000) if isinstance(e, Example)]
    logs = [np.frombuffer(e.choice, np.float32).tolist() for e in examples]
    assert logs == [[0.0], *[[np.float32(np.log(7.0))]] * (SIZE - 2), []]
    assert event.choice is not UNSET and candidates_of(event.choice, SIZE - 1) == b""


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_items_of_a_basket_are_no_alternatives_to_each_other(order: tuple[int, int]) -> None:
    """Each of two clicks has the other item among its candidates."""
    its, lists = Joiner(0, ["like"], JoinConfig(window_s=60), shown_by="click"), []
    for n in order:
        event = click_list(f"l{n}", n)
        items = list(LIST.items)
        items[0], items[n] = items[n], items[0]
        lists.append(event := structs.replace(event, items=items))
        its.feed(2 * n, event)
        its.feed(2 * n + 1, engagement(event, 0, "like", 0))
    examples = [e for e in its.advance(START_MS + 120_000) if isinstance(e, Example)]
    both = {LIST.items[0].item_id, LIST.items[1].item_id}
    assert [e.item_id in both for e in examples if not e.labels[0]] == [False] * 2 * (SIZE - 2)
    assert {e.item_id for e in examples if e.labels[0]} == both
    other = structs.replace(lists[0], request_id=CLICK_LIST + "later", time_ms=START_MS + 120_000)
    its.feed(9, other)
    its.feed(10, engagement(other, 0, "like", 0))
    later = [e for e in its.advance(START_MS + 240_000) if isinstance(e, Example)]
    assert len(later) == SIZE  # a visit later they are
