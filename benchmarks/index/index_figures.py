"""Figures of `recsys bench index`: recall against an exact search, and durations."""

from typing import Any, Final

import numpy as np

MOVED: Final = 250  # vectors of a step: a thousand in a second
FOUND: Final = 300


def best(vectors: Any, queries: Any, alive: Any) -> list[Any]:
    """Exact best ids of each query, by matrix products in blocks."""
    k, best_ids = min(FOUND, int(alive.sum())), [np.empty(0, np.int64)] * len(queries)
    scores = [np.empty(0, np.float32)] * len(queries)
    for start in range(0, len(vectors), 65_536):
        block = queries @ vectors[start : start + 65_536].T
        block[:, ~alive[start : start + 65_536]] = -np.inf
        for i, row in enumerate(block):
            candidates = np.argpartition(-row, min(k, len(row) - 1))[:k]
            merged = (
                np.concatenate([scores[i], row[candidates]]),
                np.concatenate([best_ids[i], candidates + start]),
            )
            order = np.argsort(-merged[0], kind="stable")[:k]
            scores[i], best_ids[i] = merged[0][order], merged[1][order]
    return best_ids


def recall(hits: list[Any], exact: list[Any]) -> float:
    shares = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(hits, exact, strict=True)]
    return float(np.mean(shares))


def recalls(samples: list[float]) -> dict[str, float]:
    return {
        "recall_at_300": round(float(np.mean(samples)), 4),
        "recall_at_300_min": round(float(np.min(samples)), 4),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {"p50_ms": _ms(seconds, 50), "p99_ms": _ms(seconds, 99)}


def _ms(seconds: list[float], percentile: int) -> float:
    return round(float(np.percentile(seconds, percentile)) * 1e3, 3) if seconds else 0.0
