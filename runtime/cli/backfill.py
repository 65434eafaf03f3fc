"""``recsys backfill FOLDER --out FOLDER``: the archived examples with the features of a wanted set.

What comes out is an archive of examples, in the same layout and schema, that offline training reads as any
other; the archive that it is made from isn't changed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from runtime.cli.audit import archive_of, config_of, features_of


def backfill(
    folder: Annotated[Path, typer.Argument(help="A state folder, or an archive.")],
    out: Annotated[
        Path, typer.Option(help="Where the examples go: a folder that isn't there yet.")
    ],
    feature_file: Annotated[
        Path | None,
        typer.Option("--features", help="The feature set that is wanted; else the folder's own."),
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", help="The first day, 2026-11-24.")] = None,
    until: Annotated[str | None, typer.Option(help="The day after the last.")] = None,
    json: Annotated[bool, typer.Option(help="As JSON, for programs.")] = False,
) -> None:
    """Fills in features that weren't logged, from raw events as of each impression. Exit status 0: examples
    were written; 2: none could be."""
    try:
        if out.exists():
            raise ValueError(f"--out is {out}, which is there: name a folder that isn't")
        counts = backfilled(folder, out, feature_file, from_, until)
    except (FileNotFoundError, ValueError) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    if json:
        typer.echo(msgspec.json.encode(counts))
    else:
        for reason, count in counts.items():
            typer.echo(f"{count:>10} {reason}")
    raise typer.Exit(0 if any(list(counts.values())[:2]) else 2)


def backfilled(
    folder: Path,
    out: Path,
    file: Path | None = None,
    first: str | None = None,
    until: str | None = None,
) -> dict[str, int]:
    """Writes the examples of some days; how many were kept, filled in, and left out by which reason."""
    from recsys.features.feature_set_file import FILE, as_file
    from recsys.process.part_process import write_atomically
    from serving.sessions.session_fold import fold_event, shown_keys
    from training.archive.backfill import Backfill
    from training.archive.files import files_of
    from training.archive.raw_events import ArchiveSource
    from training.archive.recompute import PastCounters, Folds, Recomputer, PastSessions, split_by_counter_offsets

    archive, config = archive_of(folder), config_of(folder)
    features = features_of(folder, config, file)
    source = ArchiveSource(archive)
    items, folds = source.items(features), Folds(fold_event, shown_keys)
    fill = Backfill(Recomputer(items), features)
    files = [its for its in files_of(archive, "examples") if _within(its.path, first, until)]
    places = {
        (example.partition, example.offset)
        for held in files
        for example in _examples(held.path)
        if example is not None and fill.wants(example)
    }
    wanted = [its for its in source.impressions() if (its.partition, its.offset) in places]
    users = {str(its.impression.user_id) for its in wanted}
    for shown in split_by_counter_offsets(wanted).values():
        sessions = PastSessions(items, source.events, folds, users, config.sessions.seen)
        counters = PastCounters(items, source.events, source.partitions("events"), folds)
        fill.compute(shown, sessions, counters)
    out.mkdir(parents=True)
    write_atomically(out / FILE, as_file(features))
    write_atomically(out / "log_id", source.id.encode())
    for held in files:
        _write(held.path, out / held.path.relative_to(archive), fill)
    return fill.counts


def _within(path: Path, first: str | None, until: str | None) -> bool:
    day = path.parent.parent.name.partition("=")[2]
    return (first is None or day >= first) and (until is None or day < until)


def _examples(path: Path) -> Iterator[Any]:
    """The examples of a file, None for a record that is none."""
    import pyarrow.parquet as pq

    from recsys.events.records import Example, unpack

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["type", "value"], use_threads=False):
            for kind, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield unpack(value, Example) if kind == "example" else None


def _write(path: Path, to: Path, fill: Any) -> None:
    """A file anew: places that aren't examples stay, examples that can't be filled in go."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recsys.events.records import pack
    from training.archive.files import FORMAT, beside

    with pq.ParquetFile(path) as file:
        table = file.read()
    values: list[bytes | None] = []
    for old, example in zip(table["value"].to_pylist(), _examples(path), strict=True):
        filled = None if example is None else fill.fill(example)
        if example is None or filled is example:
            values.append(old)
        else:
            values.append(None if filled is None else pack(filled))
    place, column = table.schema.get_field_index("value"), table.schema.field("value")
    filled_table = table.set_column(place, column, pa.array(values, column.type))
    with beside(to) as partial:
        pq.write_table(filled_table.filter(filled_table["value"].is_valid()), partial, **FORMAT)
