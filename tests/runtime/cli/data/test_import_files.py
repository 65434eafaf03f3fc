"""`recsys init` and `recsys import` as a person runs them, from good and from bad files."""

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from recsys.app.app_file import read_app
from recsys.process.part_process import write_atomically
from replay.datasets import table_rows
from replay.datasets.open_dataset import open_dataset
from runtime.cli.main import app
from runtime.supervision import run_file
from runtime.supervision.processes import identify

START_S = 1_700_000_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [f"u{n % 9},i{n % 20},{1 + n % 5},{START_S + n * 60}" for n in range(200)]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,itemId,rating,timestamp", *rows]))
    (tmp_path / "items.jsonl").write_text(
        "".join(f'{{"itemId":"i{n}","genre":"g{n % 3}","name":"A {n}"}}\n' for n in range(20))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recsys(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_init_shows_its_guess_and_writes_it(folder: Path) -> None:
    result = recsys("init", "ratings.csv", "items.jsonl")
    assert result.exit_code == 0, result.output
    assert "from 4 on: like (40% of the rows), else: rate" in result.output
    assert "recsys import ratings.csv items.jsonl --app app.yaml" in result.output
    assert list(read_app(folder / "app.yaml").fields["item"]) == ["genre"]
    again = recsys("init", "ratings.csv")
    assert again.exit_code == 2 and "app.yaml exists already" in again.output


def test_replay_reads_what_import_reads(folder: Path) -> None:
    recsys("init", "ratings.csv", "items.jsonl")
    definition = folder / "app.yaml"
    for path in (folder, folder / "ratings.csv"):
        events = list(open_dataset(path, read_app(definition), definition).events())
        assert sum(type(event).__name__ == "Engagement" for event in events) == 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "the file is empty"), ("a,b\n1,2\n", "name them with --user and --item"),
     ("user,item\na,b,\n", "there is none; line 2: expected 2 cells, found 3"),
     ("user,item\n", "rows that can be read; there is none"),
     ("user,item,when\na,b,1\n", "'when' has '1', expected times")],
)  # fmt: skip
def test_init_of_bad_files(folder: Path, text: str, expected: str) -> None:
    (folder / "bad.csv").write_text(text)
    result = recsys("init", "bad.csv", *(("--time", "when") if "when" in text else ()))
    assert result.exit_code == 2 and expected in result.output
    assert not (folder / "app.yaml").exists()
    missing = recsys("init", "bad.csv", "--user", "who")
    assert missing.exit_code == 2


def test_lines_of_json_may_lack_a_column_for_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "ROWS", 2)
    lines = [{"user": "a", "item": str(n), **({"event": "view"} if n > 1 else {})} for n in range(6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = recsys("init", "log.jsonl")
    assert result.exit_code == 0 and "event view: positive" in result.output, result.output


def test_rows_of_an_item_again_are_counted_in_the_whole_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second half, which repeats the first, the sample has one row in each block."""
    monkeypatch.setattr(table_rows, "ROWS", 100)
    monkeypatch.setattr("runtime.cli.data.import_files._SAMPLE", 1)
    pairs = [f"u{n},i{n % 7}" for n in range(300)]
    (folder / "log.csv").write_text("\n".join(["user,item", *pairs, *pairs[:100]]))
    result = recsys("init", "log.csv")
    assert "repeats: 25% of the rows are of an item again" in result.output, result.output
    assert read_app(folder / "app.yaml").repeats


@pytest.mark.slow
def test_import_reports_and_names_refused_rows(folder: Path) -> None:
    with (folder / "ratings.csv").open("a") as file:
        file.write("\nu1,i1,good,1700000000\nu1,i1\n")
    recsys("init", "ratings.csv", "items.jsonl")
    result = recsys("import", "--state", "state", "--learn", "0", "--report", "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "report.json").read_text())
    assert report["new"] == 220 and report["refused"] == {
        "rating: expected a number": 1,
        "expected 4 cells": 1,
    }
    rows = list(csv.DictReader((folder / "refused.csv").open()))
    assert [(row["line"], row["value"]) for row in rows] == [("203", "2"), ("202", "good")]
    assert (folder / "state/app.yaml").read_text() == (folder / "app.yaml").read_text()


@pytest.mark.slow
def test_import_says_how_it_compares_with_simple_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the wheel, which has no benchmarks: each user takes the items in one order, in visits of five,
    of which the last is judged."""
    monkeypatch.setitem(sys.modules, "benchmarks", None)
    rows = [
        f"u{user},i{n * 7 % 25},{START_S + n // 5 * 86_400 + n * 60 + user}"
        for n in range(25)
        for user in range(60)
    ]
    (folder / "clicks.csv").write_text("\n".join(["userId,itemId,timestamp", *rows]))
    recsys("init", "clicks.csv", "items.jsonl")
    definition = (folder / "app.yaml").read_text().replace("repeats: true", "repeats: false")
    (folder / "app.yaml").write_text(definition)
    result = recsys("import", "--state", "state", "--report", "report.json", "--strict")
    report = json.loads((folder / "report.json").read_text())
    is_behind = any(q["verdict"]["verdict"] == "behind" for q in report["retrieval"]["questions"].values())
    assert result.exit_code == is_behind, result.output
    assert ("a simple list is ahead: learn from more rows" in result.output) == is_behind
    questions = json.loads((folder / "report.json").read_text())["retrieval"]["questions"]
    assert [questions[q]["cases"] for q in ("next", "first", "new")] == [240, 60, 0]
    assert questions["next"]["ours"]["hit@10"] > 0.5
    assert questions["next"]["lists"]["transitions"]["hit@10"] > 0.98  # a visit has a first user
    assert "The next item of a visit: 240 cases" in result.output
    assert "The first item of the next visit: 60 cases" in result.output
    table = result.output.partition("The next item of a visit")[2].partition("The first item")[0]
    hits = [float(line.split(" ±")[0].split()[-1]) for line in table.splitlines() if " ±" in line]
    assert len(hits) == 11 and hits == sorted(hits, reverse=True)
    assert re.search(
        r"the next item of a visit: (level with|behind|ahead of) .+ by .+, 240 cases", result.output
    )
    assert "new viewers: 0 cases" in result.output


@pytest.mark.slow
def test_nothing_is_written_where_the_files_or_the_system_do_not_fit(folder: Path) -> None:
    recsys("init", "ratings.csv", "items.jsonl")
    (folder / "ratings.csv").write_text("userId,itemId\n")
    (folder / "state/rows-killed").mkdir(parents=True)
    result = recsys("import", "--state", "state")
    assert result.exit_code == 2 and "no row of the files is usable" in result.output
    assert [file.name for file in (folder / "state").iterdir()] == ["run"]
    result = recsys("import", "nothing.csv", "--state", "state")
    assert result.exit_code == 2 and "there is no file nothing.csv" in result.output
    with run_file.lock("state"):
        result = recsys("import", "--state", "state")
    assert result.exit_code == 2 and "end it first (recsys down" in result.output
    own = identify(os.getpid())
    left = run_file.Running(supervisor=own, config_digest="", started_ms=0, time_ms=0)
    write_atomically(Path("state/run/up.json"), msgspec.json.encode(left))
    result = recsys("import", "--state", "state")
    assert result.exit_code == 2 and "end them first (recsys down" in result.output
