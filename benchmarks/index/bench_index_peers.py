"""FAISS's indexes under the moves of ``recsys bench index``, each changed in the way that it supports.

``flat``      searches all vectors; updated in place
``ivf_flat``  lists; ``update_vectors`` with a direct map of an array. It can't remove: a direct map of a
              hashtable can, but can't update (``ivf_flat_hashtable`` removes and adds instead)
``ivf_sq8``   the same lists with vectors as bytes
``hnsw``      a graph: it can neither move nor remove a vector, so it answers from the original vectors

Those with lists have as many as our index, and probe as many as find 0.97 of the best 300 at the start; the
graph searches as far as that takes, or 2,048 vectors.
"""

import time
from typing import Any, Final

import faiss
import numpy as np

from benchmarks.index import index_figures as ours
from serving.index.faiss_centroids import lists_for

_MOST: Final = 200_000  # in a graph
_WHY = {"hnsw": "no: neither moves nor removes; recall is of what it was built from"}


def measure_peers(vectors: Any, moves: Any, queries: Any) -> dict[str, Any]:
    faiss.omp_set_num_threads(1)
    alive = np.ones(len(vectors), np.bool_)
    exact = [ours.best(v, queries, alive) for v in (vectors, moves.final)]
    return {name: _peer(name, vectors, moves, queries, exact) for name in _PEERS}


def _flat(vectors: Any, lists: int) -> Any:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _ivf(kind: str, direct_map: int) -> Any:
    def make(vectors: Any, lists: int) -> Any:
        index: Any = faiss.index_factory(
            vectors.shape[1], f"IVF{lists},{kind}", faiss.METRIC_INNER_PRODUCT
        )
        index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = 48, 1
        index.train(vectors)
        index.add(vectors)
        index.set_direct_map_type(direct_map)
        return index

    return make


def _hnsw(vectors: Any, lists: int) -> Any:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 64
    index.add(vectors)
    return index


def _write(index: Any, which: Any, to: Any) -> None:
    flat = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    flat.reshape(index.ntotal, index.d)[which] = to


def _replace(index: Any, which: Any, to: Any) -> None:
    index.remove_ids(faiss.IDSelectorArray(which))
    index.add_with_ids(to, which)


def _update(index: Any, which: Any, to: Any) -> None:
    index.update_vectors(which, to)


_LIBRARY: Any = faiss  # whose stubs lack DirectMap
_ARRAY, _HASHTABLE = _LIBRARY.DirectMap.Array, _LIBRARY.DirectMap.Hashtable
_PEERS: dict[str, tuple[Any, Any]] = {
    "flat": (_flat, _write),
    "ivf_flat": (_ivf("Flat", _ARRAY), _update),
    "ivf_flat_hashtable": (_ivf("Flat", _HASHTABLE), _replace),
    "ivf_sq8": (_ivf("SQ8", _ARRAY), _update),
    "hnsw": (_hnsw, None),
}


def _peer(name: str, vectors: Any, moves: Any, queries: Any, exact: list[Any]) -> dict[str, Any]:
    make, move = _PEERS[name]
    if name == "hnsw" and len(vectors) > _MOST:
        return {"not run": f"building it for more than {_MOST} takes minutes"}
    began = time.perf_counter()
    index = make(vectors, lists_for(len(vectors)))
    built_s = time.perf_counter() - began
    settings = _set(index, queries, exact[0])
    updates: list[float] = []
    for which, to in zip(moves.which, moves.to, strict=True) if move else ():
        began = time.perf_counter()
        move(index, which, to)
        updates.append(time.perf_counter() - began)
    hits, times = _search(index, queries, 4)
    update_figures = {
        "us_per_update": round(float(np.median(updates)) / ours.MOVED * 1e6, 2)
        if updates
        else "cannot",
        "updates": _WHY.get(name, "in place"),
    }
    return {
        "recall_at_300": round(ours.recall(hits, exact[1]), 4),
        "recall_at_300_before": round(ours.recall(_search(index, queries)[0], exact[0]), 4)
        if not move
        else settings.pop("recall", 1.0),
        **ours.percentiles(times),
        **update_figures,
        "start_s": round(built_s, 2),
        **{key: value for key, value in settings.items() if key != "recall"},
    }


def _set(index: Any, queries: Any, exact: Any) -> dict[str, Any]:
    """Raises an index's search effort by steps of a fifth until it reaches the recall."""
    holder, name = {
        "IndexIVFFlat": (index, "nprobe"),
        "IndexIVFScalarQuantizer": (index, "nprobe"),
        "IndexHNSWFlat": (getattr(index, "hnsw", None), "efSearch"),
    }.get(type(index).__name__, (None, ""))
    if holder is None:
        return {}
    most = index.nlist if name == "nprobe" else 2_048
    value = 1 if name == "nprobe" else ours.FOUND
    while True:
        setattr(holder, name, value)
        reached = ours.recall(_search(index, queries)[0], exact)
        if reached >= 0.97 or value >= most:
            return {name: value, "recall": round(reached, 4)}
        value = min(most, max(value + 1, value * 6 // 5 if name == "nprobe" else 2 * value))


def _search(index: Any, queries: Any, rounds: int = 1) -> tuple[list[Any], list[float]]:
    """Hits of each query, searched one at a time, and the durations."""
    k, times, hits = min(ours.FOUND, index.ntotal), list[float](), list[Any]()
    for _ in range(rounds):
        hits = []
        for query in queries:
            began = time.perf_counter()
            hits.append(index.search(query[None], k)[1][0])
            times.append(time.perf_counter() - began)
    return hits, times
