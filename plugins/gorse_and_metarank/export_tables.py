"""Turns what Gorse and Metarank export into tables for `recsys init` and `recsys import`.

``python -m plugins.gorse_and_metarank.export_tables gorse items.jsonl users.jsonl feedback.jsonl TO`` reads
the JSON Lines of Gorse's dashboard, ``… metarank events.jsonl.gz TO`` the events that Metarank imports; it
holds their items and users in memory.
"""

import argparse
import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from plugins.gorse_and_metarank.values import time_ms_of
from recsys.events.event_types import Rejected

READ, SHOWN = ("read", "impression")  # Gorse's usual type of what a user has seen, and its name in the tables
Row = dict[str, Any]
Write = Callable[[Row], None]


def gorse_entity(record: Mapping[str, Any], key: str) -> Row | None:
    """Row of one of Gorse's items or users, with a column for each label; None for a hidden item."""
    if record.get("IsHidden"):
        return None
    labels = record.get("Labels") or {}
    row = {key: record["ItemId" if key == "item_id" else "UserId"]}
    row |= labels if isinstance(labels, dict) else {"labels": labels}
    named = {"categories": record.get("Categories"), "published_at": record.get("Timestamp")}
    return row | {name: value for name, value in named.items() if value}


def gorse_feedback(record: Mapping[str, Any]) -> Row:
    """Row of an engagement, or of a shown item where it was read."""
    kind = record["FeedbackType"]
    names = {"user_id": "UserId", "item_id": "ItemId", "time": "Timestamp"}
    row = {name: record[of] for name, of in names.items()}
    return row | {"event": SHOWN if kind == READ else kind, "value": record.get("Value", 0)}


class MetarankTables:
    """Rows of Metarank's events. ``items`` and ``users``: by id, their fields merged as Metarank does."""

    def __init__(self, write: Write) -> None:
        self.items: dict[str, Row] = {}
        self.users: dict[str, Row] = {}
        self._write = write

    def add(self, event: Mapping[str, Any]) -> None:
        """Takes one event; rankings and interactions are written at once."""
        fields = {field["name"]: field["value"] for field in event.get("fields") or ()}
        kind, viewer = event["event"], event.get("user") or event.get("session")
        time = event["timestamp"]  # of eight digits or less, too, which are a date elsewhere
        is_number = isinstance(time, str) and time.isdecimal() and len(time) < 20
        time_ms = int(time) if is_number else time_ms_of(time, "timestamp", 2**62)
        if kind == "item":
            self.items.setdefault(event["item"], {"item_id": event["item"]}).update(fields)
        elif kind == "user":
            self.users.setdefault(event["user"], {"user_id": event["user"]}).update(fields)
        elif kind == "ranking":
            for item in event["items"]:
                self._interaction(viewer, item["id"], SHOWN, time_ms, event["id"])
        elif kind == "interaction":
            of = event.get("ranking") or ""
            self._interaction(viewer, event["item"], event["type"], time_ms, of)

    def _interaction(self, viewer: str | None, item: str, kind: str, time_ms: int, ranking: str) -> None:
        names = ("user_id", "item_id", "event", "time_ms", "request_id")
        self._write(dict(zip(names, (viewer, item, kind, time_ms, ranking), strict=True)))


def records(file: Path) -> Iterator[Row]:
    """JSON objects of a file, one a line; raises ValueError with file and line."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.MsgspecError as error:
                raise ValueError(f"{file}:{number}: expected a JSON object ({error})") from error


def write_rows(file: Path, rows: Iterable[Row | None]) -> int:
    """Writes rows as JSON Lines; returns their number."""
    written = 0
    with file.open("wb") as to:
        for row in rows:
            if row is not None:
                _write(to, row)
                written += 1
    return written


def from_gorse(items: Path, users: Path, feedback: Path, to: Path) -> dict[str, int]:
    """Writes items.jsonl, users.jsonl and interactions.jsonl; returns their rows."""
    to.mkdir(parents=True, exist_ok=True)
    # An item that only interactions name is published: those of hidden ones are left out.
    hidden = {record["ItemId"] for record in records(items) if record.get("IsHidden")}
    shown = (record for record in records(feedback) if record["ItemId"] not in hidden)
    tables = {
        "items": (gorse_entity(record, "item_id") for record in records(items)),
        "users": (gorse_entity(record, "user_id") for record in records(users)),
        "interactions": map(gorse_feedback, shown),
    }
    return {name: write_rows(to / f"{name}.jsonl", rows) for name, rows in tables.items()}


def from_metarank(events: Path, to: Path) -> dict[str, int]:
    """Writes the same tables; returns their rows."""
    to.mkdir(parents=True, exist_ok=True)
    rows = 0
    with (to / "interactions.jsonl").open("wb") as file:

        def write(row: Row) -> None:
            nonlocal rows
            _write(file, row)
            rows += 1

        tables = MetarankTables(write)
        for event in records(events):
            try:
                tables.add(event)
            except Rejected as error:
                raise ValueError(f"{events}: the event {event.get('id')!r}: {error}") from error
    entities = {"items": tables.items, "users": tables.users}
    counts = {n: write_rows(to / f"{n}.jsonl", some.values()) for n, some in entities.items()}
    return counts | {"interactions": rows}


def _write(file: IO[bytes], row: Row) -> None:
    file.write(msgspec.json.encode(row) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    gorse = commands.add_parser("gorse")
    metarank = commands.add_parser("metarank")
    for command, names in ((gorse, ("items", "users", "feedback", "to")), (metarank, ("events", "to"))):
        for name in names:
            command.add_argument(name, type=Path)
        command.set_defaults(run=from_gorse if command is gorse else from_metarank)
    options = vars(parser.parse_args())
    for name, count in options.pop("run")(**options).items():
        print(f"{name}.jsonl: {count:,} rows")


if __name__ == "__main__":
    main()
