"""Tables of an app as a data set: rows become events by the section ``files`` of the definition.

The first pass reads each row, and writes its events to a scratch file; then they are read in time order, some
at once, whatever order and size the tables have. A row that can't be used is handed to ``refuse``; a repeated
row counts once. An item that no table has is published, without fields, with the first list that shows it, or
right after its first click.
"""

import heapq
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from itertools import groupby, islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.app.data_files import DataFiles, Entities, Interactions, Table, list_of, moment_of
from recsys.app.definition import BY_CLICK, BY_LIST, App, Field
from recsys.events.event_types import (
    CONTROL_CHARACTER,
    MAX_EVENT_BYTES,
    MAX_ID_LENGTH,
    MAX_TIME_MS,
    Engagement,
    Event,
    Impression,
    Item,
    ServedItem,
    User,
    decode,
    encode,
)
from recsys.events.hashing import Id
from replay.datasets.app_dataset import OfApp
from replay.datasets.dataset import DataError
from replay.datasets.table_rows import BadRow, Block, read_blocks

SIGHTING: Final = "sighting"  # event id of an item that is published anew since it was first seen
Refuse = Callable[[Path, BadRow], None]
Progress = Callable[[Iterator[Block], Path], Iterable[Block]]
_SCALE: Final = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_FLAGS: Final = {"1": True, "true": True, "0": False, "false": False, "": False, "none": False}
_RANGE: Final = 250_000  # rows that are sorted at once
_BLOCK: Final = 10_000  # rows that are decoded or written at once
_NUMBER: Final = Field("number")
_CONTENT: Final = Field("")  # of fields that aren't declared
_ROW_MS: Final = 1_000  # between rows without a time
_LARGEST: Final = 2.0**63  # integers of events have 64 bits
_AHEAD_MS: Final = 86_400_000  # time zones


class _Unusable(ValueError):
    """A reason and the value, of a row that isn't used."""

    def __init__(self, reason: str, value: Any) -> None:
        super().__init__(reason)
        self.reason, self.value = reason, _text(value)


