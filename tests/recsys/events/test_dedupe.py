import time

from hypothesis import given
from hypothesis import strategies as st

from recsys.events.dedupe import RecentIds


def test_ids_are_dropped_by_what_they_begin_with() -> None:
    its = RecentIds(3, ["a1", "b1", "a2"])
    its.drop("a")
    assert its.export() == ["b1"]
    assert its.add("a1") and its.add("a2") and its.export() == ["b1", "a1", "a2"]


def test_one_id_is_discarded_without_touching_ids_that_begin_with_it() -> None:
    recent = RecentIds(3, ["a", "ab", "b"])
    recent.discard("a")
    recent.discard("missing")
    assert recent.export() == ["ab", "b"] and recent.add("a")


def test_the_cost_of_an_id_does_not_grow_with_the_ids_remembered() -> None:
    recent = RecentIds(100_000, map(str, range(100_000)))
    began_s = time.process_time()
    for number in range(100_000, 150_000):
        recent.add(str(number))
        recent.discard(str(number))
        recent.add(str(number))
    assert time.process_time() - began_s < 1.0  # 0.1 s; a scan for each takes minutes


def test_a_repeat_within_the_horizon_is_known_and_one_beyond_it_is_new() -> None:
    recent = RecentIds(2)
    assert recent.add("a") and recent.add("b")
    assert not recent.add("a")
    assert recent.add("c") and "a" not in recent and len(recent) == 2
    assert recent.add("a") and not recent.add("c")


@given(ids=st.lists(st.sampled_from("abcdefgh"), max_size=40), cut=st.integers(0, 40))
def test_an_export_goes_on_as_if_nothing_had_happened(ids: list[str], cut: int) -> None:
    whole, first = RecentIds(3), RecentIds(3)
    expected = [whole.add(id_) for id_ in ids]
    found = [first.add(id_) for id_ in ids[:cut]]
    second = RecentIds(3, first.export())
    assert found + [second.add(id_) for id_ in ids[cut:]] == expected
    assert second.export() == whole.export()
