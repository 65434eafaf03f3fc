"""An event log: one event a line or row, sorted by time, with a ``dataset.yaml`` beside it.

docs/how-to/data.md describes the format. A malformed line is an error with file and line; a line of unknown
type or engagement kind is skipped and counted in ``dead_letters``, because the format may grow.
"""

from collections import Counter, deque
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import mmh3
import msgspec
from msgspec.structs import replace

from recsys.app.definition import BY_LIST, App
from recsys.events.event_types import (
    ENGAGEMENT_KINDS,
    Engagement,
    Event,
    Impression,
    Item,
    Rejected,
    User,
    dedupe_key,
    parse,
)
from recsys.events.field_schema import CATEGORICAL, NUMERIC, VECTOR, Schema, default_groups, kind_of
from recsys.events.hashing import Id
from replay.datasets.dataset import DataError
from replay.datasets.dataset_yaml import LogSettings, read_settings
from replay.datasets.log_files import find_parts, lines_of

_TYPES = {"item", "user", "impression", "engagement", "tick"}
_STATE = (Item, User)


class EventLog:
    """A folder with ``dataset.yaml`` and ``events.jsonl`` (or several parts, compressed or not)."""

    def __init__(self, folder: Path, app: App | None = None) -> None:
        """``app``: definition that takes the place of ``dataset.yaml``."""
        self._settings = _settings_of(app) if app else read_settings(folder / "dataset.yaml")
        self._kinds = ENGAGEMENT_KINDS if app is None else app.schema.kinds
        self._parts = find_parts(folder)
        self.name = self._settings.name or folder.name
        self.labels = list(self._settings.labels)
        self.window_s = self._settings.window_s
        self.vectors = dict(self._settings.vectors)
        self.utc_offset_h = self._settings.utc_offset_h
        self.dead_letters: Counter[str] = Counter()
        self.repeats = 0

    @cached_property
    def schema(self) -> Schema:
        """Names and kinds of the fields: from dataset.yaml, else from a scan of the log."""
        fields = self._settings.fields or self._scan()
        items = fields.get("item", {})
        texts = tuple(sorted(name for name, kind in items.items() if kind == CATEGORICAL))
        return Schema(
            item=tuple(sorted(items.items())),
            user=tuple(sorted(fields.get("user", {}).items())),
            context=tuple(sorted(fields.get("context", {}).items())),
            groups=tuple(self._settings.groups) or default_groups(texts),
            labels=tuple(self.labels),
            vectors=tuple(sorted(self.vectors.items())),
            shown_by="impression" if self._settings.all_shown else "view",
        )

    def warmup(self) -> Iterator[Event]:
        """Nothing: an event log's own beginning warms it up."""
        return iter(())

    def events(self, from_ms: int | None = None, until_ms: int | None = None) -> Iterator[Event]:
        self.dead_letters, self.repeats = Counter(), 0
        for file, line, event in self._sighted():
            if until_ms is not None and event.time_ms >= until_ms:
                return
            if from_ms is None or event.time_ms >= from_ms or isinstance(event, _STATE):
                self._check_vectors(file, line, event)
                yield event

    def _sighted(self) -> Iterator[tuple[Path, int, Event]]:
        """The events, and items that were published at 0 anew right after they were first seen: that event
        must not tell that they are new."""
        undated, due = dict[str, tuple[Path, int, Item]](), list[tuple[Path, int, Event]]()
        for file, line, event in self._read():
            if due and event.time_ms >= due[0][2].time_ms:
                yield from due
                due.clear()
            yield file, line, event
            if isinstance(event, Item):
                undated.pop(str(event.item_id), None)
                if not event.time_ms:
                    undated[str(event.item_id)] = file, line, event
            for item_id in _seen(event):
                if item := undated.pop(str(item_id), None):
                    due.append((*item[:2], replace(item[2], time_ms=event.time_ms + 1)))
        yield from due

    def _read(self) -> Iterator[tuple[Path, int, Event]]:
        repeats = _Repeats(round(self._settings.horizon_s * 1000))
        newest = 0
        for file in self._parts:
            for line, raw in lines_of(file):
                event = self._event(file, line, raw)
                if event is None:
                    continue
                if event.time_ms < newest:
                    raise DataError(
                        file, f"{event.time_ms} is earlier than {newest} before it; sort the log by "
                        "time_ms (parts in the order of their names)", line=line, field="time_ms",
                    )  # fmt: skip
                newest = event.time_ms
                if repeats.is_repeat(event, raw):
                    self.repeats += 1
                    continue
                yield file, line, event

    def _event(self, file: Path, line: int, raw: bytes) -> Event | None:
        """Event of a line; None, counted in ``dead_letters``, when its type or kind is unknown."""
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(file, f"expected one JSON object ({error})", line=line) from error
        if isinstance(value, dict):
            event_type = value.get("type")
            if isinstance(event_type, str) and event_type not in _TYPES:
                self.dead_letters[f"unknown type {event_type[:40]!r}"] += 1
                return None
            if event_type == "engagement":  # a log of clicks alone knows no request
                value.setdefault("request_id", "")
            kind = value.get("kind")
            if event_type == "engagement" and isinstance(kind, str) and kind not in self._kinds:
                self.dead_letters[f"unknown engagement kind {kind[:40]!r}"] += 1
                return None
        try:
            event = parse(value, unattributed=True, kinds=self._kinds)
        except Rejected as error:
            expected = f"expected {error.expected}, found {error.value}"
            raise DataError(file, expected, line=line, field=error.field) from error
        if isinstance(event, Impression):
            event.shown = self._settings.all_shown or msgspec.UNSET
            if "surface" not in value:
                event.surface = str(event.context.get("surface", event.surface))
        return event

    def _check_vectors(self, file: Path, line: int, event: Event) -> None:
        if not self.vectors or not isinstance(event, _STATE):
            return
        for name, length in self.vectors.items():
            value = event.fields.get(name)
            if value is not None and not _is_vector(value, length):
                expected = f"expected a list of {length} numbers, as dataset.yaml declares it"
                raise DataError(file, expected, line=line, field=f"fields.{name}")

    def _scan(self) -> dict[str, dict[str, str]]:
        """Names and kinds of all fields. A single text value makes a field categorical."""
        kinds_by_part: dict[str, dict[str, str]] = {"item": {}, "user": {}, "context": {}}
        counted = self.dead_letters, self.repeats
        self.dead_letters = Counter()
        for _, _, event in self._read():
            if isinstance(event, Item):
                self._note(kinds_by_part["item"], event.fields)
            elif isinstance(event, User):
                self._note(kinds_by_part["user"], event.fields)
            elif isinstance(event, Impression):
                self._note(kinds_by_part["context"], event.context)
        self.dead_letters, self.repeats = counted
        return kinds_by_part

    def _note(self, kinds: dict[str, str], fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            kind = VECTOR if name in self.vectors else kind_of(value)
            if kind == VECTOR and name not in self.vectors:
                kind = CATEGORICAL  # no declared length: a list of ids, e.g. tags [39, 68]
            if kind is not None and (kind != NUMERIC or name not in kinds):
                kinds[name] = kind


def _settings_of(app: App) -> LogSettings:
    return LogSettings.model_construct(  # unchecked: an app's labels are kinds of its own
        labels=list(app.labels), window_s=app.window_s, name=app.name, all_shown=app.shown == BY_LIST,
        vectors=dict(app.schema.vectors),
    )  # fmt: skip


class _Repeats:
    """Detects repeated events within the horizon: by user and event id, else by a hash of the line.

    Equal lines have equal times, so hashes are kept for one millisecond only.
    """

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._now_ms = -1
        self._lines: set[int] = set()
        self._ids: set[str] = set()
        self._order: deque[tuple[int, str]] = deque()

    def is_repeat(self, event: Event, raw: bytes) -> bool:
        """Whether the event came before. Events come in time order."""
        if event.time_ms != self._now_ms:
            self._now_ms = event.time_ms
            self._lines.clear()
            while self._order and self._order[0][0] < self._now_ms - self._horizon_ms:
                self._ids.discard(self._order.popleft()[1])
        if getattr(event, "event_id", None) is not None:
            key = dedupe_key(event)
            if key in self._ids:
                return True
            self._ids.add(key)
            self._order.append((event.time_ms, key))
            return False
        line = mmh3.hash64(raw)[0]
        if line in self._lines:
            return True
        self._lines.add(line)
        return False


def _is_vector(value: object, length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    )


def _seen(event: Event) -> list[Id]:
    """Items that an event says were shown or engaged with."""
    if isinstance(event, Impression):
        return [item.item_id for item in event.items]
    return [event.item_id] if isinstance(event, Engagement) else []
