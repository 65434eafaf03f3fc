"""Event logs: JSON Lines in parts, packed or not, checked line by line."""

import csv
import gzip
import json
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from recsys.events.event_types import Engagement, Impression, Item, User
from replay.datasets.dataset import DataError
from replay.datasets.open_dataset import open_dataset

YAML = "labels: [click]\nwindow_s: 60\nall_shown: true\nvectors: {embedding: 2}\n"
ITEM = {"type": "item", "time_ms": 0, "item_id": "v12",
        "fields": {"author": "a3", "tags": [39, 68], "duration_ms": 9000,
                   "embedding": [0.5, 1], "odd": {"x": 1}}}  # fmt: skip
USER = {"type": "user", "time_ms": 0, "user_id": "u7", "fields": {"age_band": "25-34"}}
SHOWN = {"type": "impression", "time_ms": 10, "request_id": "r1", "user_id": "u7",
         "items": [{"item_id": "v12"}, {"item_id": "v90"}],
         "context": {"surface": "home", "hour": 3}}  # fmt: skip
LONG = {"type": "engagement", "time_ms": 20, "request_id": "r1", "user_id": "u7",
        "item_id": "v12", "kind": "long_view", "watch_ms": 61802}  # fmt: skip


def text(*events: dict | str) -> str:
    return "".join((event if isinstance(event, str) else json.dumps(event)) + "\n" for event in events)


def write(folder: Path, *events: dict | str, yaml: str = YAML) -> Path:
    (folder / "dataset.yaml").write_text(yaml)
    (folder / "events.jsonl").write_text(text(*events))
    return folder


def test_an_event_log_is_read_as_it_stands(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path, ITEM, USER, SHOWN, LONG))
    item, user, shown, again, long = dataset.events()
    assert item.item_id == "v12" and user.user_id == "u7"
    assert isinstance(shown, Impression) and shown.surface == "home"
    assert isinstance(long, Engagement) and long.watch_ms == 61802
    assert again == msgspec.structs.replace(item, time_ms=11), "first seen at 10"
    assert (dataset.labels, dataset.window_s, shown.shown) == (["click"], 60.0, True)
    assert dataset.vectors == {"embedding": 2} and list(dataset.warmup()) == []


def test_the_schema_is_found_by_a_scan(tmp_path: Path) -> None:
    other = ITEM | {"item_id": "v13", "fields": {"duration_ms": "unknown", "new": 2.5}}
    schema = open_dataset(write(tmp_path, ITEM, other, USER, SHOWN)).schema
    assert schema.item == (
        ("author", "categorical"), ("duration_ms", "categorical"), ("embedding", "vector"),
        ("new", "numeric"), ("tags", "categorical"),
    )  # fmt: skip
    assert schema.user == (("age_band", "categorical"),)
    assert schema.context == (("hour", "numeric"), ("surface", "categorical"))
    assert schema.groups == ("author", "tags") and schema.shown_by == "impression"


def test_given_fields_spare_the_scan(tmp_path: Path) -> None:
    given = YAML + "fields: {item: {category: categorical}}\ngroups: [category]\n"
    schema = open_dataset(write(tmp_path, "broken", yaml=given)).schema
    assert schema.item == (("category", "categorical"),) and schema.groups == ("category",)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_parts_are_read_in_name_order_packed_or_not(tmp_path: Path, ending: str) -> None:
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.ZstdCompressor().compress}[
        ending
    ]
    (tmp_path / "dataset.yaml").write_text(YAML)
    (tmp_path / f"part-2{ending}").write_bytes(pack(text(SHOWN, LONG).encode()))
    (tmp_path / "part-1.jsonl").write_text(text(ITEM, "", USER))
    assert [e.time_ms for e in open_dataset(tmp_path).events()] == [0, 0, 10, 11, 20]


def test_repeats_count_once_within_the_horizon(tmp_path: Path) -> None:
    own = LONG | {"event_id": "e1"}
    again = own | {"time_ms": 1020, "kind": "click"}
    late = own | {"time_ms": 2021}
    yaml = YAML + "horizon_s: 1\n"
    folder = write(tmp_path, SHOWN, SHOWN, LONG, own, own, LONG, again, late, yaml=yaml)
    dataset = open_dataset(folder)
    for _ in range(2):
        assert [e.time_ms for e in dataset.events()] == [10, 20, 20, 2021]
        assert dataset.repeats == 4
    assert len(open_dataset(write(tmp_path, SHOWN, LONG | {"kind": "click"}, LONG)).schema.user) == 0


