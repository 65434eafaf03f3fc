"""KuaiRand's two layouts give the same events, in time order, without looking ahead."""

import csv
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from plugins.kuairand.events import HISTORY_FROM_MS, mark
from recsys.app.app_file import read_app
from recsys.events.event_types import Engagement, Impression, Item, User
from replay.datasets.dataset import DataError
from replay.datasets.open_dataset import open_dataset
from tests.support.paths import ROOT

REAL = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared/data/kuairand"))
T = 1_650_812_741_436

FLAGS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view",
         "is_profile_enter")  # fmt: skip


def row(user: int, video: int, time_ms: int, play: int, *on: str, tab: int = 1) -> dict:
    flags = {flag: int(flag in on) for flag in FLAGS}
    return {"user_id": user, "video_id": video, "time_ms": time_ms, **flags, "play_time_ms": play,
            "duration_ms": 9000 + video, "profile_stay_time": 0, "comment_stay_time": 0,
            "tab": tab}  # fmt: skip


LOG = [
    row(7, 1, T, 5000, "long_view", "is_click", "is_forward", "is_profile_enter"),
    row(8, 2, T, 0),
    row(7, 2, T + 1000, 1000, "is_hate"),
    row(7, 1, T + 1000, -5, "is_like", tab=0),
]
VIDEOS = [
    {"video_id": 1, "author_id": 11, "video_type": "NORMAL", "upload_dt": "2022-04-10",
     "upload_type": "Web", "video_duration": 9001.0, "music_id": 5, "music_type": 9.0,
     "tag": "39,68"},
    {"video_id": 2, "author_id": 12, "video_type": "AD", "upload_dt": "2022-04-09",
     "upload_type": "Kmovie", "video_duration": None, "music_id": 6, "music_type": None,
     "tag": None},
]  # fmt: skip
USER = {
    "user_active_degree": "full_active", "is_lowactive_period": 0, "is_live_streamer": -124,
    "is_video_author": 1, "follow_user_num": 5, "follow_user_num_range": "(0,10]",
    "fans_user_num": 2, "fans_user_num_range": "[1,10)", "friend_user_num": 0,
    "friend_user_num_range": "0", "register_days": 80, "register_days_range": "61-90",
    **{f"onehot_feat{i}": float(i) for i in range(18)},
}  # fmt: skip
USERS = [{"user_id": 7, **USER}, {"user_id": 8, **USER, "onehot_feat4": None}]
HISTORY = [
    {"user_id": 7, "history_len": 4, "last_time_ms": HISTORY_FROM_MS + 4000,
     "watch_seq": [1, 1, 2], "like_seq": [2], "long_watch_seq": [2, 1]},
    {"user_id": 8, "history_len": 1, "last_time_ms": HISTORY_FROM_MS + 3500, "watch_seq": [2],
     "like_seq": [], "long_watch_seq": []},
]  # fmt: skip


def write_parquet(folder: Path, **changed: list[dict]) -> Path:
    tables = {"interactions": LOG, "videos": VIDEOS, "users": USERS, "history": HISTORY} | changed
    for name, rows in tables.items():
        pl.DataFrame(rows).write_parquet(folder / f"{name}.parquet")
    return folder


def write_csv(file: Path, rows: list[dict]) -> None:
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_official(folder: Path) -> Path:
    data = folder / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    write_csv(data / "log_standard_4_08_to_4_21_pure.csv", [LOG[0], LOG[0], *LOG[1:2]])
    write_csv(data / "log_standard_4_22_to_5_08_pure.csv", LOG[2:])
    write_csv(data / "user_features_pure.csv", USERS)
    write_csv(data / "video_features_basic_pure.csv", VIDEOS)
    (data / "video_features_statistic_pure.csv").write_text("this is never read\n")
    return folder


def engagements(events: list) -> list[tuple]:
    return [(e.time_ms, e.user_id, e.item_id, e.kind) for e in events if isinstance(e, Engagement)]


