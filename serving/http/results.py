"""Values that several routes read and return."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException

from recsys.events.hashing import Id
from serving.ingestion.event_validation import ACCEPTED, DUPLICATE, REJECTED, Result


def results_out(results: Sequence[Result], unproven: int = 0) -> dict[str, Any]:
    """Results of a batch, and their counts."""
    counts = Counter(result.status for result in results)
    return {
        "accepted": counts[ACCEPTED], "duplicates": counts[DUPLICATE], "rejected": counts[REJECTED],
        "unproven": unproven, "results": results,
    }  # fmt: skip


def checked_id(text: str, name: str) -> Id:
    """An id in a path. Raises HTTPException."""
    if not 0 < len(text) <= 256:
        raise HTTPException(422, f"{name} has {len(text)} characters, expected 1 to 256")
    return text
