"""Retrieval of two models over one catalogue, against brute force by the definition."""

from dataclasses import replace

import numpy as np
import pytest

from parameter_server.storage.snapshots import adopt, complete_steps, epochs, latest, prune, write_part
from recsys.config.system_config import ModelConfig
from recsys.events.event_types import Item
from recsys.events.hashing import key_of
from recsys.features.catalogue import Catalogue
from recsys.features.counters import CounterTable
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.session import Session
from recsys.model.model import build_model, lookup_of
from tests.support.serving.request_batches import batch_of
from training.candidates import retrieval_comparison as recall
from training.candidates.retrieval_comparison import Search, Weights, sorted_rows

FEATURES = FeatureSet(FEED_SCHEMA)
CONFIG = ModelConfig(dim=4, vector_dim=8, hidden=(8,))
ITEMS, VIEWERS = 500, 30


def zeros(table: str, keys: np.ndarray) -> np.ndarray:
    return np.zeros((len(keys), 8), np.float32)


@pytest.fixture(scope="module")
def search() -> tuple[Search, Weights, Weights]:
    catalogue = Catalogue(FEATURES)
    for n in range(ITEMS):
        catalogue.apply(Item(time_ms=1, item_id=f"i{n}", fields={"tags": [f"t{n}"]}))
    builder, draw = FeatureBuilder(FEATURES), np.random.default_rng(0)
    wanted = draw.integers(0, ITEMS, VIEWERS)
    requests = [
        builder.build(Session(f"u{v}", FEATURES, 100), "feed", {}, wanted[v : v + 1], catalogue,
                      CounterTable(len(FEATURES.kinds), 16), 1_000)
        for v in range(VIEWERS)
    ]  # fmt: skip
    model, batch = build_model(FEATURES, CONFIG), batch_of(FEATURES, requests)
    its = Search(FEATURES, 8, catalogue, batch, lookup_of(batch))
    content = recall._content(FEATURES, catalogue, np.arange(ITEMS), 8)
    users = np.array([key_of("user", f"u{v}") for v in range(VIEWERS)], np.int64)
    # A viewer's row is the content of the item that they want: it is their nearest.
    tables = {"users": (users, 10 * content[wanted]), "items": (users[:0], content[:0])}
    good = Weights(sorted_rows(tables, zeros), model.read_dense(), model)
    turned = tables | {"users": (users, -10 * content[wanted])}
    other = build_model(FEATURES, replace(CONFIG, dim=2, hidden=(5,)))  # as of another size
    bad = Weights(sorted_rows(turned, zeros), other.read_dense(), other)
    return its, good, bad


def test_who_knows_the_viewers_finds_what_they_want_and_who_is_turned_does_not(
    search: tuple[Search, Weights, Weights],
) -> None:
    its, good, bad = search
    assert its.known_E.all()
    assert its.run(good).hits_E.all()
    assert its.run(bad).hits_E.mean() < 0.2


def test_the_same_ten_for_everybody_shows(search: tuple[Search, Weights, Weights]) -> None:
    its, good, _ = search
    one = replace(good, rows=lambda table, keys: zeros(table, keys) + (table == "users") * 5)
    assert its.run(one).picks == pytest.approx(1.0)
    assert its.run(good).picks < 0.4


def test_rows_of_a_snapshot_are_found_by_key_and_others_are_initial() -> None:
    keys = np.array([7, -3, 40], np.int64)
    rows = sorted_rows({"items": (keys, np.arange(24, dtype=np.float32).reshape(3, 8))}, zeros)
    found = rows("items", np.array([40, 5, -3, 7], np.int64))
    assert found[:, 0].tolist() == [16, 0, 8, 0] and (found[1] == 0).all()


def test_a_snapshot_becomes_that_of_another_epoch_without_a_copy_and_the_way_back_stays(tmp_path) -> None:
    arrays = {"table/a/keys": np.arange(4), "table/a/values": np.ones((4, 2), np.float32)}
    for epoch, step in ((0, 5), (0, 9), (1, 9), (1, 12), (1, 15)):
        write_part(tmp_path, "main", epoch, step, 0, 1, arrays, {"step": step})
    adopt(tmp_path, "main", (0, 9), 2)
    adopt(tmp_path, "main", (0, 9), 2)  # a kill made it come again
    found = latest(tmp_path, "main", 2).snapshot
    assert found is not None and (found.epoch, found.step) == (2, 9)
    assert (found.read(0)["table/a/values"] == 1).all()
    file = found.folder / "part-00000-of-00001" / "arrays.safetensors"
    assert file.stat().st_nlink > 1
    assert epochs(tmp_path, "main") == [0, 1, 2]
    prune(tmp_path, "main", 1)
    assert complete_steps(tmp_path, "main", 2) == [9]
    assert complete_steps(tmp_path, "main", 1)[-1] == 15  # the line may go back there