class MappedFiles(OfApp):
    """Events of tables; see ``Dataset``. ``shift_ms`` is added to every time. Of the rows from ``learned_ms``
    on ``events`` are made, of those before them ``warmup``. What comes from ``ends_ms`` on is as if the
    tables didn't have it."""

    def __init__(
        self, app: App, files: DataFiles, paths: Sequence[Path], *, now_ms: int = MAX_TIME_MS,
        scratch: Path | None = None, refuse: Refuse = lambda file, bad: None,
        progress: Progress = lambda blocks, file: blocks,
    ) -> None:  # fmt: skip
        super().__init__(app)
        self.mapping = files.interactions
        self._files, self._paths = files, list(paths)
        self._latest_ms, self._refuse, self._progress = now_ms + _AHEAD_MS, refuse, progress
        self._temporary = None if scratch else tempfile.TemporaryDirectory(prefix="rows-")
        self._scratch = scratch or Path(self._temporary.name if self._temporary else "")
        self.name, self.utc_offset_h = app.name, 0.0
        self.rows: Counter[str] = Counter()  # by kind of table
        self.kinds: Counter[str] = Counter()  # of engagement
        self.dead_letters: Counter[str] = Counter()
        self._met: dict[str, tuple[Id, int]] = {}  # items of interactions, with the first time
        self._listed: set[str] = set()  # items of tables
        self.repeats = self.unlisted = self.shift_ms = self.learned_ms = 0
        self.ends_ms = MAX_TIME_MS

    @property
    def times_ms(self) -> NDArray[np.int64]:
        """Unshifted times of all usable interactions, ascending. Reads the tables when first asked for."""
        times = self._scan[0].times
        return times[: np.searchsorted(times, self.ends_ms)]

    @property
    def out_of_order(self) -> int:
        """Number of interactions that are earlier than the one before them in their file."""
        return self._scan[0].out_of_order

    def events(self, from_ms: int | None = None, until_ms: int | None = None) -> Iterator[Event]:
        self.repeats = 0
        shift = self.shift_ms
        first = self.learned_ms if from_ms is None else from_ms - shift
        last = self.ends_ms if until_ms is None else min(self.ends_ms, until_ms - shift)
        rows, *state = self._scan
        read = (*(spill.read(0, last) for spill in state), rows.read(first, last))
        merged = heapq.merge(*read, key=itemgetter(0))
        yield from self._decoded(merged)

    def interactions(self) -> Iterator[Event]:
        """All of them, without items and users."""
        return self.rows_between(0, self.ends_ms)

    def warmup(self) -> "_Past":
        return _Past(self, self.learned_ms)

    def rows_between(self, from_ms: int, until_ms: int) -> Iterator[Event]:
        """Interactions of ``from_ms`` ≤ unshifted time < ``until_ms``."""
        yield from self._decoded(self._scan[0].read(from_ms, until_ms))

    def _decoded(self, records: Iterable[tuple[int, bytes]]) -> Iterator[Event]:
        for _, same in groupby(records, itemgetter(0)):
            payloads = [payload for _, payload in same]
            distinct = dict.fromkeys(payloads)
            self.repeats += len(payloads) - len(distinct)
            events = map(self._shifted, map(decode, distinct))
            yield from events if self.app.shown == "clicks" else as_lists(events)

    def _shifted(self, event: Event) -> Event:
        if isinstance(event, Item | User):
            age = self.app.features.age_field
            if isinstance(event, Item) and age in event.fields:
                event.fields[age] += self.shift_ms
            event.time_ms = max(0, event.time_ms + self.shift_ms) if event.time_ms else 0
        else:
            event.time_ms += self.shift_ms
        return event

    # --- the first pass ---

    @cached_property
    def _scan(self) -> "tuple[_Spill, _Spill, _Spill]":
        """Events of interactions, of items and users, and first sightings. Raises DataError if there are no
        interactions."""
        rows, state, sightings = (
            _Spill(self._scratch / f"{name}.parquet") for name in ("rows", "state", "sightings")
        )
        seen = {kind: dict[str, Path]() for kind in self._files.tables}  # columns, with a file
        for path in self._paths:
            for block in self._progress(read_blocks(path), path):
                kind = self._files.kind_of(block.columns, path.name)
                if not kind:
                    wanted = ", ".join(self._files.interactions.columns)
                    names = ", ".join(block.columns) or "none"
                    expected = f"expected the columns {wanted} (or those of items, users)"
                    raise DataError(path, f"{expected}; it has {names}")
                seen[kind] |= dict.fromkeys(block.columns, path)
                self._take(path, kind, block, rows if kind == "interactions" else state)
        self._check_columns(seen)
        # A click must not tell that its item is new; a shown list has it at once.
        after = self.app.shown == BY_CLICK
        new = [(ms + after, id_) for name, (id_, ms) in self._met.items() if name not in self._listed]
        self.unlisted = len(new) if self._listed else 0
        state.write([(ms, encode(Item(time_ms=ms, item_id=id_))) for ms, id_ in new])
        rows.close()
        state.close()
        records = self._sightings(state)
        while some := list(islice(records, _BLOCK)):
            sightings.write(some)
        sightings.close()
        if not len(rows.times):
            why = "".join(f"; {n:,} {x}" for x, n in self.dead_letters.most_common(3))
            files = ", ".join(map(str, self._paths))
            raise DataError(files, f"expected interactions; no row of the files is usable{why}")
        return rows, state, sightings

    def _sightings(self, state: "_Spill") -> Iterator[tuple[int, bytes]]:
        """Items that a table lists without a time, published anew right after their first interaction: that
        one must not tell that they are new."""
        for _, payload in state.read(0, 1):
            item = decode(payload)
            if isinstance(item, Item) and (met := self._met.get(str(item.item_id))):
                item.time_ms, item.event_id = met[1] + 1, SIGHTING
                yield item.time_ms, encode(item)

    def _check_columns(self, seen: Mapping[str, Mapping[str, Path]]) -> None:
        """Raises DataError for a column of the definition that no file of its kind has."""
        for kind, columns in seen.items():
            missing = [x for x in self._files.tables[kind].columns if x not in columns]
            if missing and columns:
                names = f"there are {', '.join(columns)}"
                expected = f"expected the column {missing[0]!r} of files.{kind}; {names}"
                raise DataError(max(columns.values()), f"{expected}: correct it in the definition")

    def _take(self, path: Path, kind: str, block: Block, spill: "_Spill") -> None:
        bad, records = list(block.bad), list[tuple[int, bytes]]()
        table = self._files.tables[kind]
        columns = {name: [None] * len(block.lines) for name in table.columns} | block.columns
        names, rows = list(columns), zip(block.lines, *columns.values(), strict=True)
        for at, (line, *cells) in enumerate(rows, self.rows[kind] + 1):
            row, faults = dict(zip(names, cells, strict=True)), list[_Unusable]()
            try:
                if isinstance(table, Interactions):
                    events = self._interaction(table, row, at, faults)
                else:
                    events = [self._entity(table, kind, row, faults)]
                for event in events:
                    payload = encode(event)
                    if len(payload) > MAX_EVENT_BYTES:
                        raise _Unusable(f"expected at most {MAX_EVENT_BYTES} bytes", len(payload))
                    records.append((event.time_ms, payload))
            except UnicodeError:
                faults.append(_Unusable("expected UTF-8: convert the file, e.g. with iconv", ""))
            except _Unusable as error:
                faults.append(error)
            bad += [
                BadRow(line, fault.reason, fault.value, _text(",".join(map(str, cells)))) for fault in faults
            ]
        self.rows[kind] += len(block.lines) + len(block.bad)
        for fault in bad:
            self.dead_letters[fault.reason] += 1
            self._refuse(path, fault)
        spill.write(records)

    def _interaction(
        self, table: Interactions, row: dict[str, Any], at: int, faults: "list[_Unusable]"
    ) -> list[Event]:
        user_id = _id(table.user, row[table.user])
        item_id = _id(table.item, row[table.item])
        now_ms = self._time(table, row) if table.time else at * _ROW_MS
        kinds, is_shown = self._kinds(table, row)
        events, request_id = list[Event](), ""
        if is_shown:
            request = row[table.request] if table.request else ""
            if isinstance(request, list | dict):
                raise _Unusable(f"{table.request}: expected one id in each row, not several", request)
            request_id = f"{request}:{user_id}:{now_ms}"[-MAX_ID_LENGTH:]
            events = [
                Impression(
                    time_ms=now_ms, request_id=request_id, user_id=user_id,
                    items=[ServedItem(item_id=item_id)], shown=self.app.shown == BY_LIST or msgspec.UNSET,
                    context=self._fields("context", table.context, table, row, faults),
                )
            ]  # fmt: skip
        for kind in kinds:
            if kind not in self.app.events:
                names = ", ".join(self.app.events)
                raise _Unusable(f"{table.kind}: expected one of {names}", kind)
            has_value = table.value and self.app.events[kind].value
            value = _field(table.value, row[table.value], _NUMBER, table) if has_value else None
            events.append(
                Engagement(
                    time_ms=now_ms, request_id=request_id, user_id=user_id, item_id=item_id, kind=kind,
                    value=msgspec.UNSET if value is None else value,
                )
            )  # fmt: skip
        self.kinds.update(kinds)
        name = str(item_id)
        if name not in self._met or now_ms < self._met[name][1]:
            self._met[name] = item_id, now_ms
        return events

    def _kinds(self, table: Interactions, row: dict[str, Any]) -> tuple[list[str], bool]:
        """The kinds of engagement of a row, and whether it is a shown item."""
        if table.labels:
            return [kind for name, kind in table.labels.items() if _flag(name, row[name])], True
        if table.kind:
            kind = "" if row[table.kind] is None else str(row[table.kind]).strip()
            name, is_shown = table.names.get(kind, kind), kind in table.shown
            return ([] if is_shown and name not in self.app.events else [name]), is_shown
        if table.rating:
            is_above = _number(table.rating, row[table.rating]) >= table.at_least
            return [table.above if is_above else table.below], False
        return [table.always], False

    def _entity(
        self, table: Entities, kind: str, row: dict[str, Any], faults: "list[_Unusable]"
    ) -> Item | User:
        """An item or a user; fields that can't be read are left out and added to ``faults``."""
        id_ = _id(table.id, row[table.id])
        now_ms = self._time(table, row) if table.time and row[table.time] else 0
        fields = self._fields(kind.removesuffix("s"), table.fields, table, row, faults)
        if kind == "items":
            self._listed.add(str(id_))
            return Item(time_ms=now_ms, item_id=id_, fields=fields)
        return User(time_ms=now_ms, user_id=id_, fields=fields)

    def _fields(
        self, owner: str, columns: Mapping[str, str], table: Table, row: dict[str, Any],
        faults: "list[_Unusable]",
    ) -> dict[str, Any]:  # fmt: skip
        """Values by field; those that can't be read are left out and added to ``faults``."""
        declared = self.app.fields.get(owner, {})
        fields = {}
        for name, column in columns.items():
            try:
                value = _field(column, row[column], declared.get(name, _CONTENT), table)
            except _Unusable as error:
                faults.append(_Unusable(f"{error.reason}; the field is left out", error.value))
                continue
            if value is not None:
                fields[name] = value
        return fields

    def _time(self, table: Table, row: dict[str, Any]) -> int:
        now_ms = _time_ms(table.time, row[table.time], table.unit)
        if not 0 <= now_ms <= self._latest_ms:
            raise _Unusable(f"{table.time}: expected 1970 to now, in {table.unit}", row[table.time])
        return now_ms


