"""Keeps every score of a replay with what happened then, as the columns of the predictions file."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import Engagement
from recsys.events.hashing import Id
from replay.player import Scored
from replay.predictions import Predictions


class Recorder:
    """Scores by impression and item, and the labels as the whole log knows them in the end.

    It keeps columns, not impressions: three million scores take some hundred bytes each.
    """

    def __init__(self, labels: Sequence[str], context_field: str | None) -> None:
        self._places = {label: k for k, label in enumerate(labels)}
        self._context_field = context_field
        self._requests: list[str] = []
        self._users: list[Id] = []
        self._items: list[Id] = []
        self._times: list[int] = []
        self._lines: list[str] = []
        self._versions: list[str] = []
        self._contexts: list[str] = []
        self._scores: list[NDArray[np.float32]] = []
        self._happened: dict[tuple[str, str], int] = {}  # a bit per label

    def scored(self, scored: Scored) -> None:
        """One impression's scores: a row for each of its items."""
        impression, version = scored.impression, f"{scored.epoch}.{scored.step}"
        context = str(impression.context.get(self._context_field or "", ""))
        for served in impression.items:
            self._requests.append(impression.request_id)
            self._users.append(impression.user_id)
            self._items.append(served.item_id)
            self._times.append(impression.time_ms)
            self._lines.append(scored.line)
            self._versions.append(version)
            self._contexts.append(context)
        self._scores.append(scored.probabilities_NL.copy())

    def happened(self, engagement: Engagement) -> None:
        """An engagement; it may come before the impression that it answers has been scored."""
        place = self._places.get(engagement.kind)
        if place is not None:
            key = (engagement.request_id, str(engagement.item_id))
            self._happened[key] = self._happened.get(key, 0) | (1 << place)

    def predictions(self) -> Predictions:
        """All scores as columns, in the order in which they were given."""
        rows = zip(self._requests, self._items, strict=True)
        bits = np.array([self._happened.get((r, str(i)), 0) for r, i in rows], np.int64)
        width = len(self._places) + 1
        scores = np.concatenate(self._scores or [np.zeros((0, width), np.float32)])
        return Predictions(
            request_id=self._requests,
            user_id=self._users,
            item_id=self._items,
            time_ms=np.array(self._times, np.int64),
            line=self._lines,
            version=self._versions,
            scores={label: scores[:, k] for label, k in self._places.items()},
            labels={label: (bits >> k) & 1 for label, k in self._places.items()},
        )

    def contexts(self) -> NDArray[np.str_]:
        """The value of the first context field for each row, "" where it has none."""
        return np.array(self._contexts, np.str_)
