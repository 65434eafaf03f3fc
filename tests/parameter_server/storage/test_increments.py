"""An increment makes of what was there what is there now, whatever happened between."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.storage.increments import apply

TABLE = st.dictionaries(st.integers(-3, 8), st.integers(0, 2), max_size=8)


def export(rows: dict[int, int]) -> dict[str, np.ndarray]:
    keys = np.array(list(rows), np.int64)
    value = np.array([0.0, -0.0, np.nan], np.float32)[list(rows.values())] if rows else keys[:0]
    values = np.repeat(np.asarray(value, np.float32)[:, None], 3, 1)
    return {
        "table/t/keys": keys,
        "table/t/values": values,
        "table/t/accumulator": np.arange(3, dtype=np.float32)[list(rows.values())]
        if rows
        else np.empty(0, np.float32),
        "table/t/sketch_at": keys[:2],  # no column of the rows
        "dense/m": np.arange(len(rows)),
    }


def difference(before: dict[int, int], after: dict[int, int], whole: bool = False) -> dict[str, np.ndarray]:
    """The increment between two tables. ``whole``: rows that didn't change are in it, too."""
    old, new = export(before), export(after)
    changed = [whole or before.get(key) != row for key, row in after.items()]
    columns = ("table/t/keys", "table/t/values", "table/t/accumulator")
    out = {n: a[np.array(changed, np.bool_)] if n in columns else a for n, a in new.items()}
    gone = before.keys() - after.keys() | ({-9} if whole else set())  # one that never was
    return out | {"table/t/removed": np.array(sorted(gone), old["table/t/keys"].dtype)}


def in_order(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    order = np.argsort(arrays["table/t/keys"])
    of_rows = ("keys", "values", "accumulator")
    return {
        name: (array[order] if name.endswith(of_rows) else array).tobytes() for name, array in arrays.items()
    }


@settings(max_examples=60, deadline=None)
@given(TABLE, TABLE, TABLE, st.booleans(), st.booleans())
def test_increments_put_together_what_they_were_made_from(
    before: dict[int, int], after: dict[int, int], later: dict[int, int], new_table: bool, whole: bool
) -> None:
    full = {"dense/m": export(before)["dense/m"]} if new_table else export(before)
    first = difference({} if new_table else before, after, whole)
    assert in_order(apply(full, first)) == in_order(export(after))
    second = difference(after, later, whole)
    assert in_order(apply(full, first, second)) == in_order(export(later))
