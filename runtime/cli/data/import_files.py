"""``recsys init`` and ``recsys import``: from an app's own files to a definition and a trained system."""

import csv
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from tqdm import tqdm
from typer import Argument, Option

from recsys.app.app_file import app_of
from recsys.app.data_files import Interactions, read_data_files
from recsys.app.guess import guess, repeated_share
from recsys.app.kept_definition import keep_definition, with_definition
from recsys.log.protocol import LogLost, LogUnavailable
from recsys.process.clock_file import clock_of, start_clock
from recsys.process.open_log import create_topics, open_log
from replay.datasets.dataset import DataError
from replay.datasets.mapped_files import MappedFiles
from replay.datasets.table_rows import BadRow, Block, read_blocks
from replay.judging.answers import is_behind
from replay.predictions import write_report
from runtime.cli.common import ConfigOption, StateOverride, exit_on
from runtime.reports.tables import plain_table, some_of
from runtime.supervision import run_file
from runtime.supervision.run_file import AlreadyRuns, holder, lock

Files = Annotated[list[Path], Argument(help="CSV, Parquet or JSON Lines files.")]
_SAMPLE: Final = 200  # rows of each block that are looked at
_SCRATCH: Final = "rows-"  # beginning of the names of scratch folders


def init(
    files: Files,
    to: Annotated[Path, Option(help="The definition to write.")] = Path("app.yaml"),
    user: Annotated[str, Option(help="Column of users, if its name doesn't tell.")] = "",
    item: Annotated[str, Option(help="Column of items.")] = "",
    time: Annotated[str, Option(help="Column of times.")] = "",
    kind: Annotated[str, Option(help="Column that says what happened, e.g. a click.")] = "",
    shown: Annotated[str, Option(help="Value there of an item that was only shown.")] = "",
    request: Annotated[str, Option(help="Column of the shown lists' ids.")] = "",
) -> None:
    """Guesses the definition of an app from files of interactions (and items, users)."""
    console = Console()
    with exit_on(DataError, ValueError, OSError):
        if to.exists():
            raise ValueError(f"{to} exists already: name another with --to, or remove it")
        samples = {os.path.relpath(file, to.parent): _sample(file) for file in files}
        named = {"user": user, "item": item, "time": time, "kind": kind, "request": request}
        given = {role: column for role, column in named.items() if column}
        columns = {name for sample in samples.values() for name in sample}
        if missing := [x for x in given.values() if x not in columns]:
            raise ValueError(f"no file has the column {missing[0]!r}; there are {', '.join(columns)}")

        def repeated(table: Interactions) -> float:
            paths = (to.parent / name for name in table.files)
            blocks = (block.columns for path in paths for block in read_blocks(path))
            return repeated_share(blocks, table)

        guessed = guess(to.resolve().parent.name, samples, given, shown, repeated)
        app_of(guessed.text, to)
        to.write_text(guessed.text, "utf-8")
    console.print(plain_table(("file", "column", "taken for"), guessed.rows))
    if "time" not in guessed.definition["files"]["interactions"]:
        console.print(
            "no column of times (--time names one): rows count in the order of the file, a second apart"
        )
    console.print(f"shown: {guessed.definition['shown']}. Wrote {to}: correct it where it is wrong, then")
    names = " ".join(map(str, files))
    console.print(f"recsys import {names} --app {to} --state state", soft_wrap=True)


