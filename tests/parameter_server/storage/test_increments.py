"""An increment makes of what was there what is there now, whatever happened between."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import Shard, digest_of_shards
from parameter_server.storage.increments import REMOVED, apply, difference
from tests.support.small_line import DENSE, LANES, toy_spec, work

TABLE = st.dictionaries(st.integers(-3, 8), st.integers(0, 2), max_size=8)


def export(rows: dict[int, int]) -> dict[str, np.ndarray]:
    keys = np.array(list(rows), np.int64)
    value = np.array([0.0, -0.0, np.nan], np.float32)[list(rows.values())] if rows else keys[:0]
    values = np.repeat(np.asarray(value, np.float32)[:, None], 3, 1)
    return {
        "table/t/keys": keys,
        "table/t/values": values,
        "table/t/accumulator": np.arange(3, dtype=np.float32)[list(rows.values())] if rows
        else np.empty(0, np.float32),
        "table/t/sketch_at": keys[:2],  # no column of the rows
        "dense/m": np.arange(len(rows)),
    }  # fmt: skip


def in_order(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    order = np.argsort(arrays["table/t/keys"])
    of_rows = ("keys", "values", "accumulator")
    return {
        name: (array[order] if name.endswith(of_rows) else array).tobytes()
        for name, array in arrays.items()
    }


@settings(max_examples=60, deadline=None)
@given(TABLE, TABLE, TABLE, st.booleans())
def test_increments_put_together_what_they_were_made_from(
    before: dict[int, int], after: dict[int, int], later: dict[int, int], new_table: bool
) -> None:
    old, new = export(before), export(after)
    if new_table:
        old = {"dense/m": old["dense/m"]}
    increment = difference(old, new)
    assert in_order(apply(old, increment)) == in_order(new)
    newest = export(later)
    assert in_order(apply(old, increment, difference(new, newest))) == in_order(newest)
    assert difference(new, apply(old, increment))["table/t/keys"].size == 0
    if not new_table:
        changed = {key for key in after if before.get(key) != after[key]}
        assert set(increment["table/t/keys"].tolist()) == changed
        gone = set(increment[f"table/t/{REMOVED}"].tolist())
        assert gone == before.keys() - after.keys()


def test_a_shard_comes_back_from_a_full_export_and_increments() -> None:
    spec = toy_spec(delta_format="fp16", delta_bytes=120, settle_every=17)
    line = LocalClient.fresh(spec, DENSE)
    arrays: dict[str, np.ndarray] = {}
    for until in (7, 13, 30):  # rows are admitted, expire and are held back meanwhile
        work(line, list(range(LANES)), until)
        exported, meta = line.shards[0].export()
        arrays = apply(arrays, difference(arrays, exported)) if arrays else exported
        again = Shard(spec, DENSE)
        again.load([arrays], meta)
        assert again.digest() == line.shards[0].digest()
        assert digest_of_shards([again]) == digest_of_shards(line.shards)
