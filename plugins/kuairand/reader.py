"""The data set KuaiRand: opens a folder with its files, and downloads them."""

from pathlib import Path
from typing import Final

from plugins.kuairand.download import fetch_kuairand
from plugins.kuairand.events import KuaiRand
from plugins.kuairand.files import read_csv_layout, read_parquet_layout


class KuaiRandReader:
    """Plug-in of the group ``recsys.datasets``."""

    fetch = staticmethod(fetch_kuairand)
    files = "interactions.parquet or log_standard_*.csv, here or in data/"

    def __call__(self, folder: Path) -> KuaiRand | None:
        """The log in a folder, as Parquet or the official CSV files; None where there is none."""
        if (folder / "interactions.parquet").exists():
            return KuaiRand(read_parquet_layout(folder), "kuairand")
        for place in (folder, folder / "data", folder / "KuaiRand-Pure" / "data"):
            if any(place.glob("log_standard_*.csv")):
                return KuaiRand(read_csv_layout(place), "kuairand")
        return None


KUAIRAND: Final = KuaiRandReader()
