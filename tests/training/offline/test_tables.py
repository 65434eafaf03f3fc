"""Both tables learn the same, whichever holds the rows."""

import numpy as np
import pytest

from parameter_server.shard.lanes import RowGradients
from parameter_server.table.routing import shard_of
from parameter_server.table.table import initial_rows
from recsys.config.system_config import TableConfig
from training.offline.tables import OwnTable, RowTable
from training.offline.vocabulary import KeyCounter, KeyCounts, Vocabulary, select_keys

CONFIG = TableConfig("videos", 17, 0.05, 0.01)
KEYS = np.arange(2, 202, dtype=np.int64) * 7
VOCABULARY = Vocabulary(KEYS, np.arange(200, dtype=np.int64))


def torchrec_table(*args: object) -> RowTable:
    from training.offline.torchrec_tables import TorchrecTable  # two seconds

    return TorchrecTable(*args)  # type: ignore[arg-type]


both = pytest.mark.parametrize("made", [OwnTable, pytest.param(torchrec_table, marks=pytest.mark.slow)])


def gradients(step: int) -> RowGradients:
    draw = np.random.default_rng(step)
    keys = draw.choice(KEYS, 40, replace=False)
    return RowGradients(keys, draw.normal(size=(40, 17)).astype(np.float32), np.ones(40, np.int32))


@both
def test_a_key_without_a_row_reads_its_initial_value_and_learns_nothing(made) -> None:
    table = made(CONFIG, VOCABULARY, 3)
    keys = np.array([14, 5], np.int64)
    assert np.array_equal(table.lookup(keys), initial_rows(CONFIG, 3, keys))
    ones = RowGradients(keys, np.ones((2, 17), np.float32), np.ones(2, np.int32))
    assert table.learn(ones) == 0
    moved = np.abs(table.lookup(keys) - initial_rows(CONFIG, 3, keys)).max(1)
    assert moved[0] > 0 and moved[1] == 0


@both
def test_what_is_not_finite_or_beyond_the_bound_is_refused(made) -> None:
    table = made(CONFIG, VOCABULARY, 3)
    bad = np.zeros((3, 17), np.float32)
    bad[0, 4], bad[1, 2], bad[2, 0] = np.nan, 1e6, 1.0
    assert table.learn(RowGradients(KEYS[:3], bad, np.ones(3, np.int32))) == 2
    moved = np.abs(table.lookup(KEYS[:3]) - initial_rows(CONFIG, 3, KEYS[:3])).max(1) > 0
    assert moved.tolist() == [False, False, True]


@both
def test_an_export_is_all_there_is(made) -> None:
    table, again = made(CONFIG, VOCABULARY, 3), made(CONFIG, VOCABULARY, 3)
    for step in range(5):
        table.learn(gradients(step))
    again.load(KEYS[:120], table.export(KEYS[:120]))  # in two parts
    again.load(KEYS[120:], table.export(KEYS[120:]))
    for step in range(5, 10):
        table.learn(gradients(step))
        again.learn(gradients(step))
    for name, column in table.export(KEYS).items():
        assert np.array_equal(column, again.export(KEYS)[name]), name
    few = KEYS[[7, 3]]
    assert np.array_equal(table.export(few)["values"], table.lookup(few)), "in the order asked for"


@pytest.mark.slow
def test_torchrec_learns_what_our_tables_learn() -> None:
    ours, theirs = OwnTable(CONFIG, VOCABULARY, 3), torchrec_table(CONFIG, VOCABULARY, 3)
    for step in range(200):
        ours.learn(gradients(step))
        theirs.learn(gradients(step))
    mine, other = ours.export(KEYS), theirs.export(KEYS)
    for name in ("values", "accumulator"):
        assert np.abs(mine[name] - other[name]).max() <= 1e-5 * np.abs(other[name]).max()


def seen(*keys_counts_times: tuple[int, int, int]) -> KeyCounts:
    counter = KeyCounter(["videos"])
    for key, count, time_ms in keys_counts_times:
        counter.add("videos", np.array([key], np.int64), np.array([count], np.int32), time_ms)
    return counter.totals()["videos"]


def test_who_gets_a_row() -> None:
    found = seen((5, 1, 10), (9, 2, 20), (5, 1, 30), (7, 1, 40), (9, 1, 15))
    assert found.keys.tolist() == [5, 7, 9] and found.counts.tolist() == [2, 1, 3]
    assert found.last_ms.tolist() == [30, 40, 20]
    admitted = select_keys(TableConfig("videos", 4, 0.1, admit_after=2), found, 40)
    assert admitted.keys.tolist() == [5, 9] and admitted.used_ms.tolist() == [30, 20]


def test_rows_past_their_time_or_the_budget_get_none() -> None:
    found = seen(*((key, 1, 1000 * key) for key in range(100, 0, -1)))
    lives = select_keys(TableConfig("videos", 4, 0.1, ttl_s=10), found, 100_000)
    assert lives.keys.tolist() == list(range(90, 101))
    tight = TableConfig("videos", 4, 0.1, budget_mb=0.001)
    few = select_keys(tight, found, 100_000, 2)
    assert 0 < len(few) < 100 and few.keys[-1] == 100 and (np.diff(few.keys) == 1).all()
    halves = select_keys(tight, found, 100_000, 2, 2).keys
    of_part = shard_of(halves, 2)
    assert np.bincount(of_part).tolist() == [len(few) // 2] * 2, "each part has its share"
    mine = shard_of(found.keys, 2) == 0
    alone = select_keys(tight, found.take(mine), 100_000, 2, 2)
    assert np.array_equal(alone.keys, halves[of_part == 0]), "whoever has the other part"
