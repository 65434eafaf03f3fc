"""``recsys data kuairand``: fetches the official KuaiRand-Pure, checks it, unpacks it for `recsys replay`.

What was fetched of a broken download stays beside the folder and is gone on from. Nothing is unpacked before
its MD5 is that of the record on Zenodo, and nothing is unpacked outside the folder.
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

LICENCE: Final = (
    "KuaiRand (Gao et al., CIKM 2022) is licensed under CC BY-SA 4.0, "
    "https://creativecommons.org/licenses/by-sa/4.0/: name its authors, share alike. See https://kuairand.com"
)
FOLDER: Final = Path("data/kuairand")  # where it is put, and where the demo looks for it
_CHUNK: Final = 1 << 20

data = typer.Typer(help="Fetches data sets.", no_args_is_help=True, add_completion=False)
Tell = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)


@dataclass(frozen=True)
class Source:
    """An archive of a data set."""

    name: str
    url: str
    md5: str


KUAIRAND: Final = Source(
    "KuaiRand-Pure",
    "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
    "0820331067a3784d9691136f772b35a7",
)


class NotFetched(RuntimeError):
    """A data set that couldn't be fetched: why, and what to do."""


@data.callback()
def _data() -> None:
    """With a callback a Typer of one command still is a group."""


@data.command()
def kuairand(
    to: Annotated[Path, typer.Option(help="The folder to put it in.")] = FOLDER,
) -> None:
    """Fetches KuaiRand-Pure from Zenodo, for `recsys replay` and `recsys demo`."""
    typer.echo(LICENCE)
    try:
        there = fetch_with_bar(KUAIRAND, to)
    except NotFetched as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{'it is there already' if there else 'unpacked'}: recsys replay {to}")


def fetch_with_bar(source: Source, folder: Path) -> bool:
    """``fetch`` over the network, with a progress bar on stderr."""
    import sys

    import httpx
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    timeout = httpx.Timeout(30.0, connect=10.0)
    with (
        httpx.Client(follow_redirects=True, timeout=timeout) as client,
        Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress,
    ):
        task = progress.add_task(source.name, total=None)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None)

        return fetch(source, folder, client, tell)


def fetch(source: Source, folder: Path, client: Any, tell: Tell = lambda done, total: None) -> bool:
    """Puts the data set into ``folder``; True where it was there already.

    ``client`` is an httpx.Client. Raises NotFetched. A folder that holds something else isn't touched.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if any(folder.rglob("log_standard_*.csv")):
            return True
        raise NotFetched(
            f"{folder} holds something else, expected an empty folder: choose another with --to"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    archive = folder.with_name(f".{folder.name}.{source.md5[:8]}.part")
    _download(source, archive, client, folder, tell)
    found = _md5(archive)
    if found != source.md5:
        archive.unlink()
        raise NotFetched(
            f"what came from {source.url} has MD5 {found}, expected {source.md5}: it was removed; "
            "run this again"
        )
    _unpack(archive, folder)
    archive.unlink()
    return False


def _download(source: Source, archive: Path, client: Any, folder: Path, tell: Tell) -> None:
    """Fetches what isn't there yet; a server that doesn't give parts is asked for the whole."""
    import httpx

    there = archive.stat().st_size if archive.exists() else 0
    if there and _md5(archive) == source.md5:
        return  # killed between the download and the end
    headers = {"range": f"bytes={there}-", "accept-encoding": "identity"} if there else {}
    try:
        with client.stream("GET", source.url, headers=headers) as answer:
            if answer.status_code == 416:  # it is longer than the whole: not of this file
                archive.unlink()
                raise NotFetched(
                    f"{archive} was no part of {source.url}; it was removed: run this again"
                )
            answer.raise_for_status()
            begins = there if answer.status_code == 206 else 0
            total = begins + int(answer.headers.get("content-length", 0) or 0)
            with archive.open("ab" if begins else "wb") as file:
                for chunk in answer.iter_raw():
                    file.write(chunk)
                    tell(file.tell(), total)
    except httpx.HTTPError as error:
        raise NotFetched(
            f"{source.name} can't be fetched from {source.url} ({type(error).__name__}: {error}); run this "
            f"again later to go on, or unpack it into {folder} by other means, or name the folder that you "
            "have: RECSYS_DATA=..."
        ) from error


def _md5(path: Path) -> str:
    digest = hashlib.md5(
        usedforsecurity=False
    )  # what Zenodo publishes; it guards against broken transfers
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks beside the folder and moves it there whole, so that half of it is never taken for it."""
    beside = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:gz") as packed:
            # The filter refuses absolute names, .., links to outside and devices (PEP 706).
            packed.extractall(beside, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise NotFetched(
            f"{archive} can't be unpacked ({error}): remove it and run this again"
        ) from error
    if folder.is_dir():
        folder.rmdir()
    os.replace(beside, folder)
