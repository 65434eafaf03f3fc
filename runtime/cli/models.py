"""``recsys models``: the candidates of a registry, what each was made from, how two differ."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

models = typer.Typer(help="Lists candidates.", no_args_is_help=True, add_completion=False)
Folder = Annotated[Path, typer.Option("--registry", help="The folder that candidates are in.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
Name = Annotated[str, typer.Argument(help="A candidate's name, as `list` gives it.")]


@models.callback()
def _models() -> None:
    """With a callback a Typer of one command still is a group."""


@models.command("list")
def list_(registry: Folder = Path("registry"), json: Json = False) -> None:
    """All candidates, the newest last; what can't be read is told in its place."""
    rows = listed(registry)
    if json:
        return _print_json(rows)
    if not rows:
        typer.echo(f"no candidates in {registry}; `recsys offline` makes one")
        return
    _print_table(
        ("candidate", "kind", "model", "learned", "examples", "epochs", "AUC", "log loss", "from"),
        [
            (
                its["name"],
                its.get("kind", ""),
                its.get("model", ""),
                its.get("learned", its.get("refused", "")),
                its.get("examples", ""),
                its.get("epochs", ""),
                its.get("auc", ""),
                its.get("log_loss", ""),
                its.get("parents", "") or its.get("teacher", ""),
            )
            for its in rows
        ],
    )


@models.command()
def show(name: Name, registry: Folder = Path("registry"), json: Json = False) -> None:
    """What a candidate was made from, and its tables. Its digests are checked."""
    with _refusals():
        shown = shown_of(registry, name)
    if json:
        return _print_json(shown)
    tables = shown.pop("tables")
    _print_table(("", ""), [(key, _text(value)) for key, value in _flat(shown).items()])
    _print_table(("table", "rows", "dim"), [(t, *its.values()) for t, its in tables.items()])


@models.command()
def diff(a: Name, b: Name, registry: Folder = Path("registry"), json: Json = False) -> None:
    """How two candidates differ: data, configuration, metrics, rows, dense parameters."""
    with _refusals():
        found = diff_of(registry, a, b)
    if json:
        return _print_json(found)
    _print_table(
        ("differs", a, b), [(name, _text(x), _text(y)) for name, (x, y) in found.fields.items()]
    )
    _print_table(
        ("table", "rows", "rows", "only first", "only second", "distance"),
        [
            (name, t.rows_a, t.rows_b, t.only_a, t.only_b, _text(t.distance))
            for name, t in found.tables.items()
        ],
    )  # fmt: skip
    typer.echo(
        "distance is the mean of |a - b| / max(|a|, |b|) over rows in both; of dense parameters: "
        f"{_text(found.dense)}"
    )


def listed(registry: Path) -> list[dict[str, Any]]:
    """A line for each candidate, by the time when it was made."""
    from training.candidates.registry import (
        Refused,
        Registry,
        describe_model,
        describe_teacher,
        iso,
    )

    its = Registry(registry)
    rows: list[tuple[int, dict[str, Any]]] = []
    for name in its.names():
        try:
            found = its.provenance(name)
        except Refused as error:
            rows.append((0, {"name": name, "refused": str(error)}))
            continue
        row: dict[str, Any] = {
            "name": name,
            "kind": found.kind,
            "model": describe_model(found),
            "learned": f"{iso(found.from_ms)} to {iso(found.until_ms)}",
            "examples": found.examples,
            "epochs": found.epochs,
            "parents": ", ".join(parent.line for parent in found.parents)
            or (found.ancestor.line if found.ancestor else ""),
        }
        if found.teacher is not None:
            row["teacher"] = describe_teacher(found.teacher)
        for metric in ("auc", "log_loss"):
            if (value := found.metrics.get(f"last_day.{metric}")) is not None:
                row[metric] = round(value, 4)
        rows.append((found.made_ms, row))
    return [row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1]["name"]))]


def shown_of(registry: Path, name: str) -> dict[str, Any]:
    """The provenance as plain values, with the snapshot's step, tables and number of dense parameters."""
    from training.candidates.registry import Registry
    from training.candidates.registry_diff import arrays_of, dense_of, rows_of

    its = Registry(registry)
    snapshot = its.snapshot(name)
    arrays = arrays_of(snapshot)
    dense = dense_of(arrays)
    shown: dict[str, Any] = msgspec.to_builtins(its.provenance(name), str_keys=True)
    shown["steps"] = snapshot.step
    shown["dense"] = 0 if dense is None else len(dense)
    shown["tables"] = {
        table: {"rows": len(keys), "dim": values.shape[1]}
        for table, (keys, values) in rows_of(arrays).items()
    }
    return shown


def diff_of(registry: Path, a: str, b: str) -> Any:
    """The ``Diff`` of two candidates."""
    from training.candidates.registry import Registry
    from training.candidates.registry_diff import arrays_of
    from training.candidates.registry_diff import diff as compared

    its = Registry(registry)
    first, second = its.snapshot(a), its.snapshot(b)
    return compared(its.provenance(a), its.provenance(b), arrays_of(first), arrays_of(second))


@contextmanager
def _refusals() -> Iterator[None]:
    from training.candidates.registry import Refused

    try:
        yield
    except Refused as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return out


def _text(value: Any) -> str:
    return (
        "not known" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    )


def _print_json(value: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def _print_table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
    typer.echo("")
