"""Opens a data set by the files in its folder."""

from pathlib import Path
from typing import Protocol, cast

from recsys import plugins
from recsys.app.data_files import has_data_files, read_data_files
from recsys.app.definition import App
from replay.datasets.app_dataset import AppDataset
from replay.datasets.dataset import DataError, Dataset
from replay.datasets.event_log import EventLog
from replay.datasets.log_files import holds_events
from replay.datasets.mapped_files import MappedFiles


class DatasetReader(Protocol):
    """Plug-in of the group ``recsys.datasets``. ``files``: what it looks for in a folder, for people."""

    files: str

    def __call__(self, folder: Path) -> Dataset | None:
        """The data set in a folder; None if it isn't of this reader. Raises DataError."""


def open_dataset(path: str | Path, app: App | None = None, definition: Path | None = None) -> Dataset:
    """An event log or what a plug-in reads, with the labels, fields and features of an app's definition if
    there is one; or tables, by the section ``files`` of the file ``definition``. Raises DataError."""
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
    expected = ["dataset.yaml (an event log)"]
    for name in plugins.names(plugins.DATASETS):
        try:
            read: DatasetReader = plugins.load(plugins.DATASETS, name)
        except ValueError as error:
            expected.append(f"{name}, whose {error}")
            continue
        dataset = read(folder)
        if dataset is not None:
            return dataset
        expected.append(f"{read.files} ({name})")
    entries = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    raise DataError(folder, f"{'; or '.join(expected)}. There is {entries}")
