"""Rows of CSV, Parquet and JSON Lines files, and of formats that plug-ins read, in blocks of columns.

A row that can't be read is returned with its line and the reason, and reading goes on after it.
"""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, AnyStr, Final, NamedTuple, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import plugins
from replay.datasets.dataset import DataError
from replay.datasets.log_files import open_file

ROWS: Final = 20_000  # of a block
_LINE: Final = 1 << 20  # characters: the rest of a longer line is dropped, and its row refused
_LINES: Final = 10  # of a row, from which on it is checked for a quote that was never closed
_BLOCK: Final = 1 << 25  # characters after which a block ends before it has all its rows
_TEXT: Final = (".csv", ".tsv", ".txt", ".inter", ".item", ".user")
_JSON: Final = (".jsonl", ".ndjson", ".json")
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


class BadRow(NamedTuple):
    """A row that isn't used, or only in part: the reason, the value, and the beginning of the row."""

    line: int
    reason: str
    value: str
    row: str = ""


class Block(NamedTuple):
    """Some rows of a file: values by column, the line of each row, and rows that can't be read."""

    lines: list[int]
    columns: dict[str, list[Any]]
    bad: list[BadRow]


class Reader(Protocol):
    """Plug-in of the group ``recsys.readers``, named as its files end: ``log`` reads ``*.log``. The section
    ``files`` of a definition gives the meaning of its columns."""

    sample: bytes  # a small file, for ``recsys contracts``

    def __call__(self, file: Path) -> Iterator[Block]:
        """Blocks of a file in order, of at most ``ROWS`` rows, by which memory is bounded.
        ``replay.datasets.log_files.open_file`` unpacks files that end in .gz or .zst."""


def read_blocks(file: Path) -> Iterator[Block]:
    """Blocks of a file in order, of at most ``ROWS`` rows. Raises DataError for one that can't be read."""
    suffix = Path(file.name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
    readers = dict.fromkeys(_TEXT, _csv) | dict.fromkeys(_JSON, _json) | {".parquet": _parquet}
    try:
        read = readers.get(suffix) or plugins.load(plugins.READERS, suffix.removeprefix("."))
    except ValueError as error:
        endings = f"expected a file that ends in {', '.join(readers)} (with .gz or .zst)"
        raise DataError(file, f"{endings}, or in the name of a plug-in: {error}") from error
    try:
        yield from read(file)
    except DataError:
        raise
    except Exception as error:  # a plug-in may raise anything
        raise DataError(file, f"expected a file that can be read ({error})") from error


def _csv(file: Path) -> Iterator[Block]:
    with open_file(file) as stream:
        encoding = "utf-16" if stream.read(2) in _UTF16 else "utf-8-sig"
    with open_file(file) as raw:
        errors = "strict" if encoding == "utf-16" else "surrogateescape"
        text = io.TextIOWrapper(raw, encoding, errors=errors, newline="")
        head = text.readline(_LINE)
        mark = max(",\t;|", key=head.count)
        names = [name.strip() for name in next(csv.reader([head], delimiter=mark), [])]
        _check_header(file, names)
        reader = csv.reader(_lines(text, "\n"), delimiter=mark)
        while True:
            block = Block([], {name: [] for name in names}, [])
            rows = _csv_rows(reader, len(names), block)
            if not rows and not block.bad:
                return
            if rows:
                columns = zip(names, map(list, zip(*rows, strict=True)), strict=True)
                block.columns.update(columns)
            yield block


def _csv_rows(reader: Any, width: int, block: Block) -> list[list[str]]:
    """The next rows with as many cells as the header; others go to ``block.bad``."""
    rows, size = list[list[str]](), 0
    while len(rows) + len(block.bad) < ROWS and size < _BLOCK:
        first = reader.line_num + 2  # the header is line 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            block.bad.append(BadRow(first, str(error), f"lines {first} to {reader.line_num + 1}"))
            continue
        if row is None:
            break
        size += sum(map(len, row))
        last = reader.line_num + 1
        is_open = last - first >= _LINES and _has_rows(row, width, reader.dialect.delimiter)
        if len(row) == width and not is_open:
            rows.append(row)
            block.lines.append(first)
        elif row:
            why, value = f"expected {width} cells", str(len(row))
            if is_open:
                why = "expected text in quotes, not rows: close the quote"
                value = f"lines {first} to {last}"
            text = ",".join(row)[:200].encode(errors="replace").decode()
            block.bad.append(BadRow(first, why, value, text))
    return rows


def _has_rows(row: list[str], width: int, delimiter: str) -> bool:
    """Whether most lines of the longest cell have as many delimiters as a row of ``width`` cells."""
    lines = max(row, key=len).split("\n")
    return sum(line.count(delimiter) == width - 1 for line in lines) * 2 > len(lines)


def _lines(stream: IO[AnyStr], newline: AnyStr) -> Iterator[AnyStr]:
    while line := stream.readline(_LINE):
        end = line
        while len(end) == _LINE and not end.endswith(newline):
            end = stream.readline(_LINE)
        yield line


def _check_header(file: Path, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not any(names):
        raise DataError(file, "expected a header and rows; the file is empty", line=1)
    if twice:
        repeated = ", ".join(map(repr, twice))
        raise DataError(file, f"expected each column once, {repeated} is repeated", line=1)
    if all(name.replace(".", "").replace("-", "").isdigit() for name in names):
        expected = f"expected a line with the names of the columns, found {names}; add it"
        raise DataError(file, expected, line=1)


def _json(file: Path) -> Iterator[Block]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    with open_file(file) as stream:
        numbered = enumerate(_lines(stream, b"\n"), 1)
        while first := next(numbered, None):
            block, rows, size = Block([], {}, []), list[dict[str, Any]](), 0
            for line, raw in chain([first], islice(numbered, ROWS - 1)):
                size += len(raw)
                try:
                    if raw.strip():
                        rows.append(decoder.decode(raw.removeprefix(codecs.BOM_UTF8)))
                        block.lines.append(line)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                    text = raw[:200].decode(errors="replace")
                    why = "expected a JSON object"
                    if len(raw) == _LINE:
                        why = f"expected a line of at most {_LINE:,} bytes; leave columns out"
                    block.bad.append(BadRow(line, why, str(error), text))
                if size > _BLOCK:
                    break
            for name in dict.fromkeys(name for row in rows for name in row):
                block.columns[name] = [row.get(name) for row in rows]
            yield block


def _parquet(file: Path) -> Iterator[Block]:
    first = 1
    for batch in pq.ParquetFile(file).iter_batches(ROWS):
        times = [i for i, field in enumerate(batch.schema) if pa.types.is_temporal(field.type)]
        for i in times:
            batch = batch.set_column(i, batch.schema[i].name, batch[i].cast(pa.string()))
        yield Block(list(range(first, first + len(batch))), batch.to_pydict(), [])
        first += len(batch)
