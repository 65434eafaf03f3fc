"""Files of an event log as lines of JSON: JSON Lines, compressed or not, Parquet and CSV."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import zstandard

from replay.datasets.dataset import DataError

ENDINGS: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")
TABLES: Final = (".parquet", ".csv")  # only events*: predictions may lie beside them
_JSON: Final = ("fields", "context", "items", "values")  # columns that may hold JSON text
# Types of CSV columns; all others are text, so that no id changes from block to block.
_NUMBERS: Final = dict.fromkeys(("time_ms", "watch_ms", "v"), pa.int64()) | {"removed": pa.bool_()}


def find_parts(folder: Path) -> list[Path]:
    """Files of the log in name order; raises DataError when there are none, or a part exists twice."""
    parts: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        ending = _ending_of(file)
        if not ending:
            continue
        stem = file.name.removesuffix(ending)
        if stem in parts:
            both = f"{parts[stem].name} and {file.name}"
            raise DataError(folder, f"each part once, there are {both}; remove one")
        parts[stem] = file
    if not parts:
        names = ", ".join((*ENDINGS, *TABLES))
        raise DataError(folder, f"events.jsonl, or parts that end in {names}")
    return [parts[stem] for stem in sorted(parts)]


def holds_events(folder: Path) -> bool:
    return any(map(_ending_of, folder.iterdir()))


def _ending_of(file: Path) -> str:
    endings = (*ENDINGS, *TABLES) if file.name.startswith("events") else ENDINGS
    return next((ending for ending in endings if file.name.endswith(ending)), "")


def lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    """(line or row number from 1, JSON object); empty lines are skipped."""
    number = 0
    try:
        lines = _rows(file) if file.suffix in TABLES else _lines(file)
        for number, line in enumerate(lines, 1):
            if line:
                yield number, line
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, ValueError) as error:
        raise DataError(file, f"a file that can be read ({error})", line=number + 1) from error


def _lines(file: Path) -> Iterator[bytes]:
    with open_file(file) as stream:
        yield from map(bytes.strip, stream)


def _rows(file: Path) -> Iterator[bytes]:
    for batch in _batches(file):
        for row in batch.to_pylist():
            present = {name: value for name, value in row.items() if value is not None}
            for name in _JSON:
                if isinstance(text := present.get(name), str):
                    present[name] = msgspec.Raw(text.encode())
            number = present.get("value")  # a number of an engagement, an id of a preference
            if present.get("type") == "engagement" and isinstance(number, str):
                present["value"] = msgspec.Raw(number.encode())
            yield msgspec.json.encode(present)


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        yield from pq.ParquetFile(file).iter_batches()
        return
    with file.open(newline="", encoding="utf-8-sig") as text:
        header = next(csv.reader(text), [])
    types = {name: _NUMBERS.get(name, pa.string()) for name in header}
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    convert = pa_csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    yield from pa_csv.open_csv(file, parse_options=parse, convert_options=convert)


def open_file(file: Path) -> IO[bytes] | Any:
    """The bytes of a file, unpacked if its name ends in .gz or .zst."""
    if file.name.endswith(".gz"):
        return gzip.open(file, "rb")
    if file.name.endswith(".zst"):
        packed = zstandard.open(file, "rb")
        return BufferedReader(packed, 1 << 20)
    return file.open("rb")
