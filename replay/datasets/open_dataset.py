"""Opens a data set by the files in its folder."""

from pathlib import Path

from replay.datasets.dataset import DataError, Dataset


def open_dataset(path: str | Path) -> Dataset:
    """A KuaiRand log (Parquet or the official CSV files) or an event log; raises DataError."""
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(folder, "a folder with a data set; the folder doesn't exist")
    if (folder / "dataset.yaml").exists():
        from replay.datasets.event_log import EventLog

        return EventLog(folder)
    # The readers of KuaiRand need polars; an event log doesn't.
    from replay.datasets.kuairand import KuaiRand
    from replay.datasets.kuairand_files import read_csv_layout, read_parquet_layout

    if (folder / "interactions.parquet").exists():
        return KuaiRand(read_parquet_layout(folder), "kuairand")
    for place in (folder, folder / "data", folder / "KuaiRand-Pure" / "data"):
        if any(place.glob("log_standard_*.csv")):
            return KuaiRand(read_csv_layout(place), "kuairand")
    entries = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    raise DataError(
        folder,
        "dataset.yaml (an event log), interactions.parquet (KuaiRand as Parquet) or "
        f"log_standard_*.csv, here or in data/ (the official KuaiRand); there is {entries}",
    )
