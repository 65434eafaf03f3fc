"""Opens a data set by the files in its folder."""

from importlib import import_module
from pathlib import Path
from typing import cast

from recsys.app.data_files import has_data_files, read_data_files
from recsys.app.definition import App
from replay.datasets.app_dataset import AppDataset
from replay.datasets.dataset import DataError, Dataset
from replay.datasets.event_log import EventLog
from replay.datasets.log_files import holds_events
from replay.datasets.mapped_files import MappedFiles

READER = "plugins.kuairand.reader"  # comes with a checkout, and needs polars


def open_dataset(
    path: str | Path, app: App | None = None, definition: Path | None = None
) -> Dataset:
    """An event log or a KuaiRand log (Parquet or the official CSV files), with the labels, fields and
    features of an app's definition if there is one; or tables, by the section ``files`` of the file
    ``definition``. Raises DataError."""
    path = Path(path)
    if app and definition and (path.is_file() or has_data_files(definition)):
        files = read_data_files(definition)
        paths = [path] if path.is_file() else [path / file for file in files.names]
        return MappedFiles(app, files, paths)
    dataset = _open(path, app)
    return dataset if app is None else cast(Dataset, AppDataset(app, dataset))


def _open(path: str | Path, app: App | None) -> Dataset:
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(folder, "a folder with a data set; the folder doesn't exist")
    if (folder / "dataset.yaml").exists() or (app is not None and holds_events(folder)):
        return EventLog(folder, app)
    try:
        dataset: Dataset | None = import_module(READER).open_kuairand(folder)
    except ModuleNotFoundError as error:
        raise DataError(
            folder,
            "dataset.yaml (an event log). KuaiRand's reader, plugins/kuairand, needs a checkout of the "
            f"repository and polars (pip install polars): there is no {error.name}",
        ) from error
    if dataset is not None:
        return dataset
    entries = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    raise DataError(
        folder,
        "dataset.yaml (an event log), interactions.parquet (KuaiRand as Parquet) or "
        f"log_standard_*.csv, here or in data/ (the official KuaiRand); there is {entries}",
    )
