"""The parts of an event log: JSON Lines files, plain, gzip or Zstandard, in the order of their names."""

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final

import zstandard

from replay.datasets.dataset import DataError

ENDINGS: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def find_parts(folder: Path) -> list[Path]:
    """The parts in name order; raises DataError where there are none, or one is there twice."""
    parts: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if not file.name.endswith(ENDINGS):
            continue
        stem = file.name.partition(".jsonl")[0]
        if stem in parts:
            raise DataError(
                folder, f"each part once, there are {parts[stem].name} and {file.name}; remove one"
            )
        parts[stem] = file
    if not parts:
        raise DataError(folder, f"events.jsonl, or parts that end in {', '.join(ENDINGS)}")
    return [parts[stem] for stem in sorted(parts)]


def lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end); empty lines are left out."""
    number = 0
    try:
        with _opened(file) as stream:
            for number, raw in enumerate(stream, 1):  # noqa: B007
                text = raw.strip()
                if text:
                    yield number, text
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(file, f"a file that can be unpacked ({error})", line=number + 1) from error


def _opened(file: Path) -> IO[bytes] | Any:
    if file.name.endswith(".gz"):
        return gzip.open(file, "rb")
    if file.name.endswith(".zst"):
        packed = zstandard.open(file, "rb")
        return BufferedReader(packed, 1 << 20)
    return file.open("rb")
