"""Lists of vectors: which list each is in, which come back, and their memory."""

import numpy as np

from serving.index.inverted_lists import Centroids, InvertedLists

CENTROIDS = Centroids(np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32))


def test_a_vector_is_in_the_list_of_its_nearest_centroid() -> None:
    lists = InvertedLists(CENTROIDS)
    vectors = np.array([[2, 1], [1, 2], [np.nan, 0]], np.float32)
    assert lists.put(np.array([0, 5, 9]), vectors) == 3
    assert lists.list_of(np.array([0, 5, 9, 1])).tolist() == [0, 1, 0, -1]
    assert lists.put(np.array([0, 5]), vectors[::-1][1:]) == 2  # both have moved
    assert lists.list_of(np.array([0, 5])).tolist() == [1, 0]
    assert lists.put(np.array([], np.int64), vectors[:0]) == 0


def test_the_nearest_lists_come_first() -> None:
    assert CENTROIDS.nearest(np.array([0.2, 1.0], np.float32), 3).tolist() == [1, 0, 2]


def test_memory_is_that_of_vectors_their_places_and_the_centroids() -> None:
    lists = InvertedLists(CENTROIDS)
    lists.put(np.arange(3), np.ones((3, 2), np.float32))
    assert lists.nbytes == 3 * (2 * 2 + 8 + 8 + 4) + 2 * CENTROIDS.vectors.nbytes
