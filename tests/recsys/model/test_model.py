from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.config.system_config import ModelConfig, tables_of
from recsys.events.hashing import uniforms
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import read_block
from recsys.model.batch import Batch, assemble
from recsys.model.model import Lookup, build_model, lookup_of, unique_keys, with_missing_row
from recsys.model.ranker import dense_start
from recsys.model.retrieval_vectors import field_vectors
from tests.support.serving.request_batches import batch_of
from tests.support.training.small_feed import FEATURES, SCHEMA, block, toy_config

CONFIG = toy_config().model


def batch(*counts: int) -> Batch:
    return batch_of(FEATURES, [read_block(block(n, i), FEATURES) for n, i in enumerate(counts)])


def rows_of(lookup: Lookup) -> dict[str, np.ndarray]:
    """Rows that are a hash of their keys, so that they don't hang on the batch."""
    return {
        t.name: (uniforms(1, lookup.keys[t.name], t.dim) - 0.5).astype(np.float32) for t in tables_of(CONFIG)
    }


@pytest.mark.parametrize(
    ("keys", "unique", "at"),
    [
        ([5, 3, 5], [5, 3], [0, 1, 0]),
        ([0, 0], [], [0, 0]),
        ([], [], []),
        ([0, 7], [7], [1, 0]),
        ([-4, 0, 9, -4], [-4, 9], [0, 2, 1, 0]),
        ([-9, -4], [-9, -4], [0, 1]),
        ([-9, 0], [-9], [0, 1]),
        ([2**63 - 1, -(2**63), 0], [2**63 - 1, -(2**63)], [0, 1, 2]),
    ],
)
def test_keys_areunique_keys_and_0_stands_after_the_last(
    keys: list[int], unique: list[int], at: list[int]
) -> None:
    found, places = unique_keys(np.array(keys[:1], np.int64), np.array(keys[1:], np.int64))
    assert found.tolist() == unique and places.tolist() == at


@pytest.mark.parametrize("counts", [(1,), (4,), (3, 1, 2)])
def test_a_lookup_finds_every_place_its_row(counts: tuple[int, ...]) -> None:
    its = batch(*counts)
    lookup = lookup_of(its)

    def check(table: str, at: torch.Tensor, keys: np.ndarray) -> None:
        known = np.append(lookup.keys[table], 0)
        assert (known[at.numpy()] == keys).all()
        assert 0 not in lookup.keys[table]
        assert len(np.unique(lookup.keys[table])) == len(lookup.keys[table])

    check("features", lookup.slot_index, its.sparse.values().numpy())
    check("features", lookup.history_index, its.history_BTH)
    check("items", lookup.item_index, its.item_B)
    check("items", lookup.history_item_index, its.history_BTH[..., 0])
    check("users", lookup.user_index, its.user_B)


def test_dense_parameters_travel_as_one_vector() -> None:
    model, other = build_model(FEATURES, CONFIG), build_model(FEATURES, replace(CONFIG, seed=5))
    flat = model.read_dense()
    assert flat.dtype == np.float32 and len(flat) == model.dense_size()
    assert not (other.read_dense() == flat).all()
    other.write_dense(flat)
    assert other.read_dense().tobytes() == flat.tobytes()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    flat[:] = 0  # what was written is a copy
    assert other.read_dense().any() and model.read_dense().any()


@pytest.mark.parametrize("length", [0, 3])
def test_a_vector_of_another_model_is_refused(length: int) -> None:
    model = build_model(FEATURES, CONFIG)
    said = f"dense has {length} numbers, this model {model.dense_size()}"
    with pytest.raises(ValueError, match=said):
        model.write_dense(np.zeros(length, np.float32))


def test_models_of_other_features_have_other_sizes() -> None:
    sizes = {
        build_model(FeatureSet(SCHEMA, kind, 4), CONFIG).dense_size()
        for kind in ("ids", "ids+history", "all")
    }
    assert len(sizes) == 3


def naive_logits(its: Batch, rows: dict[int, torch.Tensor], model: torch.nn.Module) -> torch.Tensor:
    """Each example by itself: means of rows picked one by one."""
    size, dim = len(its), CONFIG.dim
    values, lengths = its.sparse.values().tolist(), its.sparse.lengths().tolist()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    zero = torch.zeros(dim + 1)

    def mean(keys: list[int]) -> torch.Tensor:
        there = [rows[k] for k in keys if k]
        return torch.stack(there).mean(0) if there else zero

    out = []
    for b in range(size):
        pooled = [
            mean(values[starts[s * size + b] : starts[s * size + b + 1]])
            for s in range(len(its.sparse.keys()))
        ]
        h = b if len(its.history_BTH) > 1 else 0
        history = [mean(entry) for entry in its.history_BTH[h].tolist()]
        outcomes = torch.tensor(its.outcomes_BTO[h])[None]
        dense = torch.tensor(its.dense_BF[b])[None]
        out.append(model.ranker(torch.stack(pooled)[None], torch.stack(history)[None], outcomes, dense))
    return torch.cat(out)