def test_users_may_share_event_ids(tmp_path: Path) -> None:
    one = LONG | {"event_id": "1"}
    dataset = open_dataset(write(tmp_path, SHOWN, one, one | {"user_id": "u8"}, one))
    assert [e.user_id for e in dataset.events() if isinstance(e, Engagement)] == ["u7", "u8"]
    assert dataset.repeats == 1


def test_what_is_not_known_is_a_dead_letter(tmp_path: Path) -> None:
    poll = {"type": "poll", "time_ms": 5}
    buy = LONG | {"kind": "buy"}
    dataset = open_dataset(write(tmp_path, poll, poll, SHOWN | {"later": 1}, buy, LONG))
    assert dataset.schema.context
    assert len(list(dataset.events())) == 2
    assert dataset.dead_letters == {"unknown type 'poll'": 2, "unknown engagement kind 'buy'": 1}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"type": "item",', r"jsonl:2: expected one JSON object"),
        ("[1]", r"jsonl:2: event: expected a JSON object"),
        ('{"type": "item", "time_ms": 0}', r"jsonl:2: item_id: expected .*required"),
        ('{"type": "item", "time_ms": "x", "item_id": 1}', r"jsonl:2: time_ms: .*\"x\""),
        (json.dumps(ITEM | {"fields": {"embedding": [1.0]}}), r"jsonl:2: fields.embedding: .* 2 "),
        (json.dumps({"item_id": 1}), r"jsonl:2: "),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(open_dataset(write(tmp_path, ITEM, line)).events())


def test_an_unsorted_log_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"events.jsonl:3: time_ms: 10 is earlier than 20"):
        list(open_dataset(write(tmp_path, ITEM, LONG, SHOWN)).events())


def test_time_is_bounded_but_state_is_not(tmp_path: Path) -> None:
    later = ITEM | {"time_ms": 15, "item_id": "v90"}
    dataset = open_dataset(write(tmp_path, ITEM, SHOWN, later, LONG, LONG | {"time_ms": 30}))
    events = list(dataset.events(from_ms=16, until_ms=30))
    assert [e.time_ms for e in events] == [0, 11, 15, 20]
    assert [type(e) for e in events[:3]] == [Item] * 3


