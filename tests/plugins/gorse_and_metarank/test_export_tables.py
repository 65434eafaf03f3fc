"""Exports of Gorse and Metarank become tables that `recsys init` and `recsys import` read."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from plugins.gorse_and_metarank.export_tables import from_gorse, from_metarank
from recsys.app.app_file import app_of
from recsys.app.data_files import read_data_files
from recsys.app.guess import guess
from recsys.events.event_types import Engagement, Impression, Item
from replay.datasets.mapped_files import MappedFiles
from replay.datasets.table_rows import read_blocks

AT = "2026-11-01T10:00:0{}Z"


def write(file: Path, *records: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def events_of(folder: Path) -> tuple[list[Any], str]:
    """Events of the tables by the guessed definition, and when its items count as shown."""
    names = ("interactions.jsonl", "items.jsonl", "users.jsonl")
    samples = {name: next(read_blocks(folder / name)).columns for name in names}
    file = folder / "app.yaml"
    file.write_text(guess("moved", samples, {}).text)
    app, paths = app_of(file.read_text()), [folder / name for name in names]
    return list(MappedFiles(app, read_data_files(file), paths).events()), app.shown


def test_gorse(tmp_path: Path) -> None:
    items = write(
        tmp_path / "i",
        {"ItemId": "a", "Labels": {"owner": "o1"}, "Categories": ["lib"], "Timestamp": AT.format(0)},
        {"ItemId": "b", "Labels": ["fast", "new"]},
        {"ItemId": "hidden", "IsHidden": True},
    )
    users = write(tmp_path / "u", {"UserId": "u1", "Labels": None, "Comment": "Bob"})
    read = {"FeedbackType": "read", "UserId": "u1", "ItemId": "a", "Timestamp": AT.format(1)}
    star = read | {"FeedbackType": "star", "Timestamp": AT.format(2)}
    feedback = write(tmp_path / "f", read, star, star | {"ItemId": "hidden"})
    counts = from_gorse(items, users, feedback, tmp_path / "to")
    assert counts == {"items": 2, "users": 1, "interactions": 2}
    events, shown = events_of(tmp_path / "to")
    assert shown == "list"
    (listed,) = [event for event in events if isinstance(event, Impression)]
    (engaged,) = [event for event in events if isinstance(event, Engagement)]
    assert [item.item_id for item in listed.items] == ["a"] and engaged.kind == "star"
    fields = {event.item_id: event.fields for event in events if isinstance(event, Item)}
    assert fields["a"]["owner"] == "o1" and fields["b"]["labels"] == ["fast", "new"]


def test_metarank(tmp_path: Path) -> None:
    def of(name: str, value: Any) -> list[dict[str, Any]]:
        return [{"name": name, "value": value}]

    events: list[dict[str, Any]] = [
        {"event": "item", "item": "p1", "timestamp": "1000", "fields": of("color", ["red"])},
        {"event": "item", "item": "p1", "timestamp": "2000", "fields": of("price", 5)},
        {"event": "user", "user": "u1", "timestamp": "1000", "fields": of("gender", "f")},
        {"event": "ranking", "id": "r1", "user": "u1", "timestamp": "1790000000000",
         "items": [{"id": "p1", "relevancy": 2.0}, {"id": "p2"}]},
        {"event": "interaction", "id": "c1", "ranking": "r1", "user": "u1", "item": "p2",
         "type": "click", "timestamp": "2026-09-21T14:13:25Z"},
    ]  # fmt: skip
    file = tmp_path / "events.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, events)).encode()))
    counts = from_metarank(file, tmp_path / "to")
    assert counts == {"items": 1, "users": 1, "interactions": 3}
    moved, shown = events_of(tmp_path / "to")
    assert shown == "list"
    (listed,) = [event for event in moved if isinstance(event, Impression)]
    assert [item.item_id for item in listed.items] == ["p1", "p2"]
    assert [event.item_id for event in moved if isinstance(event, Engagement)] == ["p2"]
    fields = {event.item_id: event.fields for event in moved if isinstance(event, Item)}
    assert fields["p1"] == {"color": ["red"], "price": 5}  # merged, as Metarank merges them


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "events.jsonl", {"event": "item", "item": "a", "timestamp": "1"})
    file.write_text(file.read_text() + "{oh\n")
    with pytest.raises(ValueError, match=r"events.jsonl:2: expected a JSON object"):
        from_metarank(file, tmp_path / "to")
    write(file, {"event": "item", "id": "e7", "item": "a", "timestamp": "soon"})
    with pytest.raises(ValueError, match=r"events.jsonl: the event 'e7': timestamp is .soon."):
        from_metarank(file, tmp_path / "to")
