"""A shard's published state against a replica that folds what is sent, over random steps."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.publish.published import KEY_BYTES, PublishedRows, Removed, TableChange, published_rows
from parameter_server.publish.rounding import FORMATS, digest_of_rows, read_rows, round_rows, row_bytes
from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.table.table import initial_rows, table_seed
from recsys.config.system_config import TableConfig

TABLES = (TableConfig("a", 3, 0.1, initial=0.1), TableConfig("b", 2, 0.1))
DIMS = {table.name: table.dim for table in TABLES}


@dataclass
class World:
    """True rows, a shard's published state, and a replica that folds what is sent."""

    format: str = "fp16"
    budget: int = 0
    published: PublishedRows = None
    true: dict = field(default_factory=lambda: {"a": {}, "b": {}})
    replica: dict = field(default_factory=lambda: {"a": {}, "b": {}})

    def __post_init__(self):
        self.published = PublishedRows(TABLES, 3, self.format, self.budget)

    def rows_of(self, name, keys):
        config = next(t for t in TABLES if t.name == name)
        rows = initial_rows(config, 3, keys)
        for place, key in enumerate(keys.tolist()):
            rows[place] = self.true[name].get(key, rows[place])
        return rows

    def step(self, moves=(), removals=(), settle=False):
        """``moves``: (table, key, by how much, examples); ``removals``: (table, key)."""
        changes = {}
        for name in DIMS:
            gone = np.array(sorted({k for t, k in removals if t == name}), np.int64)
            its = {k: (by, n) for t, k, by, n in moves if t == name and k not in gone}
            keys = np.array(list(its), np.int64)
            before, left = self.rows_of(name, keys), self.rows_of(name, gone)
            there, was_there = (
                np.array([k in self.true[name] for k in ids.tolist()], bool) for ids in (keys, gone)
            )
            for (key, (by, _)), row in zip(its.items(), before, strict=True):
                self.true[name][key] = row + np.float32(by)
            for key in gone.tolist():
                self.true[name].pop(key, None)
            counts = np.array([n for _, n in its.values()], np.int32)
            removed = Removed(gone, left, was_there)
            changes[name] = TableChange(keys, before, there, self.rows_of(name, keys), counts, removed)
        sent = self.published.publish(changes, self.rows_of, settle)
        for rows in sent:
            keys = np.frombuffer(rows.keys, np.int64)
            values = read_rows(rows.values, rows.dim, self.format)
            self.replica[rows.table].update(zip(keys.tolist(), values, strict=True))
            for key in np.frombuffer(rows.removed, np.int64).tolist():
                self.replica[rows.table].pop(key, None)
        return {r.table: np.frombuffer(r.keys, np.int64).tolist() for r in sent if r.keys}

    def again(self):
        """The shard's published state as it comes back from a snapshot."""
        out, arrays = PublishedRows(TABLES, 3, self.format, self.budget), self.published.export()
        for name in DIMS:
            held = {column: arrays[f"held/{name}/{column}"] for column in WITHHELD_COLUMNS}
            out.load(name, *self.columns(self.true[name], DIMS[name]), held)
        return out

    @staticmethod
    def columns(rows, dim):
        keys = np.array(list(rows), np.int64)
        return keys, np.array(list(rows.values()), np.float32).reshape(len(rows), dim)

    def check(self):
        """The replica holds what is published: rounded rows, and of held-back ones what was last sent."""
        arrays, digest = self.published.export(), 0
        for name, dim in DIMS.items():
            keys, rows = self.columns(self.replica[name], dim)
            seed = table_seed(3, name)
            digest += digest_of_rows(seed, keys, rows, np.ones(len(keys), bool))
            held = {column: arrays[f"held/{name}/{column}"] for column in WITHHELD_COLUMNS}
            ids, values = published_rows(*self.columns(self.true[name], dim), held, self.format)
            assert dict(zip(ids.tolist(), map(bytes, values), strict=True)) == {
                key: bytes(row) for key, row in self.replica[name].items()
            }
            for key, row in self.true[name].items():
                if key not in held["keys"]:
                    now = round_rows(row[None], self.format).rows[0]
                    assert bytes(now) == bytes(self.replica[name][key])
        assert self.published.digest == digest % 2**64


KEYS = st.tuples(st.sampled_from("ab"), st.integers(-6, 6))
MOVES = st.lists(
    st.tuples(KEYS, st.sampled_from([0.0, 1e-6, 0.1, -0.5, 2.0]), st.integers(0, 5)), max_size=12
)
STEPS = st.lists(st.tuples(MOVES, st.lists(KEYS, max_size=3), st.booleans()), max_size=10)