def test_a_row_is_an_impression_and_what_followed_with_the_view_last(tmp_path: Path) -> None:
    events = list(open_dataset(write_parquet(tmp_path)).events())
    assert [type(e) for e in events[:4]] == [Item, Item, User, User]
    assert events[0].fields == {
        "author": "11", "tags": ["39", "68"], "video_type": "NORMAL", "upload_type": "Web",
        "upload_dt": "2022-04-10", "music_id": "5", "music_type": "9", "duration_ms": 9001.0,
    }  # fmt: skip
    assert events[1].fields["duration_ms"] == 9002.0  # told by the log alone
    assert "tags" not in events[1].fields
    assert events[2].fields["onehot_feat4"] == "4" and "onehot_feat4" not in events[3].fields
    shown = [e for e in events if isinstance(e, Impression)]
    assert [(e.time_ms, e.user_id, e.items[0].item_id, e.context["tab"]) for e in shown] == [
        (T, 7, 1, "1"), (T, 8, 2, "1"), (T + 1000, 7, 2, "1"), (T + 1000, 7, 1, "0")
    ]  # fmt: skip
    assert len({e.request_id for e in shown}) == 4
    assert engagements(events) == [
        (T, 8, 2, "view"),
        (T + 1000, 7, 1, "like"),
        (T + 1000, 7, 1, "view"),
        (T + 2000, 7, 2, "hide"),
        (T + 2000, 7, 2, "view"),
        (T + 5000, 7, 1, "long_view"),
        (T + 5000, 7, 1, "click"),
        (T + 5000, 7, 1, "share"),
        (T + 5000, 7, 1, "profile"),
        (T + 5000, 7, 1, "view"),
    ]
    watched = [e.watch_ms for e in events if isinstance(e, Engagement) and e.kind == "view"]
    assert watched == [0, 0, 1000, 5000]


def test_at_the_same_time_the_row_decides_then_the_impression(tmp_path: Path) -> None:
    rows = [row(1, 1, T, 0), row(2, 2, T, 0, "is_like"), row(3, 1, T - 9, 9)]
    events = list(open_dataset(write_parquet(tmp_path, interactions=rows)).events())[4:]
    assert [(e.user_id, getattr(e, "kind", "shown")) for e in events] == [
        (3, "shown"), (3, "view"), (1, "shown"), (1, "view"), (2, "shown"), (2, "like"),
        (2, "view"),
    ]  # fmt: skip


def test_time_is_bounded_but_state_is_not(tmp_path: Path) -> None:
    dataset = open_dataset(write_parquet(tmp_path))
    events = list(dataset.events(from_ms=T + 1000, until_ms=T + 2000))
    assert {e.time_ms for e in events[4:]} == {T + 1000}
    assert len(events) == 4 + 4
    assert list(dataset.events()) == list(dataset.events())


