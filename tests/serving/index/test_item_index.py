"""One contract for every index: it finds what a search through all finds, however the vectors came there."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.arrays.bitmap import Bitmap
from serving.index.inverted_lists import Centroids
from serving.index.item_index import FlatIndex, ItemIndex
from serving.index.ivf_index import IvfIndex

DIM = 5


def ivf(lists: int = 7, probes: int | None = None, room: int = 0) -> IvfIndex:
    centroids = np.random.default_rng(lists).standard_normal((lists, DIM)).astype(np.float32)
    return IvfIndex(Centroids(centroids), probes or lists, room)


MAKERS = {"flat": lambda: FlatIndex(DIM), "ivf": ivf, "one list": lambda: ivf(1)}


@pytest.fixture(params=MAKERS)
def made(request: pytest.FixtureRequest) -> Callable[[], ItemIndex]:
    return MAKERS[request.param]


def brute(vectors: np.ndarray, query: np.ndarray, k: int, wanted: np.ndarray) -> np.ndarray:
    """The k best in order, of equals the smaller number first; products added up as the lists do it."""
    products = np.zeros(len(vectors), np.float32)
    for v in range(DIM):
        products += query[v] * vectors[:, v]
    order = np.lexsort((np.arange(len(vectors)), -products))
    return order[wanted[order]][:k]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(sorted(MAKERS)),
    updates=st.lists(
        st.tuples(st.lists(st.integers(0, 90), min_size=1, max_size=70, unique=True), st.booleans()),
        max_size=7,
    ),
    k=st.integers(0, 80),
    coarse=st.booleans(),
)
def test_it_finds_what_a_search_through_all_finds(
    seed: int, kind: str, updates: list[tuple[list[int], bool]], k: int, coarse: bool
) -> None:
    """Adds, moves, removals, searches, and another index filled from this one, at any time; ``coarse``: many
    are equal."""
    rng, index = np.random.default_rng(seed), MAKERS[kind]()
    vectors, alive = np.zeros((0, DIM), np.float32), np.zeros(0, np.bool_)
    for chosen, again in updates:
        new = rng.standard_normal((len(chosen), DIM)).astype(np.float32)
        new = np.round(new) if coarse else new
        living = rng.random(len(chosen)) < 0.7
        missing = max(0, max(chosen) + 1 - len(vectors))
        vectors = np.concatenate([vectors, np.zeros((missing, DIM), np.float32)])
        alive = np.concatenate([alive, np.zeros(missing, np.bool_)])
        vectors[chosen], alive[chosen] = new, living
        index.set(np.array(chosen), new, living)
        if again:  # made anew beside, in another order
            other = index.empty()
            for part in np.array_split(rng.permutation(len(vectors)), 3):
                other.set(part, vectors[part], alive[part])
            index = other
        wanted = alive & (rng.random(len(vectors)) < 0.8)
        query = rng.standard_normal(DIM).astype(np.float32)
        query = np.round(query) if coarse else query
        indices, products = index.search(query, k, Bitmap.of(wanted))
        expected = brute(vectors, query, k, wanted)
        if kind == "flat":  # FAISS says nothing of the order of equals
            np.testing.assert_allclose(products, (vectors @ query)[expected], atol=1e-5)
            assert wanted[indices].all() and len(set(indices.tolist())) == len(indices)
        else:
            assert indices.tolist() == expected.tolist()
        np.testing.assert_allclose((vectors @ query)[indices], products, atol=1e-5)
        assert len(index) == len(vectors) and (index.vectors == vectors).all()


def test_an_index_of_nothing_finds_nothing(made: Callable[[], ItemIndex]) -> None:
    index, query = made(), np.ones(DIM, np.float32)
    assert len(index.search(query, 5, Bitmap())[0]) == 0
    index.set(np.empty(0, np.int64), np.zeros((0, DIM), np.float32))
    index.set(np.array([2]), np.ones((1, DIM), np.float32))
    assert len(index) == 3 and len(index.empty()) == 0 and index.empty().name == index.name
    assert len(index.search(query, 5, Bitmap(3))[0]) == 0


def test_a_query_that_is_no_number_finds_no_masked_item(made: Callable[[], ItemIndex]) -> None:
    index = made()
    index.set(np.arange(9), np.ones((9, DIM), np.float32))
    wanted = np.arange(9) < 3
    indices, _ = index.search(np.full(DIM, np.nan, np.float32), 9, Bitmap.of(wanted))
    assert wanted[indices].all()


def test_a_vector_that_is_no_number_is_not_found(made: Callable[[], ItemIndex]) -> None:
    index, vectors = made(), np.ones((9, DIM), np.float32)
    vectors[4, 2] = np.nan
    vectors[5] = 1e-44  # nearly nothing: too small to be divided by
    vectors[6] = 0
    index.set(np.arange(9), vectors)
    wanted = Bitmap.of(np.ones(9, np.bool_))
    assert set(index.search(np.ones(DIM, np.float32), 8, wanted)[0].tolist()) == {*range(9)} - {4}
    index.set(np.array([4]), np.full((1, DIM), 2, np.float32))
    assert index.search(np.ones(DIM, np.float32), 1, wanted)[0].tolist() == [4]


@pytest.mark.parametrize("probes", [1, 3, 16])
def test_the_same_centroids_and_vectors_find_the_same_to_the_last_bit(probes: int) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((2_000, DIM)).astype(np.float32)
    alive = rng.random(2_000) < 0.9
    wandered, fresh = ivf(16, probes), ivf(16, probes, 2_000)
    for _ in range(4):  # through other lists, and out of them
        its = rng.permutation(2_000)[:1_500]
        wandered.set(its, rng.standard_normal((1_500, DIM)).astype(np.float32), its % 3 > 0)
    for part in np.array_split(rng.permutation(2_000), 9):
        wandered.set(part, vectors[part], alive[part])
    fresh.set(np.arange(2_000), vectors, alive)
    assert wandered.name == fresh.name
    for k in (1, 40, 300):
        query = rng.standard_normal(DIM).astype(np.float32)
        found = [its.search(query, k, Bitmap.of(alive)) for its in (wandered, fresh)]
        assert found[0][0].tolist() == found[1][0].tolist()
        assert found[0][1].tobytes() == found[1][1].tobytes()


def test_a_search_looks_further_where_a_filter_took_what_is_near() -> None:
    index, rng = ivf(16, probes=1), np.random.default_rng(3)
    index.set(np.arange(400), rng.standard_normal((400, DIM)).astype(np.float32))
    query = rng.standard_normal(DIM).astype(np.float32)
    wanted = Bitmap.of(np.ones(400, np.bool_))
    wanted.take(index.search(query, 20, wanted)[0][:20].copy())
    near = index.lists.centroids.nearest(query, 1)
    wanted.take(np.flatnonzero(index.lists.list_of(np.arange(400)) == near[0]))
    assert len(index.search(query, 30, wanted)[0]) == 30


@pytest.mark.parametrize("rough", [False, True])
def test_several_queries_find_what_each_finds_alone(made: Callable[[], ItemIndex], rough: bool) -> None:
    """Also where few lists are probed, where some find too little there, and beside a broken query."""
    rng, wanted = np.random.default_rng(7), Bitmap.of(np.arange(400) % 9 == 0)
    queries = np.vstack([rng.standard_normal((4, DIM)), np.full((1, DIM), np.nan)])
    for index, k in ((made(), 9), (ivf(16, probes=2), 3), (ivf(16, probes=2), 30)):
        index.set(np.arange(400), rng.standard_normal((400, DIM)).astype(np.float32))
        several = index.search_each(queries.astype(np.float32), k, wanted, rough)
        for query, (indices, products) in zip(queries.astype(np.float32), several, strict=True):
            alone = index.search(query, k, wanted, rough)
            np.testing.assert_array_equal(indices, alone[0])
            np.testing.assert_array_equal(products, alone[1])
            assert len(indices) == (k if np.isfinite(query).all() else 0)
        assert index.search_each(queries[:0].astype(np.float32), k, wanted, rough) == []


def test_how_near_the_lists_of_the_best_are_says_what_a_search_would_find() -> None:
    index, rng = ivf(16, probes=16), np.random.default_rng(5)
    index.set(np.arange(900), rng.standard_normal((900, DIM)).astype(np.float32))
    wanted, query = Bitmap.of(np.ones(900, np.bool_)), np.ones(DIM, np.float32)
    best, ranks = index.search(query, 50, wanted)[0], index.ranks(query, 50, wanted)
    for probes in (2, 5, 11):
        found = index.lists.search(index.vectors, query, 50, wanted, probes)[0]
        assert set(found.tolist()) >= set(best[ranks < probes].tolist())
        assert not set(found.tolist()) & set(best[ranks >= probes].tolist())


def test_lists_take_little_more_than_the_vectors() -> None:
    rng, dim, items = np.random.default_rng(0), 32, 20_000
    index = IvfIndex(Centroids(rng.standard_normal((64, dim)).astype(np.float32)), 4, items)
    vectors = rng.standard_normal((items, dim)).astype(np.float32)
    index.set(np.arange(items), vectors)
    assert index.nbytes < 2.25 * vectors.nbytes
    before = index.nbytes
    for _ in range(3):
        index.set(np.arange(items), rng.permutation(vectors))
    assert index.nbytes == before and index.lists._index.ntotal == items


def test_of_equals_the_smallest_numbers_are_found() -> None:
    index, order = ivf(), np.random.default_rng(0).permutation(400)
    index.set(order, np.ones((400, DIM), np.float32))
    wanted = Bitmap.of(np.ones(400, np.bool_))
    wanted.take(np.array([2, 3]))
    found = index.search(np.ones(DIM, np.float32), 5, wanted)[0]
    assert found.tolist() == [0, 1, 4, 5, 6]


def test_a_rough_search_looks_through_an_eighth_of_the_lists_and_a_few_at_least() -> None:
    index, rng = ivf(96, probes=90), np.random.default_rng(0)
    index.set(np.arange(2_000), rng.standard_normal((2_000, DIM)).astype(np.float32))
    query, wanted = np.ones(DIM, np.float32), Bitmap.of(np.ones(2_000, np.bool_))
    for rough, probes in ((True, 12), (False, 90)):
        expected = index.lists.search(index.vectors, query, 20, wanted, probes)[0]
        assert index.search(query, 20, wanted, rough)[0].tolist() == expected.tolist()
    assert [ivf(96, probes=n).probes_for(rough=True) for n in (1, 8, 40, 64, 80)] == [1, 8, 8, 8, 10]
    assert ivf(16, probes=16).probes_for(rough=True) == 16


@pytest.mark.parametrize("equal", [400, 30_000])
def test_many_equal_vectors_are_found_by_number_in_linear_work(equal: int) -> None:
    rng, index = np.random.default_rng(1), ivf(7, probes=3)
    vectors = np.round(rng.standard_normal((40_000, DIM))).astype(np.float32)
    vectors[:equal] = vectors[0]
    index.set(rng.permutation(40_000), vectors[rng.permutation(40_000)])
    order = rng.permutation(40_000)
    index.set(order, vectors[order])
    wanted = Bitmap.of(np.arange(40_000) % 3 > 0)
    for query in (vectors[0], np.zeros(DIM, np.float32), rng.standard_normal(DIM).astype(np.float32)):
        lists = index.lists.centroids.nearest(query, 3)
        probed = np.isin(index.lists.list_of(np.arange(40_000)), lists) & wanted.mask()
        expected = brute(vectors, query, 300, probed)
        assert index.search(query, 300, wanted)[0].tolist() == expected.tolist()


def test_removed_vectors_are_not_scanned_and_a_large_one_is_found() -> None:
    rng, index = np.random.default_rng(2), ivf(7, probes=7)
    vectors = rng.standard_normal((2_000, DIM)).astype(np.float32)
    vectors[77] *= 3_000
    alive = np.arange(2_000) % 2 > 0
    index.set(np.arange(2_000), vectors)
    index.set(np.flatnonzero(~alive), vectors[~alive], np.zeros((~alive).sum(), np.bool_))
    assert index.lists._index.invlists.list_size(7) == 1_000
    for _ in range(20):
        query = rng.standard_normal(DIM).astype(np.float32)
        assert (
            index.search(query, 50, Bitmap.of(alive))[0].tolist() == brute(vectors, query, 50, alive).tolist()
        )


@pytest.mark.parametrize("size", [1e-9, 3e-5, 1.0, 3e4, 1e5, 1e30])
def test_numbers_that_lists_round_or_cannot_hold_change_no_hit(size: float) -> None:
    """The lists hold float16 numbers: subnormal below 6e-5, infinite above 65,504."""
    rng, index = np.random.default_rng(5), ivf(3)
    vectors = (size * rng.uniform(0.999, 1.001, (3_000, DIM))).astype(np.float32)
    index.set(np.arange(len(vectors)), vectors)
    query = rng.standard_normal(DIM).astype(np.float32)
    wanted = np.ones(len(vectors), np.bool_)
    indices, _ = index.search(query, 20, Bitmap.of(wanted))
    assert indices.tolist() == brute(vectors, query, 20, wanted).tolist()
