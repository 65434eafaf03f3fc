"""KuaiRand as events: one impression a row, and the engagements at the end of its play.

The frames come from ``files`` (Parquet or the official CSV). A row's engagements happen at
``time_ms + play_time_ms``, the view last: it ends the example, so labels must come before it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numba import types
from numpy.typing import NDArray

from plugins.kuairand.past import Past
from recsys.arrays.compiled import kernel, read_only
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
_BLOCK: Final = 65_536  # events that become objects together
_KEYS: Final = read_only(types.int64, 1)
Keys = NDArray[np.int64]

_KINDS_OF: Final = tuple(
    tuple(kind for bit, (kind, _) in enumerate(FLAGS) if mask >> bit & 1) for mask in range(1 << len(FLAGS))
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
        shared: dict[str, str] = {}
        for row in self._frames.items.iter_rows(named=True):
            yield Item(time_ms=0, item_id=row.pop("video_id"), fields=_present(row, shared))
        for row in self._frames.users.iter_rows(named=True):
            yield User(time_ms=0, user_id=row.pop("user_id"), fields=_present(row, shared))
        yield from _in_time_order(_rows_of_log(self._frames.log), from_ms, until_ms)

    def warmup(self) -> Iterable[Event]:
        """Each user's last videos from before the log, at made-up times: only their order is known.

        They are spread evenly from 8 April to the user's last one; play times are unknown.
        """
        return () if self._frames.history is None else _past(self._frames.history)


@kernel(types.void(_KEYS, _KEYS, _KEYS, _KEYS, types.boolean[::1]))
def mark(sequences: Any, ends: Any, subsets: Any, subset_ends: Any, marks: Any) -> None:
    """Marks the places of each sequence that the newest entries of its subset refer to, matched from the end.

    Both are oldest first and cut to the newest 50, so a subset may reach further back. A video that repeats
    is matched at its latest place.
    """
    begin, subset_begin = 0, 0
    for n in range(ends.shape[0]):
        left = subset_ends[n] - 1
        for place in range(ends[n] - 1, begin - 1, -1):
            marks[place] = left >= subset_begin and subsets[left] == sequences[place]
            left -= marks[place]
        begin, subset_begin = ends[n], subset_ends[n]


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
        surface=_shared(log["surface"]),
        tab=_shared(log["tab"]),
    )


def _shared(texts: pl.Series) -> list[str]:
    """The values; equal ones are one object."""
    shared: dict[str, str] = {}
    return [shared.setdefault(text, text) for text in texts.to_list()]


def _past(history: pl.DataFrame) -> Past:
    watched, ends = _flat(history["watch_seq"])
    sizes = np.diff(ends, prepend=0)
    marks = np.zeros((2, len(watched)), np.bool_)
    for name, own in zip(("long_watch_seq", "like_seq"), marks, strict=True):
        mark(watched, ends, *_flat(history[name]), own)
    codes = marks[0] + (marks[1] << np.int64(2))  # bits of long_view and like
    users = np.repeat(history["user_id"].to_numpy(), sizes)
    places = np.arange(len(watched)) - np.repeat(ends - sizes, sizes)
    lengths = np.repeat(np.maximum(history["history_len"].to_numpy(), sizes), sizes)
    last_ms = np.repeat(history["last_time_ms"].to_numpy(), sizes)
    span_ms = np.maximum(last_ms - HISTORY_FROM_MS, 0)
    times = last_ms - span_ms * (np.repeat(sizes, sizes) - 1 - places) // lengths
    order = np.argsort(times, kind="stable")
    kinds = [(*kinds, "view") for kinds in _KINDS_OF]
    users, watched, places, codes = (_narrow(c[order]) for c in (users, watched, places, codes))
    return Past(users, watched, times[order], places, codes, kinds)


def _narrow(column: Keys) -> NDArray[Any]:
    """The numbers in the smallest type that holds them."""
    ends = column.min(initial=0), column.max(initial=0)
    return column.astype(np.result_type(*map(np.min_scalar_type, ends)))


def _flat(lists: pl.Series) -> tuple[Keys, Keys]:
    """The entries of all lists, and where each list ends among them."""
    sizes = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    return np.ascontiguousarray(lists.explode().drop_nulls().to_numpy(), np.int64), np.cumsum(sizes)


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
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        for code, time_ms in zip(block.tolist(), times[block].tolist(), strict=True):
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
        shown=True,
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


def _present(row: dict[str, Any], shared: dict[str, str]) -> dict[str, Any]:
    """The fields that have a value; equal texts are one object."""
    present = {name: value for name, value in row.items() if value is not None and value != []}
    return {n: shared.setdefault(v, v) if isinstance(v, str) else v for n, v in present.items()}


def _kinds(frame: pl.DataFrame, id_column: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, NUMERIC if dtype.is_numeric() else CATEGORICAL)
        for name, dtype in sorted(frame.schema.items())
        if name != id_column
    )
