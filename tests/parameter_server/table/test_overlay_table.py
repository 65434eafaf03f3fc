"""A table over a snapshot's rows against an ordinary one: the same steps, the same bits."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from parameter_server.table import overlay_table as overlay
from parameter_server.table import table as rows_module
from parameter_server.table.overlay_table import BaseRows, OverlayTable
from parameter_server.table.table import Table, rows_within
from recsys.arrays.key_index import LOAD
from recsys.config.system_config import TableConfig

POOL = [*range(-8, 16), 2**63 - 1, -(2**63), 1 << 40]
KEYS = st.lists(st.sampled_from(POOL), unique=True, max_size=9)
_ROW = 4 * 2 + 20 + 16 / LOAD
CONFIGS = [
    TableConfig("t", 2, 0.1, initial=0.3),
    TableConfig("t", 2, 0.1, initial=0.3, admit_after=3, ttl_s=5, sketch_mb=0.3),
    TableConfig("t", 2, 0.1, initial=0.3, ttl_s=3, budget_mb=12 * _ROW / 2**20 + 1e-9),
]
assert rows_within(CONFIGS[2].budget_mb, 2) == 12


def ids(keys):
    return np.array(keys, np.int64)


def over(table):
    """An overlay over what a table has, which is read-only."""
    export = table.export()
    for array in export.values():
        array.flags.writeable = False
    out = OverlayTable(BaseRows(export), table.config, 5)
    if out._sketch:
        out._sketch.load(export)
    return out


class Both(RuleBasedStateMachine):
    config = CONFIGS[0]

    def __init__(self):
        super().__init__()
        self.plain, self.now_ms = Table(self.config, 5), 0
        self.over = over(self.plain)

    @rule(keys=KEYS, wait_ms=st.integers(0, 2_000), bad=st.booleans(), seed=st.integers(0, 99))
    def apply(self, keys, wait_ms, bad, seed):
        self.now_ms += wait_ms
        gradients = np.random.default_rng(seed).normal(size=(len(keys), 2)).astype(np.float32)
        gradients[: int(bad)] = np.nan
        one, other = (
            table.apply(ids(keys), gradients, np.ones(len(keys), np.int32), self.now_ms)
            for table in (self.plain, self.over)
        )
        for name in ("keys", "changed", "inserted", "refused", "waiting", "evicted", "evicted_rows"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for done, table in ((one, self.plain), (other, self.over)):
            assert table.rows_at(done.slots).tobytes() == table.lookup(done.keys).tobytes()

    @rule(keys=KEYS)
    def remove(self, keys):
        gone = self.plain.remove(ids(keys))
        assert gone.tolist() == self.over.remove(ids(keys)).tolist()
        assert not self.over.lookup_known(gone)[1].any()

    @rule(wait_ms=st.integers(0, 9_000))
    def expire(self, wait_ms):
        self.now_ms += wait_ms
        stale = self.plain.stale(self.now_ms)
        assert stale.tolist() == self.over.stale(self.now_ms).tolist()
        gone = self.plain.expire(self.now_ms, ids(POOL))
        assert gone.tolist() == self.over.expire(self.now_ms, ids(POOL)).tolist()

    @rule()
    def save(self):
        """From here on, what is there now is the base."""
        self.over = over(self.plain)

    @rule(keys=KEYS, seed=st.integers(0, 99))
    def replace(self, keys, seed):
        """An increment: the first two of the keys leave, the others get other rows."""
        draw = np.random.default_rng(seed)
        rows = {
            "keys": ids(keys[2:][: max(0, 12 - len(self.plain))]),
            "values": draw.normal(size=(len(keys), 2)).astype(np.float32),
            "accumulator": draw.random(len(keys)).astype(np.float32),
            "used_ms": np.full(len(keys), self.now_ms),
        }
        rows = {name: column[: len(rows["keys"])] for name, column in rows.items()}
        self.over.replace(rows, ids(keys[:2]))
        self.plain.remove(np.concatenate([ids(keys[:2]), rows["keys"]]))
        self.plain.load(rows)

    @invariant()
    def equal(self):
        assert len(self.plain) == len(self.over) and self.plain.waiting == self.over.waiting
        for one, other in zip(
            self.plain.lookup_known(ids(POOL)), self.over.lookup_known(ids(POOL)), strict=True
        ):
            assert one.tobytes() == other.tobytes()
        assert self.plain.digest() == self.over.digest()
        blocks = [(k, v) for keys, rows in self.over.blocks(4) for k, v in zip(keys, rows, strict=True)]
        assert sorted(int(k) for k, _ in blocks) == sorted(self.plain.export()["keys"].tolist())
        assert all((self.plain.lookup(ids([k]))[0] == v).all() for k, v in blocks)


class Counted(Both):
    config = CONFIGS[1]


class Budget(Both):
    config = CONFIGS[2]


SETTINGS = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestBoth, TestCounted, TestBudget = Both.TestCase, Counted.TestCase, Budget.TestCase
TestBoth.settings = TestCounted.settings = TestBudget.settings = SETTINGS


def filled(config, count):
    table = Table(config, 5)
    for start in range(0, count, 20_000):
        keys = np.arange(start, min(start + 20_000, count)) * 7 - 1000
        gradients = np.random.default_rng(start).normal(size=(len(keys), config.dim))
        ones = np.ones(len(keys), np.int32)
        table.apply(keys, gradients.astype(np.float32), ones, 1000 + start)
    return table


def test_where_more_are_stale_than_may_leave_the_same_go_first(monkeypatch: pytest.MonkeyPatch):
    for module in (rows_module, overlay):
        monkeypatch.setattr(module, "MAX_REMOVED", 7)
    plain = filled(TableConfig("t", 2, 0.1, ttl_s=1), 15)
    other = over(plain)
    for table in (plain, other):
        table.apply(ids([-1000, -993]), np.ones((2, 2), np.float32), np.ones(2, np.int32), 900)
    for _ in range(3):
        stale = plain.stale(10_000)
        assert other.stale(10_000).tolist() == stale.tolist()
        assert plain.expire(10_000, stale).tolist() == other.expire(10_000, stale).tolist()
        assert plain.digest() == other.digest()
    assert len(other) == 0


def test_what_doesnt_change_takes_little_memory_and_what_does_takes_its_own():
    plain = filled(TableConfig("t", 17, 0.1, initial=0.1), 200_000)
    table = over(plain)
    keys = plain.export()["keys"]
    assert table.lookup(keys[::50]).tobytes() == plain.lookup(keys[::50]).tobytes()
    frozen = table.nbytes
    assert frozen < plain.nbytes / 14 and table.changed == 0
    sizes = []
    for start in range(0, 8_000, 2_000):
        its = keys[start : start + 2_000]
        ones = np.ones(len(its), np.int32)
        table.apply(its, np.ones((2_000, 17), np.float32), ones, 10**6)
        sizes.append(table.nbytes - frozen)
    assert table.changed == 8_000 and len(table) == 200_000
    assert sizes[0] < sizes[-1] < 8_000 * 160 < plain.nbytes / 14
