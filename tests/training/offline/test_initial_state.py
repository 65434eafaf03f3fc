from pathlib import Path

import numpy as np
import pytest

from parameter_server.storage.snapshots import write_part
from recsys.config.system_config import tables_of
from recsys.model.model import build_model
from tests.support.training.offline_examples import FOUR, MODEL, toy_blocks, toy_trainer
from tests.support.training.small_feed import FEATURES
from training.candidates.registry import SnapshotRef
from training.continual.learner import Learner
from training.offline.initial_state import (
    Ancestor,
    build_trainer,
    count_vocabularies,
    load_ancestor,
    table_maker,
)
from training.offline.sharding import Sharding
from training.offline.tables import OwnTable

PARENT = SnapshotRef("main", 0, 7, "0" * 64)


def test_rows_go_on_from_an_ancestor_but_not_those_of_who_is_forgotten() -> None:
    blocks = toy_blocks(2)
    before = toy_trainer(blocks)
    for number in range(2):
        before.learn(blocks.read(number))
    arrays = before.export()
    gone = arrays["table/users/keys"][:3].tolist()
    later, learner = toy_blocks(2, first=500), Learner(build_model(FEATURES, MODEL))
    ancestor = Ancestor(PARENT, [arrays], gone)
    vocabularies = count_vocabularies(later, learner, tables_of(MODEL), ancestor)
    trainer = build_trainer(FEATURES, MODEL, FOUR, vocabularies, OwnTable, ancestor)
    after = trainer.export()
    kept = np.isin(arrays["table/items/keys"], after["table/items/keys"])
    assert kept.all() and (after["dense/m"] == arrays["dense/m"]).all()
    for name in ("features", "users"):
        at = {key: row for row, key in enumerate(after[f"table/{name}/keys"].tolist())}
        for row, key in enumerate(arrays[f"table/{name}/keys"].tolist()):
            if key not in gone:
                assert np.array_equal(
                    after[f"table/{name}/values"][at[key]], arrays[f"table/{name}/values"][row]
                )
            elif key in at:  # they came back, and begin anew
                assert after[f"table/{name}/accumulator"][at[key]] == 0
    assert any(key in after["table/users/keys"] for key in gone), "some of them came back"


def test_a_worker_loads_its_rows_of_an_ancestor_alone(tmp_path: Path) -> None:
    arrays = toy_trainer(toy_blocks(2)).export()
    write_part(tmp_path, "main", 0, 7, 0, 1, arrays, {"step": 7})
    dense, rows = len(arrays["dense/values"]), 0
    for rank in range(3):
        sharding = Sharding(4, rank, 3)
        ancestor = load_ancestor(tmp_path, "main", MODEL, dense, sharding=sharding)
        keys = ancestor.table("features")["keys"]
        assert (sharding.owner_of(keys) == rank).all()
        assert np.array_equal(ancestor.dense["values"], arrays["dense/values"])
        rows += len(keys)
    assert rows == len(arrays["table/features/keys"])


def test_tables_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="'gold', expected 'torchrec' or 'own'"):
        table_maker("gold")
