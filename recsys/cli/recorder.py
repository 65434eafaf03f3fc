"""Keeps every score of a replay with what happened then, as the columns of the predictions file."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.cli.player import Scored
from recsys.events import Engagement
from recsys.report import Predictions


class Recorder:
    """Scores by impression and item, and the labels as the whole log knows them in the end."""

    def __init__(self, labels: Sequence[str], context_field: str | None) -> None:
        self._labels = list(labels)
        self._places = {label: k for k, label in enumerate(labels)}
        self._context_field = context_field
        self._scored: list[Scored] = []
        self._happened: dict[tuple[str, str], int] = {}  # a bit per label

    def scored(self, scored: Scored) -> None:
        self._scored.append(scored)

    def happened(self, engagement: Engagement) -> None:
        """An engagement; it may come before the impression that it answers has been scored."""
        place = self._places.get(engagement.kind)
        if place is not None:
            key = (engagement.request_id, str(engagement.item_id))
            self._happened[key] = self._happened.get(key, 0) | (1 << place)

    def predictions(self) -> Predictions:
        """All scores as columns, in the order in which they were given."""
        rows = [(s.impression, served) for s in self._scored for served in s.impression.items]
        counts = [len(s.impression.items) for s in self._scored]
        bits = np.array(
            [self._happened.get((i.request_id, str(served.item_id)), 0) for i, served in rows],
            np.int64,
        )
        width = len(self._labels) + 1
        scores = np.concatenate(
            [s.probabilities_NL for s in self._scored] or [np.zeros((0, width))]
        )
        versions = [f"{s.epoch}.{s.step}" for s in self._scored]
        return Predictions(
            request_id=[i.request_id for i, _ in rows],
            user_id=[i.user_id for i, _ in rows],
            item_id=[served.item_id for _, served in rows],
            time_ms=np.array([i.time_ms for i, _ in rows], np.int64),
            line=[s.line for s, n in zip(self._scored, counts, strict=True) for _ in range(n)],
            version=[v for v, n in zip(versions, counts, strict=True) for _ in range(n)],
            scores={label: scores[:, k] for label, k in self._places.items()},
            labels={label: (bits >> k) & 1 for label, k in self._places.items()},
        )

    def contexts(self) -> NDArray[np.str_]:
        """The value of the first context field for each row, "" where it has none."""
        name = self._context_field
        values = [
            str(s.impression.context.get(name, "")) if name else ""
            for s in self._scored
            for _ in s.impression.items
        ]
        return np.array(values, np.str_)