class _Past:
    """Rows before a time, and the ``viewers`` of later ones."""

    def __init__(self, files: MappedFiles, until_ms: int) -> None:
        self._files, self._until_ms = files, until_ms

    def __len__(self) -> int:
        return int(np.searchsorted(self._files.times_ms, self._until_ms))

    def __iter__(self) -> Iterator[Event]:
        return self._files.rows_between(0, self._until_ms)

    @cached_property
    def viewers(self) -> set[str]:
        later = self._files.rows_between(self._until_ms, MAX_TIME_MS)
        return {str(event.user_id) for event in later if isinstance(event, Impression | Engagement)}


class _Spill:
    """Encoded events with their times on disk. ``times``: all of them, ascending once it is closed."""

    def __init__(self, file: Path) -> None:
        self._file, self._blocks = file, list[NDArray[np.int64]]()
        self._schema = pa.schema([("time", pa.int64()), ("event", pa.binary())])
        self._writer = pq.ParquetWriter(file, self._schema)
        self.times = np.zeros(0, np.int64)
        self.out_of_order = 0

    def write(self, records: Sequence[tuple[int, bytes]]) -> None:
        if records:
            times, events = zip(*records, strict=True)
            self._blocks.append(np.array(times, np.int64))
            self._writer.write(pa.table([times, events], schema=self._schema))

    def close(self) -> None:
        self._writer.close()
        self.times = np.concatenate([self.times, *self._blocks])
        self._blocks.clear()
        self.out_of_order = int((self.times[1:] < self.times[:-1]).sum())
        self.times.sort()

    def read(self, from_ms: int, until_ms: int) -> Iterator[tuple[int, bytes]]:
        """Records with ``from_ms`` ≤ time < ``until_ms`` by time; those of one time in the order in which
        they came."""
        first, last = np.searchsorted(self.times, [from_ms, until_ms])
        bounds = [*np.unique(self.times[first:last:_RANGE]).tolist(), until_ms]
        for start, stop in pairwise(bounds):
            filters = [("time", ">=", start), ("time", "<", stop)]
            some = pq.read_table(self._file, filters=filters, pre_buffer=False).sort_by("time")
            for batch in some.to_batches(max_chunksize=_BLOCK):
                yield from zip(batch["time"].to_pylist(), batch["event"].to_pylist(), strict=True)