def test_an_item_without_a_time_is_published_when_it_was_first_seen(tmp_path: Path) -> None:
    click = LONG | {"item_id": "v90", "time_ms": 10}
    dated, removed = ITEM | {"item_id": "v90", "time_ms": 1}, ITEM | {"removed": True, "time_ms": 5}
    undated = ITEM | {"item_id": "v90"}
    for events, times in (
        ([ITEM, undated, SHOWN, click, LONG], [0, 0, 10, 10, 11, 11, 20]),
        ([undated, dated, click], [0, 1, 10]),
        ([ITEM, removed, SHOWN], [0, 5, 10]),
        ([undated, click], [0, 10, 11]),
        ([SHOWN, click], [10, 10]),
    ):
        dataset = open_dataset(write(tmp_path, *events))
        assert [e.time_ms for e in dataset.events()] == times
        assert [e.time_ms for e in dataset.events(until_ms=11)] == [t for t in times if t < 11]


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("window_s: 60\n", r"dataset.yaml:1: labels: .*required"),
        ("labels: [click]\nwindow_s: soon\n", r"dataset.yaml:2: window_s: .*number.*'soon'"),
        ("labels: [click]\nwindow_s: 60\nlabel: 1\n", r"dataset.yaml:3: unknown key 'label'"),
        ("labels: [buy]\nwindow_s: 60\n", r"dataset.yaml:1: labels: .*'buy'"),
        ("labels: [click\n", r"dataset.yaml:\d: "),
        (YAML + "labels: [like]\n", r"dataset.yaml:5: the key 'labels' is repeated"),
        (YAML + "vectors: {e: -1}\n", r"repeated"),
        ("labels: [click]\nwindow_s: 1\nvectors: {e: -1}\n", r"dataset.yaml:3: vectors.e: .*-1"),
        (YAML + "fields:\n  item:\n    x: text\n", r"dataset.yaml:7: fields.item.x: "),
        ("- 1\n", r"dataset.yaml:1: expected a mapping"),
    ],
)
def test_a_wrong_dataset_yaml_is_named_by_line_and_key(tmp_path: Path, yaml: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_dataset(write(tmp_path, yaml=yaml))


def test_missing_ambiguous_and_cut_files(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(YAML)
    with pytest.raises(DataError, match=r"events.jsonl, or parts"):
        open_dataset(tmp_path)
    packed = gzip.compress(text(*[ITEM] * 100).encode())
    (tmp_path / "events.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(DataError, match=r"events.jsonl.gz:\d+: a file that can be read"):
        list(open_dataset(tmp_path).events())
    (tmp_path / "events.jsonl").write_text(text(ITEM))
    with pytest.raises(DataError, match="each part once"):
        open_dataset(tmp_path)


COLUMNS = ("type", "time_ms", "item_id", "user_id", "fields", "request_id", "items", "context", "kind",
           "watch_ms", "value")  # fmt: skip


def as_table(folder: Path, ending: str, *events: dict, nested: bool = False) -> Path:
    """The events as rows; ``nested``: values that aren't plain as they are, else as JSON text."""

    def cell(value: object) -> object:
        return json.dumps(value) if isinstance(value, dict | list) and not nested else value

    rows = [{name: cell(event.get(name)) for name in COLUMNS} for event in events]
    (folder / "dataset.yaml").write_text("labels: [click]\nwindow_s: 60\nall_shown: true\n")
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "events.parquet", row_group_size=2)
    else:
        with (folder / "events.csv").open("w", newline="") as text:
            writer = csv.DictWriter(text, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_tables_give_the_events_of_the_lines(tmp_path: Path, ending: str) -> None:
    for name in ("lines", "table"):
        (tmp_path / name).mkdir()
    item = ITEM | {"fields": {"author": 'a,3\n"x"', "duration_ms": 9000}}
    lines = open_dataset(write(tmp_path / "lines", item, USER, SHOWN, LONG))
    table = open_dataset(as_table(tmp_path / "table", ending, item, USER, SHOWN, LONG))
    assert list(table.events()) == list(lines.events())
    (tmp_path / "table" / "predictions.parquet").touch()  # no part of the log
    assert len(list(open_dataset(tmp_path / "table").events())) == 5


def test_parquet_may_hold_lists_and_structs(tmp_path: Path) -> None:
    shown = SHOWN | {"context": {"page": "home"}}
    item = ITEM | {"fields": {"author": "a3", "tags": ["39"]}}
    folder = as_table(tmp_path, ".parquet", item, USER | {"fields": None}, shown, nested=True)
    read = [event for event in open_dataset(folder).events() if not isinstance(event, User)]
    assert read[0].fields == item["fields"] and read[1].context == {"page": "home"}
    assert [served.item_id for served in read[1].items] == ["v12", "v90"]


def test_ids_of_a_csv_file_are_texts_whatever_their_block_holds(tmp_path: Path) -> None:
    click = LONG | {"kind": "click"}
    events = [click | {"item_id": item, "watch_ms": None} for item in ("007", "x")]
    read = list(open_dataset(as_table(tmp_path, ".csv", *events)).events())
    assert [event.item_id for event in read] == ["007", "x"]
    assert [event.watch_ms for event in read] == [None, None]


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_tables_hold_values_of_engagements(tmp_path: Path, ending: str) -> None:
    events = [LONG | {"value": 9.5}, LONG | {"time_ms": LONG["time_ms"] + 1}]
    read = list(open_dataset(as_table(tmp_path, ending, *events)).events())
    assert [event.value for event in read if isinstance(event, Engagement)] == [9.5, msgspec.UNSET]


def test_a_value_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("labels: [click]\nwindow_s: 60\n")
    for text in ("much", '"5"'):
        row = ["engagement", "5", "u7", "v12", "click", text]
        with (tmp_path / "events.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["type", "time_ms", "user_id", "item_id", "kind", "value"], row])
        with pytest.raises(DataError, match=r"events.csv:1: "):
            list(open_dataset(tmp_path).events())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("engagement,soon,u7,v12,click,", r"events.csv:\d+: .*soon"),
        ("item,5,,v12,,{broken", r"events.csv:1: expected one JSON object"),
        ("engagement,5,u7,v12,,", r"events.csv:1: kind: "),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: str, says: str) -> None:
    (tmp_path / "dataset.yaml").write_text("labels: [click]\nwindow_s: 60\n")
    (tmp_path / "events.csv").write_text(f"type,time_ms,user_id,item_id,kind,fields\n{row}\n")
    with pytest.raises(DataError, match=says):
        list(open_dataset(tmp_path).events())


def test_a_log_of_clicks_alone_needs_no_request(tmp_path: Path) -> None:
    click = {"type": "engagement", "time_ms": 5, "user_id": "u7", "item_id": "v12", "kind": "click"}
    (event,) = open_dataset(write(tmp_path, click)).events()
    assert isinstance(event, Engagement) and event.request_id == ""
