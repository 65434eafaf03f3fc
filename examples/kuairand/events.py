"""KuaiRand as events: one impression a row, and the engagements at the end of its play.

The frames come from ``files`` (Parquet or the official CSV). A row's engagements happen at
``time_ms + play_time_ms``, the view last: it ends the example, so labels must come before it.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from examples.kuairand.past import Past
from recsys.events.event_types import Engagement, Event, Impression, Item, ServedItem, User
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema

LABELS: Final = ("long_view", "click", "like", "follow", "comment", "share", "hide")
# Engagement kind and its column, in the order in which engagements are emitted.
FLAGS: Final = (
    ("long_view", "long_view"),
    ("click", "is_click"),
    ("like", "is_like"),
    ("follow", "is_follow"),
    ("comment", "is_comment"),
    ("share", "is_forward"),
    ("hide", "is_hate"),
    ("profile", "is_profile_enter"),
)
HISTORY_FROM_MS: Final = 1_649_347_200_000  # 8 April 2022, 00:00 in Beijing: where KuaiRand begins
# Every impression gets a view, so the window matters only to longer plays; the longest in six days is 779 s.
WINDOW_S: Final = 900.0

_KINDS_OF: Final = tuple(
    tuple(kind for bit, (kind, _) in enumerate(FLAGS) if mask >> bit & 1)
    for mask in range(1 << len(FLAGS))
)


@dataclass(frozen=True)
class Frames:
    """The data of both layouts, typed. ``items`` and ``users`` hold text and numbers only."""

    log: pl.DataFrame  # user_id, video_id, time_ms, play_time_ms, tab, surface, columns of FLAGS
    items: pl.DataFrame  # video_id, author, tags (list), video_type, ..., duration_ms
    users: pl.DataFrame  # user_id and its columns as text
    history: pl.DataFrame | None = None
    repeats: int = 0  # exact duplicates that were dropped


@dataclass
class _Rows:
    """Impressions as columns; their order breaks ties."""

    user: list[int]
    item: list[int]
    time: np.ndarray[Any, np.dtype[np.int64]]
    played: np.ndarray[Any, np.dtype[np.int64]]
    mask: list[int]
    request_id: list[str]
    surface: list[str]
    tab: list[str]


class KuaiRand:
    """A KuaiRand log. Its days are Beijing days; every served item was shown."""

    def __init__(self, frames: Frames, name: str = "kuairand") -> None:
        self.name = name
        self.labels = list(LABELS)
        self.window_s = WINDOW_S
        self.all_shown = True
        self.utc_offset_h = 8.0
        self.dead_letters: Counter[str] = Counter()
        self.repeats = frames.repeats
        self.schema = Schema(
            item=_kinds(frames.items, "video_id"),
            user=_kinds(frames.users, "user_id"),
            context=(("tab", CATEGORICAL),),
            groups=("author", "tags"),
            labels=LABELS,
            shown_by="impression",
        )
        self._frames = frames

    def events(self, from_ms: int | None = None, until_ms: int | None = None) -> Iterator[Event]:
        for row in self._frames.items.iter_rows(named=True):
            yield Item(time_ms=0, item_id=row.pop("video_id"), fields=_present(row))
        for row in self._frames.users.iter_rows(named=True):
            yield User(time_ms=0, user_id=row.pop("user_id"), fields=_present(row))
        yield from _in_time_order(_rows_of_log(self._frames.log), from_ms, until_ms)

    def warmup(self) -> Iterable[Event]:
        """Each user's last videos from before the log, at made-up times: only their order is known.

        They are spread evenly from 8 April to the user's last one; play times are unknown.
        """
        return () if self._frames.history is None else _past(self._frames.history)


def chosen(sequence: list[int], subset: list[int]) -> list[bool]:
    """Places of ``sequence`` that the newest entries of ``subset`` refer to, matched from the end.

    Both are oldest first and cut to the newest 50, so ``subset`` may reach further back. A video that
    repeats is matched at its latest place.
    """
    marks = [False] * len(sequence)
    left = len(subset) - 1
    for place in range(len(sequence) - 1, -1, -1):
        if left >= 0 and subset[left] == sequence[place]:
            marks[place] = True
            left -= 1
    return marks


def _rows_of_log(log: pl.DataFrame) -> _Rows:
    mask = pl.sum_horizontal(
        (pl.col(column) > 0).cast(pl.Int32) * (1 << bit) for bit, (_, column) in enumerate(FLAGS)
    )
    repeat = pl.int_range(pl.len()).over("user_id", "time_ms").cast(pl.String)
    log = log.sort("time_ms", maintain_order=True).with_columns(
        mask=mask, request_id=pl.format("{}-{}-{}", pl.col("user_id"), pl.col("time_ms"), repeat)
    )
    return _Rows(
        user=log["user_id"].to_list(),
        item=log["video_id"].to_list(),
        time=log["time_ms"].to_numpy(),
        played=np.maximum(log["play_time_ms"].to_numpy(), 0),
        mask=log["mask"].to_list(),
        request_id=log["request_id"].to_list(),
        surface=log["surface"].to_list(),
        tab=log["tab"].to_list(),
    )


def _past(history: pl.DataFrame) -> Past:
    columns = [array("q") for _ in range(5)]
    long_bit, like_bit = 1, 1 << 2
    for row in history.iter_rows(named=True):
        watched: list[int] = row["watch_seq"]
        num_watched, history_length = len(watched), max(row["history_len"], len(watched))
        span = max(row["last_time_ms"] - HISTORY_FROM_MS, 0)
        longs = chosen(watched, row["long_watch_seq"])
        likes = chosen(watched, row["like_seq"])
        for i, video in enumerate(watched):
            time_ms = row["last_time_ms"] - span * (num_watched - 1 - i) // history_length
            code = long_bit * longs[i] + like_bit * likes[i]
            for column, value in zip(
                columns, (row["user_id"], video, time_ms, i, code), strict=True
            ):
                column.append(value)
    users, items, times, places, codes = (np.frombuffer(column, np.int64) for column in columns)
    order = np.argsort(times, kind="stable")
    kinds = [(*kinds, "view") for kinds in _KINDS_OF]
    return Past(users[order], items[order], times[order], places[order], codes[order], kinds)


def _in_time_order(rows: _Rows, from_ms: int | None, until_ms: int | None) -> Iterator[Event]:
    """Impressions and their engagements merged by time; at the same time by row, impression first."""
    n = len(rows.user)
    times = np.concatenate([rows.time, rows.time + rows.played])
    row_of, stage = np.tile(np.arange(n), 2), np.repeat([0, 1], n)
    order = np.lexsort((stage, row_of, times))
    if from_ms is not None:
        order = order[times[order] >= from_ms]
    if until_ms is not None:
        order = order[times[order] < until_ms]
    for code, time_ms in zip(order.tolist(), times[order].tolist(), strict=True):
        if code < n:
            yield _impression(rows, code, time_ms)
        else:
            yield from _engagements(rows, code - n, time_ms)


def _impression(rows: _Rows, i: int, time_ms: int) -> Impression:
    return Impression(
        time_ms=time_ms,
        request_id=rows.request_id[i],
        user_id=rows.user[i],
        items=[ServedItem(item_id=rows.item[i])],
        context={"tab": rows.tab[i]},
        surface=rows.surface[i],
    )


def _engagements(rows: _Rows, i: int, time_ms: int) -> Iterator[Engagement]:
    for kind in (*_KINDS_OF[rows.mask[i]], "view"):
        yield Engagement(
            time_ms=time_ms,
            request_id=rows.request_id[i],
            user_id=rows.user[i],
            item_id=rows.item[i],
            kind=kind,
            watch_ms=int(rows.played[i]) if kind == "view" else None,
            surface=rows.surface[i],
        )


def _present(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None and value != []}


def _kinds(frame: pl.DataFrame, id_column: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, NUMERIC if dtype.is_numeric() else CATEGORICAL)
        for name, dtype in sorted(frame.schema.items())
        if name != id_column
    )
