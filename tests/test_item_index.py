import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.bitmap import Bitmap
from serving.item_index import ItemIndex

DIM = 4


def brute(vectors: np.ndarray, query: np.ndarray, k: int, wanted: np.ndarray) -> np.ndarray:
    """The products of the k best, best first."""
    products = (vectors @ query)[wanted]
    return np.sort(products)[::-1][:k]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    updates=st.lists(
        st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True), max_size=6
    ),
    k=st.integers(0, 50),
)
def test_it_finds_what_a_search_through_all_finds(
    seed: int, updates: list[list[int]], k: int
) -> None:
    rng = np.random.default_rng(seed)
    index, vectors = ItemIndex(DIM), np.zeros((0, DIM), np.float32)
    for chosen in updates:
        new = rng.standard_normal((len(chosen), DIM)).astype(np.float32)
        index.set(np.array(chosen), new)
        missing = max(chosen) + 1 - len(vectors)
        vectors = np.concatenate([vectors, np.zeros((max(0, missing), DIM), np.float32)])
        vectors[chosen] = new
        wanted = rng.random(len(vectors)) < 0.6
        query = rng.standard_normal(DIM).astype(np.float32)
        indices, products = index.search(query, k, Bitmap.of(wanted))
        np.testing.assert_allclose(products, brute(vectors, query, k, wanted), atol=1e-5)
        assert wanted[indices].all() and len(set(indices.tolist())) == len(indices)
        np.testing.assert_allclose((vectors @ query)[indices], products, atol=1e-5)
        assert len(index) == len(vectors) and (index.vectors == vectors).all()


def test_an_index_of_nothing_finds_nothing() -> None:
    index = ItemIndex(DIM)
    assert len(index.search(np.ones(DIM, np.float32), 5, Bitmap())[0]) == 0
    index.set(np.empty(0, np.int64), np.zeros((0, DIM), np.float32))
    index.set(np.array([2]), np.ones((1, DIM), np.float32))
    assert len(index) == 3
    assert len(index.search(np.ones(DIM, np.float32), 5, Bitmap(3))[0]) == 0


def test_a_query_that_is_no_number_finds_no_masked_item() -> None:
    index = ItemIndex(DIM)
    index.set(np.arange(9), np.ones((9, DIM), np.float32))
    wanted = np.arange(9) < 3
    indices, _ = index.search(np.full(DIM, np.nan, np.float32), 9, Bitmap.of(wanted))
    assert wanted[indices].all()