@pytest.mark.parametrize("counts", [(5,), (2, 3, 1)])
def test_logits_and_gradients_are_those_of_each_example_by_itself(counts: tuple[int, ...]) -> None:
    model, its = build_model(FEATURES, CONFIG), batch(*counts)
    lookup = lookup_of(its)
    keys = lookup.keys["features"].tolist()
    table = with_missing_row(rows_of(lookup)["features"]).requires_grad_()
    logits = model.rank(its, lookup, table)
    (logits**2).sum().backward()
    fused, dense = table.grad, model.dense_gradient().copy()
    model.zero_grad()
    single = {k: table.detach()[i].clone().requires_grad_() for i, k in enumerate(keys)}
    naive = naive_logits(its, single, model)
    (naive**2).sum().backward()
    np.testing.assert_allclose(logits.detach(), naive.detach(), atol=1e-5)
    np.testing.assert_allclose(dense, model.dense_gradient(), rtol=1e-3, atol=1e-4)
    assert fused is not None
    for i, k in enumerate(keys):
        grad = single[k].grad
        expected = torch.zeros_like(fused[i]) if grad is None else grad
        np.testing.assert_allclose(fused[i], expected, atol=1e-4)


def test_vectors_of_users_and_items_are_found_by_their_keys() -> None:
    model, one, many = build_model(FEATURES, CONFIG), batch(3), batch(3, 2)
    found = []
    for its in (one, many):
        lookup = lookup_of(its)
        rows = {name: with_missing_row(values) for name, values in rows_of(lookup).items()}
        users = model.user_vectors(its, lookup, rows["users"], rows["items"]).detach()
        found.append((users, model.item_vectors(its, lookup, rows["items"]).detach()))
    (users, items), (more_users, more_items) = found
    assert users.shape == items.shape == (3, CONFIG.vector_dim)
    np.testing.assert_allclose(more_users[:3], users, atol=1e-6)
    np.testing.assert_allclose(more_items[:3], items, atol=1e-6)
    assert not torch.equal(more_users[3], more_users[0])


def test_vectors_of_items_are_where_the_model_reads_them() -> None:
    schema = replace(SCHEMA, vectors=(("photo", 2),))
    every = Declared(entities=("item",), item_age=True, near=True, position=True, trend=True)
    for declared in (Declared(), every, replace(every, list_context=("item",))):
        features = FeatureSet(schema, history=2, declared=declared)
        start = features.span("vectors").start
        assert features.dense_names[start : start + 2] == ("item.photo[0]", "item.photo[1]")
        model = build_model(features, CONFIG)
        dense = np.zeros((1, len(features.dense_names)), np.float32)
        dense[0, start : start + 2] = 3.0, -1.0
        zeros = [np.zeros((n, width), np.int64) for n, width in (
            (1, features.user_columns), (1, features.item_columns), (2, features.history_keys))]  # fmt: skip
        outcomes = np.zeros((1, 2, features.outcomes), np.float32)
        its = assemble(features, zeros[0], zeros[1], zeros[2][None], outcomes, dense)
        rows = torch.zeros((1, 4))
        found = model.item_vectors(its, lookup_of(its), rows)
        expected = field_vectors(dense[:, start : start + 2], features.vector_fields, 4)
        assert np.allclose(found.detach().numpy(), expected) and expected.any()


def test_columns_of_lists_say_nothing_until_lists_have_taught_them() -> None:
    features = replace(FEATURES, declared=Declared(whole_list=True))
    model = build_model(features, ModelConfig(dim=4, vector_dim=4, hidden=(8,)))
    first, shape = model.ranker.get_parameter("layers.0.weight"), model.ranker.shape
    dense = first[:, dense_start(shape) : dense_start(shape) + shape.dense]
    assert not dense[:, -features.list_columns :].any() and dense[:, : -features.list_columns].all()


def test_where_lists_are_compared_numbers_enter_the_outputs_directly() -> None:
    features = replace(FEATURES, declared=Declared(whole_list=True))
    ranker = build_model(features, ModelConfig(dim=4, vector_dim=4, hidden=(8,))).ranker
    assert not ranker.direct_LF.any() and ranker.direct_LF.shape[1] % 16 == 0
    dense = torch.ones((1, len(features.dense_names)))
    pooled = torch.zeros((1, ranker.shape.slots, 5))
    history = torch.zeros((1, ranker.shape.history, 5))
    outcomes = torch.zeros((1, ranker.shape.history, ranker.shape.outcomes))
    before = ranker(pooled, history, outcomes, dense)
    with torch.no_grad():
        ranker.direct_LF.fill_(0.01)
    added = ranker(pooled, history, outcomes, dense) - before
    assert np.allclose(added.detach().numpy(), 0.04 * ranker.shape.dense, atol=1e-4)
    plain = build_model(FEATURES, ModelConfig(dim=4, vector_dim=4, hidden=(8,))).ranker
    assert not plain.shape.direct and not plain.direct_LF.numel()
