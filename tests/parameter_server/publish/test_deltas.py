import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.publish.deltas import DeltaAssembler, Gap, checksum, is_sound, seal
from parameter_server.rpc.parameter_client import LocalClient
from recsys.events.records import Delta, TableRows, pack
from tests.support.parameter_server.small_line import DENSE, LANES, toy_spec, work

PARTS, STEPS = 2, 12


def recorded():
    deltas = []
    client = LocalClient.fresh(toy_spec(PARTS), DENSE, deltas.append)
    work(client, list(range(LANES)), STEPS)
    return [pack(delta) for delta in deltas]


WIRE = recorded()


def fold(state, steps):
    for step in steps:
        for name, (keys, values, removed) in step.tables.items():
            rows = state.setdefault(name, {})
            rows.update((k, v.tobytes()) for k, v in zip(keys.tolist(), values, strict=True))
            for key in removed.tolist():
                rows.pop(key, None)
        state["dense"] = step.dense.tobytes()
    return state


def states():
    """The fold after each step, as no fault would have it."""
    assembler, state, out = DeltaAssembler("main", 0, 0), {}, [{}]
    for value in WIRE:
        for step in assembler.feed(value):
            state = fold({k: dict(v) if k != "dense" else v for k, v in state.items()}, [step])
            out.append(state)
    return out


STATES = states()


def test_all_parts_in_order_are_all_steps():
    assembler, steps = DeltaAssembler("main", 0, 0), []
    for value in WIRE:
        steps += assembler.feed(value)
    assert [step.step for step in steps] == list(range(1, STEPS + 1)) and len(STATES) == STEPS + 1
    assert steps[0].metrics["examples"] > 0 and steps[0].time_ms > 0


FAULTS = st.lists(
    st.tuples(
        st.integers(0, len(WIRE) - 1),
        st.sampled_from(["drop", "repeat", "swap", "flip", "cut"]),
        st.integers(0, 2**31),
    ),
    max_size=6,
)


def disturbed(faults):
    """The wire with parts dropped, repeated, moved, and with bytes flipped or cut off."""
    wire = list(WIRE)
    for at, fault, dice in faults:
        at %= len(wire)
        value, other = wire[at], dice % len(wire)
        if fault == "drop":
            del wire[at]
        elif fault == "repeat":
            wire.insert(other, value)
        elif fault == "swap":
            wire[at], wire[other] = wire[other], value
        elif fault == "flip":
            spot = dice % max(1, len(value))
            flipped = bytes(byte ^ (1 + dice % 255) for byte in value[spot : spot + 1])
            wire[at] = value[:spot] + flipped + value[spot + 1 :]
        else:
            wire[at] = value[: dice % max(1, len(value))]
    return wire


@settings(max_examples=300, deadline=None)
@given(FAULTS)
def test_whatever_happens_on_the_way_no_fold_is_wrong(faults):
    assembler, state, last = DeltaAssembler("main", 0, 0, patience=4), {}, 0
    for value in disturbed(faults):
        got = assembler.feed(value)
        if isinstance(got, Gap):
            assert got.expected == last + 1
            continue
        for step in got:
            assert step.step == last + 1
            last = step.step
        state = fold(state, got)
        assert state == STATES[last]
    assert assembler.step == last


