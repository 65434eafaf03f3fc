"""Reads the two layouts of KuaiRand into the same frames: a folder of Parquet, or the official CSV files.

The official ``video_features_statistic_*`` is never read: it counts over the whole log, so it looks ahead.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from plugins.kuairand.events import FLAGS, Frames
from replay.datasets.dataset import DataError

_LOG: Final = {
    "user_id": pl.Int64,
    "video_id": pl.Int64,
    "time_ms": pl.Int64,
    "play_time_ms": pl.Int64,
    "duration_ms": pl.Float64,
    "tab": pl.String,
    **{column: pl.Int8 for _, column in FLAGS},
}
_ITEMS: Final = {
    "video_id": pl.Int64,
    "author_id": pl.String,
    "video_type": pl.String,
    "upload_dt": pl.String,
    "upload_type": pl.String,
    "video_duration": pl.Float64,
    "music_id": pl.String,
    "music_type": pl.String,
    "tag": pl.String,
}
_USERS: Final = {"user_id": pl.Int64} | {
    name: pl.String
    for name in (
        "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author",
        "follow_user_num", "follow_user_num_range", "fans_user_num", "fans_user_num_range",
        "friend_user_num", "friend_user_num_range", "register_days", "register_days_range",
        *(f"onehot_feat{i}" for i in range(18)),
    )
}  # fmt: skip
_HISTORY: Final[dict[str, Any]] = {
    "user_id": pl.Int64,
    "history_len": pl.Int64,
    "last_time_ms": pl.Int64,
    "watch_seq": pl.List(pl.Int64),
    "like_seq": pl.List(pl.Int64),
    "long_watch_seq": pl.List(pl.Int64),
}
_MAY_BE_EMPTY: Final = {"duration_ms", "video_duration"}

Columns = Mapping[str, Any]  # polars types by column


def read_parquet_layout(folder: Path) -> Frames:
    """Reads interactions, videos, users and, if present, history."""
    history = folder / "history.parquet"
    log = _from_parquet(folder / "interactions.parquet", _LOG)
    return _frames(
        [log.with_columns(surface=pl.lit("feed"))],
        _from_parquet(folder / "videos.parquet", _ITEMS),
        _from_parquet(folder / "users.parquet", _USERS),
        _from_parquet(history, _HISTORY) if history.exists() else None,
    )


def read_csv_layout(folder: Path) -> Frames:
    """All logs of the folder, standard and random; impressions of the latter have the surface "random".

    The official files repeat some rows exactly: those count once.
    """
    logs, repeats = [], 0
    for file in sorted(folder.glob("log_*.csv")):
        surface = "random" if file.name.startswith("log_random") else "feed"
        rows = _from_csv(file, _LOG, whole=True)
        log = rows.unique(maintain_order=True).select(list(_LOG))
        logs.append(log.with_columns(surface=pl.lit(surface)))
        repeats += rows.height - log.height
    return _frames(
        logs,
        _from_csv(_only(folder, "video_features_basic*.csv"), _ITEMS),
        _from_csv(_only(folder, "user_features*.csv"), _USERS),
        repeats=repeats,
    )


def _frames(
    logs: list[pl.DataFrame],
    items: pl.DataFrame,
    users: pl.DataFrame,
    history: pl.DataFrame | None = None,
    repeats: int = 0,
) -> Frames:
    log = pl.concat(logs)
    # Impressions hold the video's length too: it fills gaps of the video table.
    durations = log.group_by("video_id").agg(pl.col("duration_ms").drop_nulls().first())
    items = items.join(durations, on="video_id", how="left", maintain_order="left").select(
        "video_id",
        author=_text("author_id"),
        tags=pl.col("tag").str.extract_all(r"[^\s,\[\]\"]+"),
        video_type=_text("video_type"),
        upload_type=_text("upload_type"),
        upload_dt=_text("upload_dt"),
        music_id=_text("music_id"),
        music_type=_text("music_type"),
        duration_ms=pl.coalesce("video_duration", "duration_ms"),
    )
    users = users.select("user_id", *(_text(name) for name in users.columns if name != "user_id"))
    return Frames(log.with_columns(_text("tab")), items, users, history, repeats)


def _text(column: str) -> pl.Expr:
    """A categorical value as text. Both layouts write some whole numbers as 9.0; empty is missing."""
    text = pl.col(column).str.strip_chars().str.replace(r"^(-?\d+)\.0$", "$1")
    return pl.when(text != "").then(text).alias(column)


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(folder, f"exactly one file named {pattern}, found {names}")
    return files[0]


def _from_parquet(file: Path, columns: Columns) -> pl.DataFrame:
    try:
        columns_of_file = pl.read_parquet_schema(file)
        _check_columns(file, columns, list(columns_of_file))
        return _typed(file, pl.read_parquet(file, columns=list(columns)), columns, first_line=1)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(file, f"a readable Parquet file ({_first_line(error)})") from error


def _from_csv(file: Path, columns: Columns, whole: bool = False) -> pl.DataFrame:
    """The columns in their types; with ``whole`` all other columns follow as text."""
    with file.open(newline="", encoding="utf-8", errors="replace") as text:
        _check_columns(file, columns, next(csv.reader(text), []))
    try:
        frame = pl.read_csv(file, columns=None if whole else list(columns), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise _broken_line(file) or DataError(file, f"a readable CSV file ({_first_line(error)})") from error
    return _typed(file, frame, columns, first_line=2)


def _check_columns(file: Path, columns: Columns, present: list[str]) -> None:
    for name in columns:
        if name not in present:
            raise DataError(
                file, f"a column of this name; there are {', '.join(present)}", line=1, field=name
            )


def _typed(file: Path, frame: pl.DataFrame, columns: Columns, first_line: int) -> pl.DataFrame:
    """The columns in their types; raises DataError at the first value that isn't of its type."""
    cast = frame.with_columns(pl.col(name).cast(dtype, strict=False) for name, dtype in columns.items())
    for name, dtype in columns.items():
        bad = cast[name].is_null()
        if (dtype == pl.String and name != "tab") or name in _MAY_BE_EMPTY:
            bad = bad & frame[name].is_not_null()
        row = bad.arg_true()
        if len(row):
            value = frame[name][int(row[0])]
            kind = "a whole number" if dtype.is_integer() or name == "tab" else "a number"
            if isinstance(dtype, pl.List):
                kind = "a list of whole numbers"
            raise DataError(
                file, f"expected {kind}, found {value!r}", line=int(row[0]) + first_line, field=name
            )
    return cast


def _broken_line(file: Path) -> DataError | None:
    """The first line of a CSV file whose number of fields differs from the header's, as an error."""
    with file.open(newline="", encoding="utf-8", errors="replace") as text:
        reader = csv.reader(text)
        width = len(next(reader))
        for row in reader:
            if len(row) != width:
                return DataError(file, f"expected {width} fields, found {len(row)}", line=reader.line_num)
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
