"""The events of a folder that an example's maker has written, read by the definition beside them."""

import gzip
import json
from pathlib import Path

from recsys.app.app_file import read_app
from recsys.events.event_types import Event, parse


def events_in(folder: Path) -> list[Event]:
    """All events, in order; raises Rejected for one that the definition doesn't allow."""
    kinds = read_app(folder / "app.yaml").schema.kinds
    with gzip.open(folder / "events.jsonl.gz") as lines:
        return [parse(json.loads(line), kinds=kinds) for line in lines]