def as_lists(events: Iterable[Event]) -> Iterator[Event]:
    """Events of one time, where items that were shown in one request become one list."""
    lists: dict[str, Impression] = {}
    others: list[Event] = []
    for event in events:
        if not isinstance(event, Impression):
            others.append(event)
        elif event.request_id in lists:
            lists[event.request_id].items += event.items
        else:
            lists[event.request_id] = event
    yield from lists.values()
    yield from others


# --- values ---


def _text(value: Any) -> str:
    return str(value)[:200].encode(errors="replace").decode()


def _id(name: str, value: Any) -> Id:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, Decimal) and value % 1 == 0:
        return _id(name, int(value))
    text = value.strip() if isinstance(value, str) else ""
    if not 0 < len(text) <= MAX_ID_LENGTH:
        raise _Unusable(f"{name}: expected an id of 1 to {MAX_ID_LENGTH} characters", value)
    if not text.isalnum() and CONTROL_CHARACTER.search(text):
        raise _Unusable(f"{name}: expected no control characters", value)
    return text


def _number(name: str, value: Any) -> float:
    try:  # faster than ``suppress``, once a row
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < _LARGEST or isinstance(value, bool):
        raise _Unusable(f"{name}: expected a number", value)
    return number


def _flag(name: str, value: Any) -> bool:
    flag = _FLAGS.get(str(value).strip().lower().removesuffix(".0"))
    if flag is None:
        raise _Unusable(f"{name}: expected 0 or 1", value)
    return flag


def _time_ms(name: str, value: Any, unit: str) -> int:
    if unit != "iso":
        return int(_number(name, value) * _SCALE[unit])
    try:
        return int(moment_of(str(value)).timestamp() * 1000)
    except ValueError:
        raise _Unusable(f"{name}: expected a time such as 2026-01-31 12:00", value) from None


def _field(name: str, value: Any, field: Field, table: Table) -> Any:
    """A field's value by its declared kind; None for an empty cell."""
    if value is None or value == "" or value != value:
        return None
    if field.kind == "number":
        number = _number(name, value)
        return int(number) if number.is_integer() else number
    if field.kind == "time":
        return _time_ms(name, value, table.unit)
    if field.kind == "list":
        texts = (str(x).strip() for x in _values(value, table.separator) if x is not None)
        return [text for text in texts if text]
    if field.kind == "vector":
        numbers = [_number(name, x) for x in _values(value, table.separator)]
        if len(numbers) != field.length:
            raise _Unusable(f"{name}: expected {field.length} numbers", len(numbers))
        return numbers
    if field.kind == "category" and not isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        _number(name, int(value))
    return value if isinstance(value, str | int | float) else _text(value)


def _values(value: Any, separator: str) -> list[Any]:
    if (values := list_of(value)) is not None:
        return values
    return value.split(separator) if isinstance(value, str) else [value]