@settings(max_examples=60)
@given(STEPS, st.sampled_from(FORMATS), st.sampled_from([0, 1, 30, 80]))
def test_a_replica_always_holds_what_is_published(steps, name, budget):
    world = World(name, budget)
    a_row = max(KEY_BYTES + row_bytes(dim, name) for dim in DIMS.values())
    for moves, removals, restart in steps:
        if restart:
            world.published = world.again()
        sent = world.step([(*key, by, n) for key, by, n in moves], removals)
        cost = sum(len(k) * (KEY_BYTES + row_bytes(DIMS[t], name)) for t, k in sent.items())
        assert not budget or cost <= max(budget, a_row)
        world.check()
    before, rows = world.published.withheld, sum(len(true) for true in world.true.values())
    for _ in range(rows):
        world.step()
        world.check()
    assert not any(world.published.withheld.values()), before


@settings(max_examples=30)
@given(STEPS, st.sampled_from([30, 80]))
def test_what_comes_back_from_a_snapshot_sends_the_same(steps, budget):
    one, other = World(budget=budget), World(budget=budget)
    for moves, removals, settle in steps:
        other.published = other.again()
        its = [(*key, by, n) for key, by, n in moves]
        assert one.step(its, removals, settle) == other.step(its, removals, settle)
        assert one.published.digest == other.published.digest
        assert not settle or not any(one.published.withheld.values())
    assert one.published.withheld == other.published.withheld


BUDGET = 2 * (KEY_BYTES + row_bytes(3, "fp16"))  # two rows of table a


def test_what_matters_most_goes_first_and_the_rest_later():
    world = World(budget=BUDGET)
    moves = [("a", 1, 0.1, 1), ("a", 2, 0.1, 9), ("a", 3, 5.0, 1), ("a", 4, 0.2, 1)]
    assert world.step(moves) == {"a": [2, 3]} and world.published.withheld == {"a": 2, "b": 0}
    assert world.step() == {"a": [1, 4]}
    assert world.step() == {}


def test_traffic_and_change_count_since_a_row_was_last_sent():
    world = World(budget=BUDGET)
    world.step([("a", k, 1.0, 5) for k in (1, 2)] + [("a", k, 0.1, 1) for k in (3, 4, 5)])
    assert world.step([("a", 5, 0.1, 1), ("a", 1, 0.5, 1), ("a", 6, 0.01, 1)]) == {"a": [5, 1]}
    world.step([("a", 3, -0.1, 40)])  # a row that is again what it was is not sent, unless it is new
    assert world.published.withheld["a"] == 1


def test_ties_go_by_key_whatever_the_order_in_which_they_came():
    for order in ([5, 1, 3], [3, 5, 1]):
        world = World(budget=BUDGET)
        moves = [("b", k, 1.0, 1) for k in order]
        assert sorted(world.step(moves)["b"]) == [1, 3]


@given(st.lists(st.tuples(KEYS, st.sampled_from([1.0, 2.0, 3.0]), st.integers(0, 3)), max_size=30))
def test_the_order_is_by_traffic_and_change_then_key_then_table(moves):
    """However few of the rows are put in order to find the first."""
    world, its = World("fp32", 50), {key: (by, n) for key, by, n in moves}
    weights = {}
    for (table, key), (by, n) in its.items():
        start = world.rows_of(table, np.array([key]))[0]
        now = start + np.float32(by)
        weights[table, key] = n * np.sqrt(
            sum((float(a) - float(b)) ** 2 for a, b in zip(now, start, strict=True))
        )
    left = sorted(weights, key=lambda k: (-weights[k], k[1], k[0]))
    moves = [(*key, *its[key]) for key in its]
    while left:
        cost, count = 0, 0
        for table, _ in left:
            cost += KEY_BYTES + row_bytes(DIMS[table], "fp32")
            count += cost <= 50
        went = world.step(moves)
        assert {(t, k) for t, ks in went.items() for k in ks} == set(left[: max(1, count)])
        left, moves = left[max(1, count) :], []


def test_a_row_that_rounds_to_what_replicas_hold_is_not_sent():
    world = World()
    world.step([("b", 1, 1.0, 1)])
    assert world.step([("b", 1, 1e-6, 1)]) == {}
    assert world.step([("b", 2, 0.0, 1)]) == {"b": [2]}  # but one that they don't have is


def test_a_tombstone_is_never_held_back_and_takes_what_is_with_it():
    world = World(budget=1)
    world.step([("b", k, 1.0, 1) for k in (1, 2, 3, 4)])
    gone = [("b", k) for k in (1, 2, 3)]
    assert world.step([("b", 9, 1.0, 1)], gone) == {"b": [4]}
    assert world.replica["b"].keys() == {4} and world.published.withheld["b"] == 1
    world.check()


def test_a_step_that_settles_sends_all():
    world = World(budget=1)
    world.step([("b", k, 1.0, 1) for k in range(9)])
    assert world.step([("a", 1, 1.0, 1)], settle=True) == {"a": [1], "b": list(range(1, 9))}


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_errors_never_add_up(name):
    world = World(name)
    for _ in range(300):
        world.step([("a", 1, 0.0137, 1)])
    true, held = world.true["a"][1], world.replica["a"][1]
    assert np.abs(true - held).max() <= {"fp32": 0, "fp16": 2**-11, "int8": 0.5 / 127}[name] * 5
