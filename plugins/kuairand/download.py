"""Downloads a data set, verifies it and unpacks it.

An interrupted download is kept next to the target folder and resumed. Nothing is unpacked before its MD5
matches the one on Zenodo, and nothing is unpacked outside the folder.
"""

import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

LICENCE: Final = (
    "KuaiRand (Gao et al., CIKM 2022) is licensed under CC BY-SA 4.0, "
    "https://creativecommons.org/licenses/by-sa/4.0/: name its authors, share alike. See https://kuairand.com"
)

ReportProgress = Callable[[int, int], None]  # bytes so far, total bytes (0: unknown)


@dataclass(frozen=True)
class DatasetSource:
    """Download location of a data set's archive."""

    name: str
    url: str
    md5: str


KUAIRAND: Final = DatasetSource(
    "KuaiRand-Pure",
    "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
    "0820331067a3784d9691136f772b35a7",
)


class NotFetched(RuntimeError):
    """A download failed; the message names the remedy."""


def fetch_kuairand(folder: Path, show: Callable[[str], None]) -> bool:
    """Downloads KuaiRand-Pure, after its licence was shown; returns True where it was complete already."""
    show(LICENCE)
    return fetch_with_bar(KUAIRAND, folder)


def fetch_with_bar(source: DatasetSource, folder: Path) -> bool:
    """Calls ``fetch`` with a network client and a progress bar on stderr."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    timeout = httpx.Timeout(30.0, connect=10.0)
    with (
        httpx.Client(follow_redirects=True, timeout=timeout) as client,
        Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress,
    ):
        task = progress.add_task(source.name, total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None)

        return fetch(source, folder, client, report)


def fetch(
    source: DatasetSource, folder: Path, client: Any, report: ReportProgress = lambda done, total: None
) -> bool:
    """Downloads the data set into ``folder``; returns True where it was complete already.

    ``client`` is an httpx.Client. Raises NotFetched. Doesn't touch a folder with other content.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if any(folder.rglob("log_standard_*.csv")):
            return True
        raise NotFetched(f"{folder} holds something else, expected an empty folder: choose another with --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    archive = folder.with_name(f".{folder.name}.{source.md5[:8]}.part")
    _download(source, archive, client, folder, report)
    md5 = _md5(archive)
    if md5 != source.md5:
        archive.unlink()
        raise NotFetched(
            f"the download from {source.url} has MD5 {md5}, expected {source.md5}: it was removed; "
            "run this again"
        )
    _unpack(archive, folder)
    archive.unlink()
    return False


def _download(
    source: DatasetSource, archive: Path, client: Any, folder: Path, report: ReportProgress
) -> None:
    """Resumes the download, or restarts it where the server doesn't support ranges."""
    size = archive.stat().st_size if archive.exists() else 0
    if size and _md5(archive) == source.md5:
        return  # interrupted between download and unpacking
    headers = {"range": f"bytes={size}-", "accept-encoding": "identity"} if size else {}
    try:
        with client.stream("GET", source.url, headers=headers) as answer:
            if answer.status_code == 416:  # longer than the whole: not a part of this file
                archive.unlink()
                raise NotFetched(f"{archive} was no part of {source.url}; it was removed: run this again")
            answer.raise_for_status()
            begin = size if answer.status_code == 206 else 0
            total = begin + int(answer.headers.get("content-length", 0) or 0)
            with archive.open("ab" if begin else "wb") as file:
                for chunk in answer.iter_raw():
                    file.write(chunk)
                    report(file.tell(), total)
    except httpx.HTTPError as error:
        raise NotFetched(
            f"{source.name} can't be fetched from {source.url} ({type(error).__name__}: {error}); run this "
            f"again later to resume, or unpack it into {folder} by other means, or name the folder that you "
            "have: RECSYS_DATA=..."
        ) from error


def _md5(path: Path) -> str:
    # Zenodo publishes MD5; it guards against broken transfers only.
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks next to the folder and then renames, so that an incomplete folder is never used."""
    beside = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:gz") as packed:
            # The filter refuses absolute names, .., links to outside and devices (PEP 706).
            packed.extractall(beside, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise NotFetched(f"{archive} can't be unpacked ({error}): remove it and run this again") from error
    if folder.is_dir():
        folder.rmdir()
    os.replace(beside, folder)
