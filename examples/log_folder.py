"""Writes the folder of an event log: ``events.jsonl.gz`` and the app's definition beside it."""

import gzip
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from recsys.events.event_types import Event


def write_log(folder: Path, events: Iterable[Event], app_file: Path) -> None:
    """Writes the events, sorted by time, and a copy of ``app.yaml``. Equal events give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    encode = msgspec.json.Encoder().encode
    ordered = sorted(events, key=lambda event: event.time_ms)
    with (folder / "events.jsonl.gz").open("wb") as file:
        # Without the time and the name of the file.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            packed.writelines(encode(_present(event)) + b"\n" for event in ordered)
    shutil.copy(app_file, folder / "app.yaml")


def _present(event: Event) -> dict[str, object]:
    """The fields that differ from their defaults."""
    fields = msgspec.structs.fields(event)
    values = {
        f.encode_name: getattr(event, f.name)
        for f in fields
        if f.required or getattr(event, f.name) not in (f.default, None, b"", [], {})
    }
    if "items" in values:
        values["items"] = [{"item_id": item.item_id} for item in values["items"]]
    return {"type": event.__struct_config__.tag, **values}
