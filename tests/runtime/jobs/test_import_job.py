"""Imports: each row is on the log once, also after a kill; what is learned is what the system starts from."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from parameter_server.storage import snapshots
from recsys.app.app_file import read_app
from recsys.app.data_files import read_data_files
from recsys.clock import machine_ms
from recsys.config.loader import load
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event, Item, decode, encode
from recsys.events.records import EVENTS, EXAMPLES, ITEMS, record_of
from recsys.log.protocol import Append, Log, read_range
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_snapshot import PartState
from replay.datasets.dataset import DataError
from replay.datasets.mapped_files import MappedFiles
from runtime.jobs import import_job
from runtime.jobs.import_job import Importer, whole_weeks
from serving.sessions import session_loop
from training.joining.joiner_loop import PART, JoinerLoop
from training.lines.control import append_live_record, live_epoch
from training.lines.line import MAIN

START_S = 1_700_000_000
APP = """
events: {like: positive, rate: none}
fields: {item: {genre: category}}
shown: clicks
features: {half_lives: [1h], rates: [all, item], near: true}
files:
  interactions:
    {files: [log.csv], user: u, item: i, time: t, unit: s, rating: r, at_least: 4}
  items: {files: [items.csv], id: i, fields: {genre: genre}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.yaml").write_text(APP)
    (tmp_path / "items.csv").write_text("i,genre\n" + "".join(f"{i},g{i % 3}\n" for i in range(30)))
    write_rows(tmp_path, 300)
    return tmp_path


def write_rows(folder: Path, count: int) -> None:
    rows = (f"{n % 17},{n * 7 % 30},{1 + n % 5},{START_S + n * 60}\n" for n in range(count))
    (folder / "log.csv").write_text("u,i,r,t\n" + "".join(rows))


@pytest.fixture
def config(folder: Path) -> Config:
    return load("laptop", read_app(folder / "app.yaml").config)


@pytest.fixture
def log(folder: Path, config: Config) -> Iterator[Log]:
    log = open_log(_in(folder, config))
    create_topics(log, config)
    yield log
    log.close()


def _in(folder: Path, config: Config) -> Config:
    return replace(config, state=str(folder / "state"))


def run(folder: Path, config: Config, log: Log, learn: int = 0, names: Sequence[str] = ()) -> dict[str, Any]:
    file = folder / "app.yaml"
    files = read_data_files(file)
    data = MappedFiles(read_app(file), files, [folder / name for name in names or files.names])
    return Importer(read_app(file), _in(folder, config), log, machine_ms, learn, iter).run(data)


def on_log(log: Log, topic: str) -> list[Event]:
    return [
        decode(record.value)
        for partition in range(log.partitions(topic))
        for record in read_range(log, topic, partition, 0, log.end(topic, partition))
    ]


def ids(log: Log) -> list[str]:
    events = on_log(log, ITEMS) + on_log(log, EVENTS)
    return [event.event_id for event in events]  # type: ignore[union-attr, misc]


def joined(folder: Path, config: Config, log: Log) -> int:
    """Number of events before the joiner's offsets."""
    features, state = read_app(folder / "app.yaml").feature_set(), PartState(folder / "state", PART)
    with closing(JoinerLoop(log, config, features, lambda: 0, state)) as loop:
        return sum(loop.offsets.values())


def test_rows_are_imported_once_and_new_ones_later(folder: Path, config: Config, log: Log) -> None:
    first = run(folder, config, log)
    assert (first["new"], first["imported_before"]) == (330, 0)
    assert (len(on_log(log, ITEMS)), len(on_log(log, EVENTS))) == (60, 300)
    again = run(folder, config, log)
    assert (again["new"], again["imported_before"]) == (0, 330)
    write_rows(folder, 310)
    more = run(folder, config, log)
    assert more["new"] == 10 and len(set(ids(log))) == len(ids(log)) == 370
    assert more["shift_ms"] == first["shift_ms"]


@pytest.mark.parametrize("id_", ["import:x", "import:", f"import:{2**63}", "import:" + "9" * 200])
def test_an_event_whose_id_looks_like_that_of_a_row_is_none(
    folder: Path, config: Config, log: Log, id_: str
) -> None:
    run(folder, config, log)
    event = Engagement(
        time_ms=START_S * 1000, request_id="", user_id="u", item_id="1", kind="like", event_id=id_
    )
    log.append(EVENTS, [Append(0, b"u", encode(event))])
    again = run(folder, config, log)
    assert (again["new"], again["imported_before"]) == (0, 330)


def test_rows_without_a_table_of_items_leave_the_fields_of_items(
    folder: Path, config: Config, log: Log
) -> None:
    run(folder, config, log)
    write_rows(folder, 301)
    with (folder / "log.csv").open("a") as file:
        file.write(f"1,new,5,{START_S}\n")
    run(folder, config, log, names=["log.csv"])
    items = [(event.item_id, bool(event.fields)) for event in on_log(log, ITEMS)]  # type: ignore[union-attr]
    assert len(items) == 61 and [name for name, has_fields in items if not has_fields] == ["new"]


def test_a_later_import_publishes_no_item_again_that_is_dated(folder: Path, config: Config, log: Log) -> None:
    run(folder, config, log)
    published = [event for event in on_log(log, ITEMS) if isinstance(event, Item)]
    assert [e.time_ms > 0 for e in published] == [False] * 30 + [True] * 30
    changes = [Item(time_ms=machine_ms(), item_id=id_, removed=id_ == "1") for id_ in ("1", "2")]
    log.append(ITEMS, [record_of(item, 1) for item in changes])
    rows = (f"{n % 17},{n * 7 % 30},5,{START_S + 20_000 + n * 60}\n" for n in range(30))
    (folder / "log.csv").write_text("u,i,r,t\n" + "".join(rows))
    assert run(folder, config, log)["new"] == 30
    assert len(on_log(log, ITEMS)) == 62, "neither the removed nor the changed one"


def test_items_have_the_fields_of_the_newest_import(folder: Path, config: Config, log: Log) -> None:
    table = folder / "items.csv"

    def genres() -> str:
        run(folder, config, log)
        items = {str(e.item_id): e.fields for e in on_log(log, ITEMS) if isinstance(e, Item)}
        return "".join(str(items[name]["genre"]) for name in ("1", "2"))

    table.write_text("i,genre\n1,a\n2,x\n2,y\n")
    assert genres() == "ay"
    table.write_text("i,genre\n1,b\n2,x\n2,y\n")
    assert genres() == "by"
    table.write_text("i,genre\n1,a\n2,x\n2,y\n")
    assert genres() == "ay"  # as it was before
    end = log.end(ITEMS, 0)
    assert genres() == "ay" and log.end(ITEMS, 0) == end


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_killed_import_goes_on_without_repeats(
    folder: Path, config: Config, log: Log, killed_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_job, "BATCH", 50)
    append, calls = log.append, iter(range(100))

    def killed(topic: str, records: Any) -> list[int]:
        offsets = append(topic, records)
        if next(calls) == killed_after:
            raise KeyboardInterrupt
        return offsets

    monkeypatch.setattr(log, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, config, log)
    monkeypatch.setattr(log, "append", append)
    done = sum(id_.startswith("import:") for id_ in ids(log))
    assert run(folder, config, log)["new"] == 330 - done
    assert len(set(ids(log))) == len(ids(log)) == 360
    assert joined(folder, config, log) == 300  # none of them is joined again


@pytest.mark.parametrize("rows", [310, 320])
def test_an_import_that_was_killed_while_it_trained_trains_when_it_goes_on(
    folder: Path, config: Config, log: Log, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    run(folder, config, log)
    append_live_record(log, MAIN, 1, "imported", 0)
    write_rows(folder, 310)
    monkeypatch.setattr(Importer, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, config, log, learn=200)
    write_rows(folder, rows)
    monkeypatch.setattr(Importer, "_train", lambda *_: {"steps": 1})
    again = run(folder, config, log, learn=200)
    assert (again["new"], again["steps"]) == (rows - 310, 1)
    assert joined(folder, config, log) == rows
    assert "steps" not in run(folder, config, log, learn=200)


def test_rows_are_noted_once_a_power_cut_leaves_them_on_the_log(
    folder: Path, config: Config, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, synced, fsync = (folder / "state" / "import" / "rows.npy", list[tuple[int, int]](), os.fsync)
    names = set[str]()

    def sync() -> None:
        synced.append((len(ids(log)), len(np.load(notes)) if notes.exists() else 0))

    def sync_one(descriptor: int) -> None:
        names.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "sync", sync)
    monkeypatch.setattr(os, "fsync", sync_one)
    run(folder, config, log)
    assert (360, 0) in synced and any("/.import.json." in name for name in names)


def test_old_times_move_by_whole_weeks(folder: Path, config: Config, log: Log) -> None:
    week = 7 * 86_400_000
    assert [whole_weeks(age) for age in (0, 2 * week, 2 * week + 1, 5 * week - 1)] == [
        0, 0, 2 * week, 4 * week]  # fmt: skip
    report = run(folder, config, log)
    assert report["shift_ms"] % week == 0 and report["shift_ms"] > 0
    first = min(event.time_ms for event in on_log(log, EVENTS))
    assert first == START_S * 1000 + report["shift_ms"]


def test_newer_rows_that_would_move_into_the_future_are_refused(
    folder: Path, config: Config, log: Log
) -> None:
    first = run(folder, config, log)
    kept = (folder / "state/import/import.json").read_bytes()
    with (folder / "log.csv").open("a") as file:
        file.write(f"1,1,5,{machine_ms() // 1000}\n")
    with pytest.raises(ValueError, match="days ahead, expected at most 1.*new state folder"):
        run(folder, config, log)
    assert len(ids(log)) == first["new"] + 30
    assert (folder / "state/import/import.json").read_bytes() == kept


def test_rows_that_would_be_other_events_now_are_refused(folder: Path, config: Config, log: Log) -> None:
    first = run(folder, config, log)
    file = folder / "app.yaml"
    file.write_text(APP.replace("at_least: 4", "at_least: 3"))
    with pytest.raises(ValueError, match=r"at_least is 3\.0, expected 4\.0 .*new state folder"):
        run(folder, config, log)
    assert len(ids(log)) == first["new"] + 30
    file.write_text(APP.replace("[log.csv]", "[log.csv, log2.csv]").replace("t,", "t, names: {r: rate},"))
    assert run(folder, config, log, names=["log.csv", "items.csv"])["new"] == 0


def test_engagements_that_no_list_shows_are_counted_and_most_of_them_refused(
    folder: Path, config: Config, log: Log
) -> None:
    text = APP.replace("shown: clicks", "shown: list").replace(
        "rating: r, at_least: 4", "kind: r, shown: [show]"
    )
    (folder / "app.yaml").write_text(text)
    shown = [f"u{n},{k},show,{START_S + n * 60}" for n in range(40) for k in range(3)]

    def clicks(lost: int) -> list[str]:
        """The last ``lost`` are of items that weren't shown."""
        return [f"u{n},{1 + 9 * (n >= 40 - lost)},like,{START_S + n * 60 + 1}" for n in range(40)]

    (folder / "log.csv").write_text("\n".join(["u,i,r,t", *shown, *clicks(21)]))
    with pytest.raises(ValueError, match="21 of the first 40 engagements have no list before them"):
        run(folder, config, log)
    assert not ids(log)
    (folder / "log.csv").write_text("\n".join(["u,i,r,t", *shown, *clicks(20)]))
    report = run(folder, config, log)
    counts = report["engagements_looked_at"], report["engagements_without_a_list"]
    assert counts == (40, 20) and report["new_rows"] == 80


def test_rows_without_times_come_after_all_earlier_ones(folder: Path, config: Config, log: Log) -> None:
    (folder / "app.yaml").write_text(APP.replace("time: t, unit: s, ", ""))
    run(folder, config, log)
    (folder / "later.csv").write_text("u,i,r,t\n1,1,5,0\n")
    for names in (["later.csv"], ["later.csv", "log.csv", "items.csv"]):
        with pytest.raises(ValueError, match="expected the 300 of earlier imports first"):
            run(folder, config, log, names=names)
    assert run(folder, config, log, names=["log.csv", "later.csv", "items.csv"])["new"] == 1


def test_the_log_keeps_imported_events_until_they_are_folded(folder: Path, config: Config, log: Log) -> None:
    run(folder, config, log)
    assert all(log.holds(EVENTS, p)[session_loop.NAME] == 0 for p in range(log.partitions(EVENTS)))


def test_bad_files_leave_nothing_behind(folder: Path, config: Config, log: Log) -> None:
    (folder / "log.csv").write_text("u,i,r,t\n,,,\n")
    with pytest.raises(DataError, match="no row of the files is usable"):
        run(folder, config, log)
    assert not ids(log) and not (folder / "state/import").exists()


@pytest.mark.slow
def test_the_system_starts_from_what_was_learned(folder: Path, config: Config, log: Log) -> None:
    report = run(folder, config, log, learn=200)
    assert report["learned"] == 200 and report["steps"] > 0
    epoch = live_epoch(log)
    snapshot = snapshots.require(folder / "state/snapshots", MAIN, epoch)
    assert (epoch, snapshot.step) == (1, report["steps"])
    dense = snapshot.read(0)["dense/values"]
    assert np.isfinite(dense).all() and log.end(EXAMPLES, 0) == 0
    assert "steps" not in run(folder, config, log, learn=200)  # nothing is new
    write_rows(folder, 310)
    assert "steps" in run(folder, config, log, learn=200) and live_epoch(log) == 2


def test_an_import_noted_by_another_version_is_refused(folder: Path, config: Config, log: Log) -> None:
    run(folder, config, log)
    file = folder / "state/import/import.json"
    progress = msgspec.json.decode(file.read_bytes())
    kept = {name: progress[name] for name in ("log_id", "shift_ms", "ends", "began")}
    file.write_bytes(msgspec.json.encode(kept))
    with pytest.raises(ValueError, match="import.json can't be read .* new state folder"):
        run(folder, config, log)


@pytest.mark.slow
def test_a_later_file_alone_leaves_what_all_rows_taught(folder: Path, config: Config, log: Log) -> None:
    run(folder, config, log, learn=200)
    (folder / "new.csv").write_text(f"u,i,r,t\n1,1,5,{START_S + 300 * 60}\n")
    later = run(folder, config, log, learn=200, names=["new.csv"])
    assert (later["new"], later["missing"], live_epoch(log)) == (1, 300, 1)
    again = run(folder, config, log, learn=200, names=["new.csv", "log.csv", "items.csv"])
    assert (again["new"], again["learned"], live_epoch(log)) == (0, 200, 2)
    assert "steps" not in run(folder, config, log, learn=200)
