from hypothesis import given, settings
from hypothesis import strategies as st

from serving.replica.group_index import GroupIndex


@given(moves=st.lists(st.tuples(st.integers(0, 6), st.sets(st.integers(1, 4)), st.booleans()), max_size=30))
def test_each_group_has_the_items_that_are_in_it_now(moves: list[tuple[int, set[int], bool]]) -> None:
    its, groups = GroupIndex(), dict[int, set[int]]()
    for index, new, look in moves:
        its.move(index, groups.get(index, set()), new)
        groups[index] = new
        if look:  # what was read before a move is not what is read after it
            its.members(1)
    for key in range(6):
        found = its.members(key).tolist()
        assert sorted(found) == sorted(i for i, keys in groups.items() if key in keys)


def test_leaving_a_group_that_one_was_never_in_is_nothing() -> None:
    its = GroupIndex()
    its.move(3, [7, 8], [9])
    assert its.members(9).tolist() == [3] and its.members(7).tolist() == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3))), max_size=60
    )
)
def test_groups_read_alike_whether_they_are_asked_for_all_along_or_at_the_end(moves: list) -> None:
    asked, quiet, order = GroupIndex(), GroupIndex(), {key: list[int]() for key in range(4)}
    for index, more, new in moves:
        old = more | {key for key in range(4) if index in order[key]}
        for inverted in (asked, quiet):
            inverted.move(index, old, new)
        for key in range(4):
            if key in old and index in order[key]:
                order[key].remove(index)
            if key in new and index not in order[key]:
                order[key].append(index)
            assert asked.members(key).tolist() == order[key]
    assert [quiet.members(key).tolist() for key in range(4)] == list(order.values())


@given(st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 3)), st.booleans()), max_size=40))
def test_restored_groups_equal_those_that_were_saved(moves: list[tuple[int, set[int], bool]]) -> None:
    groups, restored, before = GroupIndex(), GroupIndex(), dict[int, set[int]]()
    for index, new, restores in moves:
        if restores:
            arrays, restored = restored.saved("g"), GroupIndex()
            restored.restore({name: array.copy() for name, array in arrays.items()}, "g")
        for each in (groups, restored):
            each.move(index, before.get(index, set()), new)
        before[index] = new
        for key in range(5):
            assert restored.members(key).tolist() == groups.members(key).tolist()
    assert sorted(restored.saved("g")["g_keys"]) == sorted(groups.saved("g")["g_keys"])