def _sample(file: Path) -> dict[str, list[Any]]:
    """The first rows and some of each later block, by column."""
    sample, rows, size, why = dict[str, list[Any]](), 0, 0, ""
    for block in _with_bar(read_blocks(file), file):
        step = max(1, len(block.lines) // _SAMPLE) if rows else 1
        rows += len(block.lines)
        missing = [None] * len(block.lines)
        for name in {**sample, **block.columns}:  # lines of JSON needn't have all
            values = block.columns.get(name, missing)[::step]
            sample.setdefault(name, [None] * size).extend(values)
        size += len(missing[::step])
        if block.bad and not why:
            why = f"; line {block.bad[0].line}: {block.bad[0].reason}, found {block.bad[0].value}"
    if not rows:
        raise DataError(file, f"expected rows that can be read; there is none{why}")
    return sample


def import_(
    files: Annotated[list[Path] | None, Argument(help="Default: those of the definition.")] = None,
    app: Annotated[Path, Option(help="Definition of the app.")] = Path("app.yaml"),
    state: StateOverride = None,
    config: ConfigOption = "laptop",
    learn: Annotated[int | None, Option(min=0, help="Newest rows to train from; 0: none.")] = None,
    keep_times: Annotated[bool, Option(help="Don't move old times to this week.")] = False,
    refused: Annotated[Path, Option(help="File for rows that aren't used.")] = Path("refused.csv"),
    report: Annotated[Path | None, Option(help="Write the report to this JSON file.")] = None,
    strict: Annotated[bool, Option(help="Fail if a simple list is ahead.")] = False,
) -> None:
    """Writes files to the log of a state folder, each row once, and trains from the newest rows."""
    from replay.replay_report import with_bar  # imports torch
    from runtime.jobs.history_folds import HistoryFolds
    from runtime.jobs.import_job import Importer, rows_to_learn

    with ExitStack() as stack:
        stack.enter_context(exit_on(OSError, ValueError, LogLost, LogUnavailable, AlreadyRuns))
        settings, definition, _ = with_definition(config, state, app)
        assert definition is not None
        tables = read_data_files(app)
        paths = files or [app.parent / name for name in tables.names]
        if missing := [path for path in paths if not path.is_file()]:
            raise ValueError(f"there is no file {missing[0]}")
        if user := holder(settings.state):
            raise ValueError(f"{user} uses {settings.state}: end it first (recsys down --state)")
        if (running := run_file.read(settings.state)) and running.any_alive():
            parts = "parts of a system whose supervisor is gone"
            raise ValueError(f"{parts} use {settings.state}: end them first (recsys down --state)")
        stack.enter_context(lock(settings.state))
        for left in Path(settings.state).glob(f"{_SCRATCH}*"):  # by a killed import
            shutil.rmtree(left)
        scratch = stack.enter_context(TemporaryDirectory(dir=settings.state, prefix=_SCRATCH))
        rows = csv.writer(stack.enter_context(refused.open("w", encoding="utf-8", newline="")))
        rows.writerow(("file", "line", "reason", "value", "row"))

        def refuse(file: Path, bad: BadRow) -> None:
            rows.writerow((file, *bad))

        start_clock(settings)
        clock = clock_of(settings)
        dataset = MappedFiles(
            definition, tables, paths, now_ms=clock(), scratch=Path(scratch),
            refuse=refuse, progress=_with_bar,
        )  # fmt: skip
        dataset.times_ms  # noqa: B018  # reads all files: nothing is written before
        keep_definition(settings, definition, app)
        log = stack.enter_context(closing(open_log(settings)))
        create_topics(log, settings)
        learn = rows_to_learn(definition) if learn is None else learn
        importer = Importer(definition, settings, log, clock, learn, with_bar, fold=HistoryFolds)
        result = importer.run(dataset, keep_times)
    if report is not None:
        write_report(report, result)
    _print(result, refused, app, settings.state)
    if strict and is_behind(result.get("retrieval")):
        raise typer.Exit(1)


def _with_bar(blocks: Iterator[Block], file: Path) -> Iterable[Block]:
    every_s = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(desc=file.name, unit=" rows", unit_scale=True, mininterval=every_s) as bar:
        for block in blocks:
            yield block
            bar.update(len(block.lines))


def _print(result: dict[str, Any], refused: Path, app: Path, state: str) -> None:
    console = Console()
    rows = [(f"rows of {kind}", f"{count:,}") for kind, count in result["rows"].items()]
    rows += [(f"refused: {why}", f"{count:,}") for why, count in result["refused"].items()]
    if count := result["items_without_fields"]:
        rows += [("items that no table of items has", f"{count:,}")]
    if count := result.get("engagements_without_a_list"):
        of = f"{count:,} of the first {result['engagements_looked_at']:,}"
        rows += [("engagements that no list shows", f"{of}: they teach nothing")]
    counts = ("repeated", "out_of_order", "new", "imported_before")
    rows += [(name.replace("_", " "), f"{result[name]:,}") for name in counts]
    ends_ms = result["from_ms"], result["until_ms"]
    days = (f"{datetime.fromtimestamp(end_ms / 1000, UTC):%Y-%m-%d}" for end_ms in ends_ms)
    rows += [("times", " to ".join(days))]
    if result["shift_ms"]:
        rows += [("moved by", f"{result['shift_ms'] // 604_800_000:,} weeks, to this one")]
    if "steps" in result:
        text = f"{result['steps']:,} steps from the newest {result['learned']:,} rows"
        rows += [("trained", text)]
    if not result.get("folded", True):
        rows += [("sessions and counters", "not folded: `recsys up` folds them first, see above why")]
    if constant := result.get("constant_columns"):
        rows += [("columns of one value, which teach nothing", some_of(constant))]
    if "missing" in result:
        text = f"no: {result['missing']:,} rows of earlier imports are in none of these files; add "
        text += "theirs, or train from these alone, with --learn of a quarter of their number"
        rows += [("trained", text)]
    console.print(plain_table(("", ""), rows))
    if result.get("retrieval"):
        from runtime.reports.retrieval_tables import print_questions  # imports torch

        print_questions(console, result["retrieval"])
    if result["refused"]:
        console.print(f"rows that aren't used are in {refused}")
    console.print(f"recsys up --app {app} --state {os.path.relpath(state)}", soft_wrap=True)
