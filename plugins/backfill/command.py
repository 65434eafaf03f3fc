"""``recsys backfill``: the plug-in command."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from typer import Argument, Option

from plugins.backfill.fill import Backfill
from plugins.backfill.sessions import SessionsAsOf
from plugins.feature_audit.archive_audit import archive_of, config_of, features_of, items_of
from plugins.feature_audit.audit_source import AuditSource
from plugins.feature_audit.recompute import CountersAsOf, Recomputer, split_by_counter_offsets
from recsys.events.records import Example, pack, unpack
from recsys.features.feature_set_file import FILE, encode_feature_set
from recsys.process.part_process import write_atomically
from runtime.cli.common import JsonOption, exit_on, show
from training.archive.digest import read_batches, read_table
from training.archive.files import FORMAT, beside, files_of

_ROWS: Final = 10_000  # read at once


def copy_filled(
    folder: Path, out: Path, file: Path | None = None, first: str | None = None, until: str | None = None
) -> dict[str, int]:
    """Writes an archive of examples with all features of a set, computed as of each impression.

    The new archive has the layout and schema of the old one, which isn't changed. Returns the numbers of
    examples kept, filled in, and left out by reason.
    """
    archive, config = archive_of(folder), config_of(folder)
    features = features_of(folder, config, file)
    source = AuditSource(archive)
    items = items_of(source, features)
    fill = Backfill(Recomputer(items), features)
    files = [part for part in files_of(archive, "examples") if _is_within(part.path, first, until)]
    places = {
        (example.partition, example.offset)
        for part in files
        for example in _examples(part.path)
        if example is not None and fill.wants(example)
    }
    wanted = [p for p in source.impressions() if (p.partition, p.offset) in places]
    users = {str(placed.impression.user_id) for placed in wanted}
    for placed in split_by_counter_offsets(wanted).values():
        sessions = SessionsAsOf(items, source.events, users, config.sessions.seen)
        counters = CountersAsOf(
            items, source.events, source.partitions("events"), config.bounds, config.covisits
        )
        fill.compute(placed, sessions, counters)
    out.mkdir(parents=True)
    write_atomically(out / FILE, encode_feature_set(features))
    write_atomically(out / "log_id", source.id.encode())
    for part in files:
        _write_filled(part.path, out / part.path.relative_to(archive), fill)
    return fill.counts


def _is_within(path: Path, first: str | None, until: str | None) -> bool:
    day = path.parent.parent.name.partition("=")[2]
    return (first is None or day >= first) and (until is None or day < until)


def _examples(path: Path) -> Iterator[Any]:
    """Yields the examples of a file, None for a record of another type."""
    for batch in read_batches(path, _ROWS, ["type", "value"]):
        for kind, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield unpack(value, Example) if kind == "example" else None


def _write_filled(path: Path, target: Path, fill: Any) -> None:
    """Copies a file with filled examples; drops examples that can't be filled, keeps other records."""
    table = read_table(path)
    values: list[bytes | None] = []
    for old, example in zip(table["value"].to_pylist(), _examples(path), strict=True):
        filled = None if example is None else fill.fill(example)
        if example is None or filled is example:
            values.append(old)
        else:
            values.append(None if filled is None else pack(filled))
    place, column = table.schema.get_field_index("value"), table.schema.field("value")
    table = table.set_column(place, column, pa.array(values, column.type))
    with beside(target) as partial:
        pq.write_table(table.filter(table["value"].is_valid()), partial, **FORMAT)


def backfill(
    folder: Annotated[Path, Argument(help="A state folder or an archive.")],
    out: Annotated[Path, Option(help="Folder for the examples; must not exist yet.")],
    feature_file: Annotated[
        Path | None, Option("--features", help="Wanted feature set file; by default the folder's.")
    ] = None,
    from_: Annotated[str | None, Option("--from", help="First day, e.g. 2026-11-24.")] = None,
    until: Annotated[str | None, Option(help="Day after the last one.")] = None,
    json: JsonOption = None,
) -> None:
    """Adds features that weren't logged, computed from raw events as of each impression.

    Exit status 0: examples were written; 2: none could be.
    """
    with exit_on(FileNotFoundError, ValueError):
        if out.exists():
            raise ValueError(f"--out is {out}, which exists already: name a new folder")
        counts = copy_filled(folder, out, feature_file, from_, until)
    show(counts, json, lambda counts: [f"{count:>10} {why}" for why, count in counts.items()])
    raise typer.Exit(0 if any(list(counts.values())[:2]) else 2)
