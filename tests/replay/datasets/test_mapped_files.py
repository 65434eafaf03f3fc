"""Tables become events: in time order, each row once, and each unusable row with its line and reason."""

import gzip
import json
from decimal import Decimal
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.plugin_package.recsys_example_plugins import access_log
from recsys import plugins
from recsys.app.app_file import app_of
from recsys.app.data_files import DataFiles
from recsys.events.event_types import Engagement, Event, Impression, Item, User
from replay.datasets import mapped_files, table_rows
from replay.datasets.dataset import DataError
from replay.datasets.mapped_files import MappedFiles
from replay.datasets.table_rows import BadRow

CLICKS = {"user": "user", "item": "item", "time": "time", "unit": "s"}


def dataset(
    *paths: Path, bad: list[BadRow] | None = None, shown: str = "clicks", fields: str = "", **table: Any
) -> MappedFiles:
    app = app_of(f"events: {{click: positive, like: positive}}\nshown: {shown}\nfields: {{{fields}}}")
    files = msgspec.convert({"interactions": CLICKS} | table, DataFiles)
    rows = [] if bad is None else bad
    return MappedFiles(app, files, paths, now_ms=2_000_000, refuse=lambda file, row: rows.append(row))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def seen(events: Any) -> list[tuple[Any, ...]]:
    return [(e.time_ms, e.user_id, e.item_id, e.kind) for e in events if isinstance(e, Engagement)]


def test_rows_come_in_time_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_files, "_RANGE", 2)
    monkeypatch.setattr(table_rows, "ROWS", 2)
    text = "user,item,time\nb,2,20\na,1,10\nc,3,30\na,1,10\nd,4,5\n"
    data = dataset(write(tmp_path / "log.csv", text))
    expected = [(5_000, "d", "4", "click"), (10_000, "a", "1", "click"), (20_000, "b", "2", "click"),
                (30_000, "c", "3", "click")]  # fmt: skip
    assert seen(data.events()) == expected
    assert (data.repeats, data.out_of_order, data.rows["interactions"]) == (1, 3, 5)
    assert seen(data.events()) == expected  # again, from the beginning
    assert seen(data.events(10_000, 30_000)) == expected[1:3]
    data.learned_ms, data.shift_ms = 20_000, 7_000
    assert [t for t, *_ in seen(data.events())] == [27_000, 37_000]
    assert [t for t, *_ in seen(data.warmup())] == [12_000, 17_000]
    assert data.warmup().viewers == {"b", "c"}


