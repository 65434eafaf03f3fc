"""The study of compression: a form's store and product give what its arrays say."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.studies.promotion import student_arms
from benchmarks.studies.promotion.compressed_models import (
    DenseForm,
    LowRankRows,
    PrunedRows,
    dense_pruned,
    first_layer_by,
    low_rank,
    pruned,
)
from benchmarks.studies.promotion.study_compression import FULL, INT8, figures_of, forms_of, measure
from recsys.config.system_config import ModelConfig, TableConfig, tables_of
from recsys.model.model import build_model
from serving.ranking.scoring import probabilities
from serving.replica.row_store import RowStore
from tests.support.training.offline_examples import MODEL, toy_blocks
from tests.support.training.small_feed import FEATURES
from training.offline.examples import concatenated
from training.offline.loop import Plan

MODEL_16 = replace(MODEL, dim=16, hidden=(64, 16))
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_factors_of_full_rank_are_the_matrix_and_the_best_numbers_stay() -> None:
    matrix = normal(40, 6)
    a, b = low_rank(matrix, 6)
    assert np.allclose(a @ b, matrix, atol=1e-5) and low_rank(matrix, 2)[0].shape == (40, 2)
    kept = pruned(matrix, 0.8)
    assert np.count_nonzero(kept) == 48
    assert np.abs(kept[kept != 0]).min() >= np.abs(matrix[kept == 0]).max()


def test_stores_give_the_rows_that_their_arrays_say() -> None:
    keys, values = np.arange(1, 31), normal(30, 17)
    table = TableConfig("features", 17, 0.1)
    asked = np.array([30, 1, 7])
    a, b = low_rank(values[:, :-1], 4)
    small = LowRankRows(table, 0, keys, values, 4)
    assert np.allclose(small.lookup(asked)[:, :-1], (a @ b)[asked - 1], atol=1e-5)
    few = PrunedRows(keys, values, 0.5)
    assert np.array_equal(few.lookup(asked)[:, :-1], pruned(values[:, :-1], 0.5)[asked - 1])
    for store in (small, few):
        assert np.array_equal(store.lookup(asked)[:, -1], values[asked - 1, -1])
        assert len(store) == 30
    assert not few.lookup(np.array([99])).any()  # without a row


def doubled(form: DenseForm) -> DenseForm:
    """The form with a product of twice the size."""
    return replace(form, product=lambda own: lambda x: 2 * form.product(own)(x))


def test_a_form_s_product_ranks_as_its_weight_written_out() -> None:
    network = build_model(FEATURES, MODEL_16)
    stores = {
        table.name: RowStore(table, 0) for table in tables_of(MODEL_16) if table.name == "features"
    }
    examples = concatenated(toy_blocks(5).blocks)
    arrays = {
        "dense/averaged": network.read_dense(),
        "table/features/keys": np.arange(1, 31), "table/features/values": normal(30, 17),
    }  # fmt: skip
    (request,) = student_arms.requests_of(FEATURES, examples, 1)
    forms = forms_of(MODEL_16, network, arrays | {"table/items/values": normal(1, 1)})
    for name in ("first layer, rank 16", "first layer, 50% pruned"):
        form = forms[name]
        network.write_dense(form.arrays["dense/averaged"])
        plain = probabilities(network, stores, [request])
        assert form.dense is not None
        with first_layer_by(network, form.dense):
            ranked = probabilities(network, stores, [request])
        assert np.allclose(ranked, plain, atol=1e-5)
        # Whether its bits differ depends on the processor; that it is used shows in another product.
        with first_layer_by(network, doubled(form.dense)):
            assert not np.allclose(probabilities(network, stores, [request]), plain, atol=1e-5)
    assert dense_pruned(normal(8, 10), 0.5).nbytes == 40 * 6 + 36


@pytest.mark.slow
def test_all_forms_are_judged_beside_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_arms, "BLOCK", 24)
    examples = concatenated(toy_blocks(5).blocks)
    run = measure(FEATURES, examples, 96, Plan(last=1, epochs=1, step_examples=16), 0)
    figures = {row["form"]: row for row in figures_of([run])["forms"]}
    assert list(figures)[:2] == [FULL, INT8] and figures[FULL]["difference"] == 0
    assert figures["rows, rank 4"]["row_bytes"] < figures[FULL]["row_bytes"]
    assert all(row["us"] > 0 for row in figures.values())
    assert ModelConfig().dim == 16  # a mask of 16 bits
