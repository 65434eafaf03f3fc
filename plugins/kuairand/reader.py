"""Opens a folder with KuaiRand: Parquet, or the official CSV files."""

from pathlib import Path

from plugins.kuairand.events import KuaiRand
from plugins.kuairand.files import read_csv_layout, read_parquet_layout


def open_kuairand(folder: Path) -> KuaiRand | None:
    """The log in a folder, as Parquet or the official CSV files; None where there is none."""
    if (folder / "interactions.parquet").exists():
        return KuaiRand(read_parquet_layout(folder), "kuairand")
    for place in (folder, folder / "data", folder / "KuaiRand-Pure" / "data"):
        if any(place.glob("log_standard_*.csv")):
            return KuaiRand(read_csv_layout(place), "kuairand")
    return None