def test_each_format_gives_the_same_events(tmp_path: Path) -> None:
    rows = [{"user": "a", "item": "x", "time": 10}, {"user": "ü", "item": "y", "time": 20}]
    csv = "user;item;time\n" + "".join(f"{r['user']};{r['item']};{r['time']}\n" for r in rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    files = [
        write(tmp_path / "log.csv", csv), write(tmp_path / "bom.csv", b"\xef\xbb\xbf" + csv.encode()),
        write(tmp_path / "log.tsv", csv.replace(";", "\t")), write(tmp_path / "log.jsonl", lines),
        write(tmp_path / "wide.csv", csv.encode("utf-16")), tmp_path / "log.parquet",
        write(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + lines.encode()),
        write(tmp_path / "log.csv.gz", gzip.compress(csv.encode())),
    ]  # fmt: skip
    for file in files:
        data = dataset(file)
        assert seen(data.events()) == [(10_000, "a", "x", "click"), (20_000, "ü", "y", "click")], file


def test_ids_keep_their_type(tmp_path: Path) -> None:
    file = write(tmp_path / "log.jsonl", '{"user":7,"item":"7","time":1}\n')
    assert seen(dataset(file).events()) == [(1_000, 7, "7", "click")]


def test_a_request_of_several_ids_is_refused_with_its_line(tmp_path: Path) -> None:
    row = {"user": "a", "item": "x", "time": 10, "shown": 1}
    lines = [json.dumps(row | {"request": request}) for request in ("r", ["r", "s"])]
    file, bad = write(tmp_path / "log.jsonl", "\n".join(lines)), list[BadRow]()
    table = CLICKS | {"request": "request", "labels": {"shown": "click"}}
    events = [*dataset(file, bad=bad, shown="list", interactions=table).events()]
    assert [e.request_id for e in events if isinstance(e, Impression)] == ["r:a:10000"]
    (refused,) = bad
    assert (refused.line, refused.value) == (2, "['r', 's']")
    assert refused.reason == "request: expected one id in each row, not several"


def test_whole_decimals_are_ids_and_nulls_in_lists_are_no_values(tmp_path: Path) -> None:
    number = 2**62 + 1
    ids = pa.array([Decimal(number)], pa.decimal128(38, 0))
    pq.write_table(pa.table({"user": ids, "item": ids, "time": [1]}), tmp_path / "log.parquet")
    pq.write_table(pa.table({"id": ids, "tags": [["a", None]]}), tmp_path / "items.parquet")
    table = {"id": "id", "fields": {"tags": "tags"}}
    paths = tmp_path / "log.parquet", tmp_path / "items.parquet"
    item, click, _ = dataset(*paths, fields="item: {tags: list}", items=table).events()
    assert isinstance(item, Item) and item.fields == {"tags": ["a"]}
    assert seen([click]) == [(1_000, number, number, "click")]


@pytest.mark.parametrize(
    ("cell", "tags"),
    [("a|b", ["a", "b"]), ('["a", 1]', ["a", "1"]), ("['a', None, 'b']", ["a", "b"]), ("[a] b", ["[a] b"]),
     ("[" * 9999, ["[" * 9999])],
)  # fmt: skip
def test_lists_in_cells(tmp_path: Path, cell: str, tags: list[str]) -> None:
    log = write(tmp_path / "log.csv", "user,item,time\na,x,1\n")
    items = write(tmp_path / "items.jsonl", json.dumps({"id": "x", "tags": cell}))
    table = {"id": "id", "fields": {"tags": "tags"}}
    item = next(iter(dataset(log, items, fields="item: {tags: list}", items=table).events()))
    assert isinstance(item, Item) and item.fields == {"tags": tags}


def test_rows_that_cannot_be_used_are_named_with_line_and_reason(tmp_path: Path) -> None:
    lines = [
        b"user,item,time", b"a,x,10", b"a,x", b"", b",x,11", b"a,x,soon", b"a,x,-5", b"a,x,99999999",
        b"a," + b"i" * 300 + b",12", b"\xff\xe9,x,13", b'a,"x\x01",14', b"b,y,15",
        b"a," + b"z" * 200_000 + b",16",
        b"c,z,17",
    ]  # fmt: skip
    bad: list[BadRow] = []
    data = dataset(write(tmp_path / "log.csv", b"\n".join(lines) + b"\n"), bad=bad)
    assert [user for _, user, _, _ in seen(data.events())] == ["a", "b", "c"]
    assert {row.line: row.reason for row in bad} == {
        3: "expected 3 cells", 5: "user: expected an id of 1 to 256 characters",
        6: "time: expected a number", 7: "time: expected 1970 to now, in s",
        8: "time: expected 1970 to now, in s", 9: "item: expected an id of 1 to 256 characters",
        10: "expected UTF-8: convert the file, e.g. with iconv", 11: "item: expected no control characters",
        13: "field larger than field limit (131072)",
    }  # fmt: skip
    assert next(row for row in bad if row.line == 6).value == "soon"
    assert data.dead_letters["time: expected 1970 to now, in s"] == 2


def test_an_open_quote_costs_a_few_rows_and_not_the_file(tmp_path: Path) -> None:
    rows = [f"u{i},v{i},{i}" for i in range(30_000)]
    rows[5] = 'u5,"v5,5'
    bad: list[BadRow] = []
    data = dataset(write(tmp_path / "log.csv", "user,item,time\n" + "\n".join(rows)), bad=bad)
    assert len(list(data.events())) > 15_000
    assert bad[0].line == 7 and bad[0].value.startswith("lines 7 to ")


def test_a_quote_that_another_closes_far_below_makes_no_row_of_the_lines_between(tmp_path: Path) -> None:
    rows = [f"u{i},{i},v{i},note" for i in range(500)]
    rows[5], rows[205] = '"u5,5,v5,note', 'u205",205,v205,note'
    rows[250], rows[261] = 'u250,250,v250,"note', 'u261",261,v261,note'  # these have another width
    rows[300], rows[499] = 'u300,300,v300,"note', 'of two hundred lines, and more"'
    rows[301:499] = [f"line {n}, and more" for n in range(198)]
    bad: list[BadRow] = []
    data = dataset(write(tmp_path / "log.csv", "user,time,item,note\n" + "\n".join(rows)), bad=bad)
    times = [ms // 1000 for ms, *_ in seen(data.events())]
    assert times == [*range(5), *range(206, 250), *range(262, 301)]
    reason = "expected text in quotes, not rows: close the quote"
    assert [(row.line, row.reason, row.value) for row in bad] == [
        (7, reason, "lines 7 to 207"),
        (252, reason, "lines 252 to 263"),
    ]


def test_broken_lines_of_json(tmp_path: Path) -> None:
    text = b'{"user":"a","item":"x","time":1}\n{"user":\n[1]\n\xff\n\n{"user":"b","item":"y"}\n'
    bad: list[BadRow] = []
    data = dataset(write(tmp_path / "log.jsonl", text), bad=bad)
    assert len(seen(data.events())) == 1
    assert [row.line for row in bad] == [2, 3, 4, 6]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("log.csv", "", "the file is empty"),
        ("log.csv", "user,item,time\n", "no row of the files is usable"),
        ("log.csv", "user,item,time\n,,\n", "no row of the files is usable; 1 user: expected an id"),
        ("log.csv", "1,2,3\n4,5,6\n", "a line with the names of the columns"),
        ("log.csv", "user,user,time\n1,2,3\n", "'user' is repeated"),
        ("log.csv", "who,what\n1,2\n", "the columns user, item, time .*it has who, what"),
        ("log.parquet", "nonsense", "a file that can be read"),
        ("log.csv.gz", "nonsense", "a file that can be read"),
        ("log.xlsx", "nonsense", "a file that ends in .csv.* no plug-in 'xlsx' of the group"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, expected: str) -> None:
    data = dataset(write(tmp_path / name, text))
    with pytest.raises(DataError, match=f"{name}.*{expected}"):
        list(data.events())


def test_a_plug_in_reads_files_that_end_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "examples.plugin_package.recsys_example_plugins"
    entries = [EntryPoint("access", f"{module}:access_log", plugins.READERS)]
    entries += [EntryPoint("broken", "json:loads", plugins.READERS)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(entries))
    file = write(tmp_path / "log.access.gz", gzip.compress(access_log.sample))
    bad: list[BadRow] = []
    files = {"interactions": CLICKS | {"unit": "iso"}}
    data = MappedFiles(
        app_of("shown: clicks"),
        msgspec.convert(files, DataFiles),
        [file],
        refuse=lambda file, row: bad.append(row),
    )
    pairs = [(user, item) for _, user, item, _ in seen(data.events())]
    assert pairs == [("bo", "v8"), ("ana", "v7")]
    assert [(row.line, row.reason) for row in bad] == [(3, "expected a request")]
    with pytest.raises(DataError, match="log.broken: expected a file that can be read .the JSON object"):
        list(dataset(write(tmp_path / "log.broken", "{}")).events())


@pytest.mark.parametrize("number", ["1e300", "1" * 400, "1" * 40])
def test_a_number_that_no_event_holds_costs_its_field_or_row(tmp_path: Path, number: str) -> None:
    rows = f'{{"user":"a","item":"x","time":1}}\n{{"user":"a","item":"x","time":{number}}}\n'
    items = f'{{"id":"x","price":{number},"title":{10**40}}}\n{{"id":"y","price":1}}\n'
    paths = write(tmp_path / "log.jsonl", rows), write(tmp_path / "items.jsonl", items)
    table = {"items": {"id": "id", "fields": {"price": "price", "title": "title"}}}
    data = dataset(*paths, fields="item: {price: number}", **table)
    listed = [event.item_id for event in data.events() if isinstance(event, Item)]
    assert listed == ["x", "y", "x"] and seen(data.events()) == [(1_000, "a", "x", "click")]
    fields = [f"{name}: expected a number; the field is left out" for name in ("price", "title")]
    assert data.dead_letters == dict.fromkeys((*fields, "time: expected a number"), 1)


def test_ratings_kinds_and_flags(tmp_path: Path) -> None:
    file = write(tmp_path / "log.csv", "user,item,time,stars\na,x,1,5\na,y,2,1\na,z,3,bad\n")
    stars = CLICKS | {"rating": "stars", "at_least": 4, "below": "click"}
    rated = dataset(file, interactions=stars)
    assert [kind for *_, kind in seen(rated.events())] == ["like", "click"]
    file = write(tmp_path / "kinds.csv", "user,item,time,what\na,x,1,Thumb Up\na,y,2,other\n")
    named = dataset(file, interactions=CLICKS | {"kind": "what", "names": {"Thumb Up": "like"}})
    assert [kind for *_, kind in seen(named.events())] == ["like"]
    assert named.dead_letters == {"what: expected one of click, like": 1}


def test_shown_items_of_one_moment_are_a_list(tmp_path: Path) -> None:
    text = "user,item,time,is_click\na,x,10,0\na,y,10,1\nb,x,10,0\na,z,11,2\n"
    table = CLICKS | {"labels": {"is_click": "click"}}
    data = dataset(write(tmp_path / "log.csv", text), shown="list", interactions=table)
    events: list[Event] = list(data.events())
    lists = [e for e in events if isinstance(e, Impression)]
    assert [[item.item_id for item in e.items] for e in lists] == [["x", "y"], ["x"]]
    (click,) = (e for e in events if isinstance(e, Engagement))
    assert (click.item_id, click.request_id) == ("y", lists[0].request_id)
    assert data.dead_letters == {"is_click: expected 0 or 1": 1}


def test_a_row_of_a_kind_that_is_an_event_may_be_a_shown_item_too(tmp_path: Path) -> None:
    text = "user,item,time,what\na,x,10,seen\na,y,10,Click\na,z,11,like\n"
    table = CLICKS | {"kind": "what", "shown": ["seen", "Click"], "names": {"Click": "click"}}
    data = dataset(write(tmp_path / "log.csv", text), shown="list", interactions=table)
    events: list[Event] = list(data.events())
    (listed,) = (e for e in events if isinstance(e, Impression))
    assert [item.item_id for item in listed.items] == ["x", "y"]
    engaged = [(e.item_id, e.kind, e.request_id) for e in events if isinstance(e, Engagement)]
    assert engaged == [("y", "click", listed.request_id), ("z", "like", "")]


def test_without_times_rows_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "log.csv", "user,item\nb,x\na,y\n")
    data = dataset(file, interactions={"user": "user", "item": "item"})
    assert seen(data.events()) == [(1_000, "b", "x", "click"), (2_000, "a", "y", "click")]


def test_items_that_no_table_has_are_published_when_they_first_occur(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item,time\nb,new,20\na,old,5\na,new,10\n")
    items = write(tmp_path / "items.csv", "id,title\nold,T\n")
    data = dataset(log, items, items={"id": "id", "fields": {"title": "title"}})
    events = list(data.events())
    published = [(e.time_ms, e.item_id, e.fields) for e in events if isinstance(e, Item)]
    old = {"title": "T"}
    assert published == [(0, "old", old), (5_001, "old", old), (10_001, "new", {})]
    rows = [event.time_ms for event in events if isinstance(event, Engagement)]
    assert rows == [5_000, 10_000, 20_000], "a row must not tell that its item is new"
    assert data.unlisted == 1
    data.shift_ms, data.learned_ms = 1_000, 20_000  # items come whole, with the rows from then on
    assert [e.time_ms for e in data.events()] == [0, 6_001, 11_001, 21_000]


def test_an_item_with_a_time_is_published_once(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item,time\na,x,20\n")
    items = write(tmp_path / "items.csv", "id,made\nx,3\ny,\n")
    data = dataset(log, items, items={"id": "id", "time": "made", "unit": "s"})
    assert [(type(e), e.time_ms) for e in data.events()] == [(Item, 0), (Item, 3_000), (Engagement, 20_000)]


def test_items_and_users_come_first_with_their_fields(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item,time\na,1,10\n")
    text = 'id,title,tags,price,photo,born\n1,T,"b|c",2.50,"[1,2]",2\n2,U,,cheap,"[1]",x\n'
    items = write(tmp_path / "items.csv", text)
    users = write(tmp_path / "users.jsonl", '{"uid":"a","land":"DE"}\n')
    names = {"title": "title", "tags": "tags", "price": "price", "photo": "photo", "born": "born"}
    data = dataset(
        log, items, users,
        fields="item: {tags: list, price: number, photo: {vector: 2}, born: time}",
        items={"id": "id", "fields": names, "unit": "s"}, users={"id": "uid", "fields": {"land": "land"}},
    )  # fmt: skip
    events = list(data.events())
    assert [type(event) for event in events] == [Item, Item, User, Engagement, Item]
    first, second = events[:2]
    assert isinstance(first, Item) and isinstance(second, Item)
    assert first.fields == {"title": "T", "tags": ["b", "c"], "price": 2.5, "photo": [1, 2], "born": 2_000}
    assert second.fields == {"title": "U"}
    assert data.dead_letters["price: expected a number; the field is left out"] == 1
    assert data.rows == {"interactions": 1, "items": 2, "users": 1}


def test_a_line_without_end_costs_its_row_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_rows, "_LINE", 1_000)
    good = '{"user":"a","item":"x","time":1}\n'
    text = good + '{"user":"' + "u" * 50_000 + '"}\n' + good.replace("1", "2")
    bad: list[BadRow] = []
    data = dataset(write(tmp_path / "log.jsonl", text), bad=bad)
    assert [time_ms for time_ms, *_ in seen(data.events())] == [1_000, 2_000]
    assert [(row.line, row.reason) for row in bad] == [
        (2, "expected a line of at most 1,000 bytes; leave columns out")
    ]
    assert len(bad[0].row) <= 200


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
def test_a_block_of_long_rows_has_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(table_rows, "_BLOCK", 1_000)
    row = {"user": "a", "item": "x" * 400}
    text = json.dumps(row) + "\n" if name.endswith("jsonl") else "a," + "x" * 400 + "\n"
    head = "" if name.endswith("jsonl") else "user,item\n"
    file = write(tmp_path / name, head + text * 10)
    blocks = list(table_rows.read_blocks(file))
    assert [len(block.lines) for block in blocks] == [3, 3, 3, 1]
    assert blocks[-1].lines == [10 + (name == "log.csv")]


def test_lists_are_whole_where_views_show_what_was_seen(tmp_path: Path) -> None:
    text = "user,item,time,what\na,x,1,impression\na,y,1,impression\na,x,2,click\n"
    table = CLICKS | {"kind": "what", "shown": ["impression"]}
    data = dataset(write(tmp_path / "log.csv", text), shown="view", interactions=table)
    (listed,) = [event for event in data.events() if isinstance(event, Impression)]
    assert [item.item_id for item in listed.items] == ["x", "y"]


def test_shown_items_have_a_context_and_engagements_a_value(tmp_path: Path) -> None:
    app = app_of(
        "events: {like: {label: positive, value: seconds}, click: none}\nshown: list\n"
        "fields: {context: {device: category, battery: number}}"
    )
    table: dict[str, Any] = CLICKS | {"labels": {"like": "like", "click": "click"}, "value": "heard"}
    table["context"] = {"device": "device", "battery": "battery"}
    files = msgspec.convert({"interactions": table}, DataFiles)
    text = "user,item,time,like,click,heard,device,battery\na,x,1,1,1,30.5,phone,full\na,y,2,1,0,,car,7\n"
    bad: list[BadRow] = []
    path = write(tmp_path / "log.csv", text)
    events = list(MappedFiles(app, files, [path], refuse=lambda _, row: bad.append(row)).events())
    contexts = [event.context for event in events if isinstance(event, Impression)]
    assert contexts == [{"device": "phone"}, {"device": "car", "battery": 7}]
    values = [event.value for event in events if isinstance(event, Engagement)]
    assert values == [30.5, msgspec.UNSET, msgspec.UNSET]
    assert [(row.value, row.reason) for row in bad] == [
        ("full", "battery: expected a number; the field is left out")
    ]


def test_a_value_is_read_of_kinds_that_carry_one_alone(tmp_path: Path) -> None:
    app = app_of("events: {view: none, buy: {label: positive, value: amount}}\nshown: clicks")
    table = CLICKS | {"kind": "kind", "value": "paid"}
    path = write(tmp_path / "log.csv", "user,item,time,kind,paid\na,x,1,view,-\na,x,2,buy,3\na,x,3,buy,-\n")
    bad: list[BadRow] = []
    files = msgspec.convert({"interactions": table}, DataFiles)
    events = MappedFiles(app, files, [path], refuse=lambda _, row: bad.append(row)).events()
    values = {event.kind: event.value for event in events if isinstance(event, Engagement)}
    assert values == {"view": msgspec.UNSET, "buy": 3}
    assert [(row.line, row.reason) for row in bad] == [(4, "paid: expected a number")]


def test_dates_with_dots_are_days_months_years(tmp_path: Path) -> None:
    file = write(tmp_path / "log.csv", "user;item;time\na;x;01.2.1970 00:01\n")
    data = dataset(file, interactions=CLICKS | {"unit": "iso"})
    data._latest_ms = 10**12
    assert [ms for ms, *_ in seen(data.events())] == [31 * 86_400_000 + 60_000]


@pytest.mark.parametrize("wrong", ["user", "item", "time", "kind", "request", "value"])
def test_a_column_that_no_file_has_is_an_error_and_not_empty(tmp_path: Path, wrong: str) -> None:
    roles = {role: role for role in ("user", "item", "time", "kind", "request", "value")}
    table: dict[str, Any] = roles | {
        wrong: "other",
        "unit": "s",
        "files": ["log.csv"],
        "names": {"": "click"},
    }
    file = write(tmp_path / "log.csv", "user,item,time,kind,request,value\na,x,1,click,r,\n")
    items: dict[str, Any] = {"id": "item", "files": ["items.csv"]}
    with pytest.raises(DataError, match=r"log\.csv: expected the column 'other' of files\.inter.*user"):
        dataset(file, interactions=table, items=items).times_ms  # noqa: B018
    titles = write(tmp_path / "items.csv", "item,name\nx,A\n")
    items |= {"fields": {"title": "title"}}
    with pytest.raises(DataError, match=r"items\.csv: .*'title' of files\.items; there are item, name"):
        dataset(titles, interactions=table, items=items).times_ms  # noqa: B018