@settings(max_examples=50, deadline=None)
@given(st.permutations(WIRE))
def test_any_order_yields_every_step_where_patience_is_enough(wire):
    assembler, steps = DeltaAssembler("main", 0, 0, patience=STEPS), []
    for value in wire:
        steps += assembler.feed(value)
    assert fold({}, steps) == STATES[-1]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WIRE) - 1), st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_is_noticed(which, spot, flip):
    value = bytearray(WIRE[which])
    value[spot % len(value)] ^= flip
    assembler = DeltaAssembler("main", 0, which // PARTS)
    assert assembler.feed(bytes(value)) == []
    good = msgspec.msgpack.decode(WIRE[which], type=Delta)
    waiting = [d for parts in assembler._waiting.values() for d in parts.values()]
    assert waiting in ([], [good])  # the same value in other bytes


@pytest.mark.parametrize("field", ["epoch", "step", "base_step", "time_ms"])
def test_a_number_beyond_all_bounds_is_noticed(field):
    delta = msgspec.structs.replace(msgspec.msgpack.decode(WIRE[0], type=Delta), **{field: 2**63})
    assembler = DeltaAssembler("main", 0, 0)
    assert assembler.feed(pack(delta)) == [] and not assembler._waiting


def test_a_missing_part_is_a_gap_and_reading_on_after_a_snapshot_mends_it():
    assembler = DeltaAssembler("main", 0, 0, patience=3)
    results = [assembler.feed(value) for i, value in enumerate(WIRE) if i != 4]
    gaps = [r for r in results if isinstance(r, Gap)]
    assert gaps[0] == Gap(3, 6, "step 3 is missing") and isinstance(results[-1], Gap)
    assert assembler.step == 2
    assembler = DeltaAssembler("main", 0, 5)
    steps = [step.step for value in WIRE for step in assembler.feed(value)]
    assert steps == list(range(6, STEPS + 1))


@pytest.mark.parametrize("how", ["missing", "replaced", "twice", "diverged"])
def test_nothing_is_kept_in_a_gap(how):
    assembler = DeltaAssembler("main", 0, 0, patience=3)
    first = msgspec.msgpack.decode(WIRE[2 * PARTS], type=Delta)
    assembler.feed(WIRE[2 * PARTS])
    if how == "replaced":
        assembler.feed_delta(seal(msgspec.structs.replace(first, epoch=1)))
    elif how == "twice":
        assembler.feed_delta(seal(msgspec.structs.replace(first, time_ms=1)))
    elif how == "diverged":
        assembler.diverge(0)
    gaps = [assembler.feed(value) for value in WIRE[2:]]
    assert isinstance(gaps[-1], Gap) and not assembler._waiting and assembler.step == 0


def test_waiting_within_patience_is_no_gap():
    assembler = DeltaAssembler("main", 0, 0, patience=3)
    order = [*WIRE[:4], *WIRE[6:10], *WIRE[4:6], *WIRE[10:]]
    steps = [step.step for value in order for step in assembler.feed(value)]
    assert steps == list(range(1, STEPS + 1))


def test_other_lines_and_replaced_epochs_are_passed_over_and_a_new_epoch_is_a_gap():
    assembler = DeltaAssembler("main", 3, 0)
    first = msgspec.msgpack.decode(WIRE[0], type=Delta)
    for changes in ({"line": "cand-1", "epoch": 3}, {"epoch": 2}):
        assert assembler.feed_delta(seal(msgspec.structs.replace(first, **changes))) == []
    assert not assembler._waiting
    gap = assembler.feed_delta(seal(msgspec.structs.replace(first, epoch=4)))
    assert isinstance(gap, Gap) and "history was replaced" in gap.reason


def test_the_same_part_with_other_content_is_a_gap():
    assembler = DeltaAssembler("main", 0, 0)
    first = msgspec.msgpack.decode(WIRE[0], type=Delta)
    assembler.feed_delta(first)
    assert assembler.feed_delta(first) == []
    other = seal(msgspec.structs.replace(first, time_ms=first.time_ms + 1))
    assert isinstance(assembler.feed_delta(other), Gap)


def test_a_delta_that_builds_on_another_step_waits():
    assembler = DeltaAssembler("main", 0, 4)
    rows = TableRows(table="t", dim=1, keys=bytes(8), values=bytes(4))
    delta = Delta(line="main", epoch=0, step=6, base_step=5, part=0, parts=1, tables=[rows])
    assert assembler.feed_delta(seal(delta)) == []
    jump = seal(msgspec.structs.replace(delta, base_step=4))
    assert [step.step for step in assembler.feed_delta(jump)] == [6]


@pytest.mark.parametrize(
    "change",
    [
        {"line": "x"}, {"epoch": 1}, {"step": 9}, {"base_step": 7}, {"part": 1}, {"parts": 3},
        {"dense": b"1234"}, {"metrics": {"a": 2.0}}, {"metrics": {"b": 1.0}}, {"time_ms": 1}, {"tables": []},
        {"tables": [TableRows(table="u", dim=1, keys=bytes(8), values=bytes(4))]},
        {"tables": [TableRows(table="t", dim=1, removed=bytes(8), values=bytes(4))]},
    ],
)  # fmt: skip
def test_the_checksum_covers_every_field(change):
    rows = TableRows(table="t", dim=1, keys=bytes(8), values=bytes(4))
    delta = seal(
        Delta(line="main", epoch=0, step=1, base_step=0, part=0, parts=2, tables=[rows], metrics={"a": 1.0})
    )
    assert is_sound(delta)
    assert checksum(msgspec.structs.replace(delta, **change)) != delta.checksum


@pytest.mark.parametrize(
    "rows",
    [
        TableRows(table="t", dim=2, keys=bytes(8), values=bytes(4)),
        TableRows(table="t", dim=1, keys=bytes(7), values=bytes(4)),
        TableRows(table="t", dim=1, removed=bytes(9)),
    ],
)
def test_arrays_of_the_wrong_length_are_refused_though_the_checksum_is_right(rows):
    assembler = DeltaAssembler("main", 0, 0)
    delta = Delta(line="main", epoch=0, step=1, base_step=0, part=0, parts=1, tables=[rows])
    assert assembler.feed_delta(seal(delta)) == [] and not assembler._waiting
