"""The bench of the index runs, small, and says what it should; no time is asserted."""

import numpy as np
import pytest

from benchmarks.index import bench_index, index_figures
from benchmarks.index.synthetic_catalogue import plan


@pytest.mark.slow
def test_the_index_bench_measures_recall_while_vectors_move() -> None:
    found = bench_index.measure_index(1_500, 2, 0)
    ours = found["figures"]
    assert ours["index"] != "flat" and ours["lists"] > 1 and ours["rebuild_s"] > 0
    assert 0.9 < ours["recall_at_300_min"] <= ours["recall_at_300"] <= 1


def test_the_best_are_found_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(70_000, 4)), rng.normal(size=(2, 4))
    alive = rng.random(70_000) < 0.5
    for query, found in zip(queries, index_figures.best(vectors, queries, alive), strict=True):
        products = np.where(alive, vectors @ query, -np.inf)
        assert found.tolist() == np.argsort(-products, kind="stable")[:300].tolist()


def test_vectors_look_as_training_leaves_them() -> None:
    from recsys.model.retrieval_vectors import content_vectors

    its, n = plan(4_000, 32, 0), np.arange(4_000)
    keys = np.stack([its.author + 1, its.topic + 10**6, np.where(its.second < 0, 0, its.second + 10**6)], 1)
    vectors = content_vectors(keys, 32) + its.rows(n)
    norms = np.percentile(np.linalg.norm(vectors, axis=1), [1, 50, 99])
    np.testing.assert_allclose(norms, [0.65, 0.92, 1.93], rtol=0.1)
    share = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(np.cumsum(share / share.sum())[[3, 7, 15]], [0.33, 0.51, 0.74], atol=0.05)
    sides = its.user_sides(vectors, its.liked(30))
    assert sides.shape == (30, 32) and its.item(3, 9).item_id == "v9"
    moved = its.moves(vectors[:9]) - vectors[:9]
    assert 0.01 < np.linalg.norm(moved, axis=1).mean() < 0.2