def test_the_official_files_give_the_same_events(tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    ours = open_dataset(write_parquet(tmp_path / "parquet"))
    official = open_dataset(write_official(tmp_path / "official"))
    assert list(official.events()) == list(ours.events())
    assert official.schema == ours.schema
    assert official.repeats == 1 and ours.repeats == 0
    assert list(official.warmup()) == []


def test_random_exposures_are_another_surface(tmp_path: Path) -> None:
    folder = write_official(tmp_path)
    data = folder / "KuaiRand-Pure" / "data"
    write_csv(data / "log_random_4_22_to_5_08_pure.csv", [row(8, 1, T + 7, 0)])
    events = list(open_dataset(data).events())
    assert [e.time_ms for e in events if getattr(e, "surface", "") == "random"] == [T + 7, T + 7]


def test_history_comes_in_time_order_before_the_log(tmp_path: Path) -> None:
    events = list(open_dataset(write_parquet(tmp_path)).warmup())
    shown = [(e.time_ms - HISTORY_FROM_MS, e.user_id, e.items[0].item_id)
             for e in events if isinstance(e, Impression)]  # fmt: skip
    assert shown == [(2000, 7, 1), (3000, 7, 1), (3500, 8, 2), (4000, 7, 2)]
    kinds = [(u, i, kind) for _, u, i, kind in engagements(events)]
    assert kinds == [
        (7, 1, "view"), (7, 1, "long_view"), (7, 1, "view"), (8, 2, "view"), (7, 2, "like"),
        (7, 2, "view"),
    ]  # fmt: skip
    assert {e.surface for e in events} == {"history"}
    assert {e.watch_ms for e in events if isinstance(e, Engagement)} == {None}


def test_subsets_are_matched_from_their_newest_ends() -> None:
    sequences, subsets = [[1, 2, 1, 3], [1, 2, 3], [], [1, 1]], [[9, 9, 1, 3], [], [1], [1, 1, 1]]
    columns = [
        (np.concatenate(lists).astype(np.int64), np.cumsum([*map(len, lists)]))
        for lists in (sequences, subsets)
    ]
    marks = np.zeros(9, np.bool_)
    mark(*columns[0], *columns[1], marks)
    assert marks.tolist() == [False, False, True, True, *[False] * 3, True, True]


def test_the_schema_names_kinds(tmp_path: Path) -> None:
    schema = open_dataset(write_parquet(tmp_path)).schema
    assert schema.names("item", "numeric") == ("duration_ms",)
    assert "tags" in schema.names("item", "categorical")
    assert len(schema.user) == 30 and {kind for _, kind in schema.user} == {"categorical"}
    assert schema.context == (("tab", "categorical"),)
    assert schema.labels[0] == "long_view" and schema.shown_by == "impression"


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    rows = [{k: v for k, v in r.items() if k != "play_time_ms"} for r in LOG]
    with pytest.raises(DataError, match=r"interactions.parquet:1: play_time_ms: a column"):
        open_dataset(write_parquet(tmp_path, interactions=rows))


def test_a_value_of_another_type_is_named_with_its_line(tmp_path: Path) -> None:
    data = write_official(tmp_path) / "KuaiRand-Pure" / "data"
    write_csv(data / "log_standard_4_22_to_5_08_pure.csv", [*LOG, LOG[0] | {"time_ms": "soon"}])
    with pytest.raises(DataError, match=r"5_08_pure.csv:6: time_ms: .*whole number.*'soon'"):
        open_dataset(data)


def test_a_line_with_too_many_or_too_few_fields_is_named(tmp_path: Path) -> None:
    data = write_official(tmp_path) / "KuaiRand-Pure" / "data"
    file = data / "log_standard_4_22_to_5_08_pure.csv"
    whole = file.read_text()
    file.write_text(whole + "1,2,3" + ",4" * 40 + "\n")
    with pytest.raises(DataError, match=r"5_08_pure.csv:4: expected 16 fields, found 43"):
        open_dataset(data)
    file.write_text(whole + whole.splitlines()[-1].rpartition(",")[0] + "\n")
    with pytest.raises(DataError, match=r"5_08_pure.csv:4: tab: "):
        open_dataset(data)


def test_a_folder_with_neither_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"dataset.yaml .*interactions.parquet .*notes.txt"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="doesn't exist"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "interactions.parquet").write_text("no")
    with pytest.raises(DataError, match="readable Parquet"):
        open_dataset(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "interactions.parquet").exists(), reason="no real KuaiRand here")
def test_the_real_log_is_whole_and_in_order() -> None:
    dataset = open_dataset(REAL)
    last, shown, longs = 0, 0, 0
    for event in dataset.events():
        assert event.time_ms >= last
        last = event.time_ms
        shown += isinstance(event, Impression)
        longs += isinstance(event, Engagement) and event.kind == "long_view"
    assert (shown, longs) == (91_812, 28_939)
    warm = [event.time_ms for event in dataset.warmup()]
    assert warm == sorted(warm) and warm[-1] < 1_650_816_000_000


@pytest.mark.parametrize("missing", ["plugins.kuairand", "polars"])
def test_without_the_reader_or_polars_the_remedy_is_named(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("plugins")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # its import raises ModuleNotFoundError
    folder = write_parquet(tmp_path)
    with pytest.raises(DataError, match=rf"'kuairand' .* can't be imported .*{missing}.*: pip install"):
        open_dataset(folder)
    (folder / "dataset.yaml").write_text("labels: [click]\nwindow_s: 60\n")
    (folder / "events.jsonl").touch()
    assert list(open_dataset(folder).events()) == []


def test_the_definition_declares_the_fields_that_the_reader_names(tmp_path: Path) -> None:
    app = read_app(ROOT / "plugins/kuairand/app.yaml")
    data = open_dataset(write_official(tmp_path))
    fields = {name for name, _ in data.schema.user}
    declared = replace(app.schema, kinds=(), user=())
    assert declared == replace(data.schema, user=())
    assert fields <= {name for name, _ in app.schema.user}
