"""What a store of rows keeps, of rows published in any format."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.publish.rounding import digest_of_rows, round_rows
from parameter_server.table.table import initial_rows, table_seed
from recsys.config.system_config import TableConfig
from serving.replica import row_store
from serving.replica.row_store import RowStore

TABLE = TableConfig("features", 3, 0.1, initial=0.5)
KEYS = np.arange(-6, 7)
changes = st.lists(
    st.tuples(st.sampled_from(["fp32", "int8", "remove"]), st.sets(st.integers(-6, 6), max_size=5)),
    max_size=15,
)


@settings(max_examples=40, deadline=None)
@given(changes=changes)
def test_it_holds_what_a_dictionary_would(changes: list[tuple[str, set[int]]]) -> None:
    store, expected = RowStore(TABLE, 7), dict[int, np.ndarray]()
    for n, (what, chosen) in enumerate(changes):
        keys = np.array(sorted(chosen), np.int64)
        if what == "remove":
            store.remove(keys)
            expected = {k: v for k, v in expected.items() if k not in chosen}
        else:
            rows = np.full((len(keys), 3), n / 3, np.float32)
            rows *= keys[:, None].astype(np.float32) ** [1, 2, 3]
            rows = round_rows(rows, what).rows
            store.set(keys, rows)
            expected |= dict(zip(keys.tolist(), rows, strict=True))
    initial = initial_rows(TABLE, 7, KEYS)
    for key, row, start in zip(KEYS.tolist(), store.lookup(KEYS), initial, strict=True):
        assert (row == expected.get(key, start)).all()
    keys, rows = store.export()
    assert keys.tolist() == sorted(expected) and len(store) == len(expected)
    assert all((row == expected[key]).all() for key, row in zip(keys.tolist(), rows, strict=True))
    everyone = np.ones(len(keys), np.bool_)
    assert store.digest == digest_of_rows(table_seed(7, "features"), keys, rows, everyone)


@pytest.mark.parametrize("count", [0, 1, 5, 6, 23])
def test_filled_in_blocks_it_is_as_set_at_once(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(row_store, "_BLOCK", 5)
    keys = np.arange(count, dtype=np.int64) * 7 - 20
    rows = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    filled, once = RowStore.filled(TABLE, 7, keys, rows), RowStore(TABLE, 7)
    once.set(keys, rows)
    filled.set(KEYS, np.ones((len(KEYS), 3), np.float32))  # and grows on
    once.set(KEYS, np.ones((len(KEYS), 3), np.float32))
    assert all((a == b).all() for a, b in zip(filled.export(), once.export(), strict=True))
    assert filled.digest == once.digest != 0


def test_a_row_that_is_not_what_was_set_shows_in_the_digest_once_it_changes() -> None:
    one, other = RowStore(TABLE, 7), RowStore(TABLE, 7)
    for store in (one, other):
        store.set(KEYS, np.ones((len(KEYS), 3), np.float32))
    other._values[4] *= 2
    for store in (one, other):
        store.set(KEYS[3:6], np.zeros((3, 3), np.float32))
    assert one.digest != other.digest
