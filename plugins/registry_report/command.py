"""``recsys models``: lists the candidates of a registry, shows one, and compares two."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table
from typer import Argument

from plugins.registry_report.candidate_diff import Diff, arrays_of, dense_of, flattened, rows_of
from plugins.registry_report.candidate_diff import diff as diff_snapshots
from runtime.cli.common import JsonOption, RegistryOption, StateOption, exit_on
from runtime.cli.common import show as show_
from runtime.reports.tables import plain_table
from training.candidates.registry import Refused, Registry, describe_model, describe_teacher, iso

models = typer.Typer(help="Lists, shows and compares candidates.", no_args_is_help=True, add_completion=False)
Name = Annotated[str, Argument(help="A candidate's name, as `list` prints it.")]


def list_candidates(folder: Path) -> list[dict[str, Any]]:
    """One row per candidate, by creation time. Unreadable ones have the reason in ``refused``."""
    registry = Registry(folder)
    rows: list[tuple[int, dict[str, Any]]] = []
    for name in registry.names():
        try:
            provenance = registry.provenance(name)
        except Refused as error:
            rows.append((0, {"name": name, "refused": str(error)}))
            continue
        row: dict[str, Any] = {
            "name": name,
            "kind": provenance.kind,
            "model": describe_model(provenance),
            "learned": f"{iso(provenance.from_ms)} to {iso(provenance.until_ms)}",
            "examples": provenance.examples,
            "epochs": provenance.epochs,
            "parents": ", ".join(parent.line for parent in provenance.parents)
            or (provenance.ancestor.line if provenance.ancestor else ""),
        }
        if provenance.teacher is not None:
            row["teacher"] = describe_teacher(provenance.teacher)
        for metric in ("auc", "log_loss"):
            if (value := provenance.metrics.get(f"last_day.{metric}")) is not None:
                row[metric] = round(value, 4)
        rows.append((provenance.made_ms, row))
    return [row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1]["name"]))]


def describe_candidate(folder: Path, name: str) -> dict[str, Any]:
    """The provenance, and the snapshot's step, tables and number of dense parameters."""
    registry = Registry(folder)
    snapshot = registry.snapshot(name)
    arrays = arrays_of(snapshot)
    dense = dense_of(arrays)
    values: dict[str, Any] = msgspec.to_builtins(registry.provenance(name), str_keys=True)
    values["steps"] = snapshot.step
    values["dense"] = 0 if dense is None else len(dense)
    values["tables"] = {
        table: {"rows": len(keys), "dim": rows_ND.shape[1]}
        for table, (keys, rows_ND) in rows_of(arrays).items()
    }
    return values


def diff_candidates(folder: Path, a: str, b: str) -> Diff:
    """Compares provenance and arrays of two candidates."""
    registry = Registry(folder)
    first, second = registry.snapshot(a), registry.snapshot(b)
    arrays = arrays_of(first), arrays_of(second)
    return diff_snapshots(registry.provenance(a), registry.provenance(b), *arrays)


@models.command("list")
def list_(
    state: StateOption = Path("state"), registry: RegistryOption = None, json: JsonOption = None
) -> None:
    """Lists all candidates, the newest last; unreadable ones with the reason."""
    registry = registry or state / "registry"
    show_(list_candidates(registry), json, lambda rows: _list_lines(registry, rows))


@models.command()
def show(
    name: Name, state: StateOption = Path("state"), registry: RegistryOption = None, json: JsonOption = None
) -> None:
    """Shows a candidate's provenance and tables, and verifies its digests."""
    with exit_on(Refused):
        values = describe_candidate(registry or state / "registry", name)
    show_(values, json, _candidate_lines)


@models.command()
def diff(
    a: Name,
    b: Name,
    state: StateOption = Path("state"),
    registry: RegistryOption = None,
    json: JsonOption = None,
) -> None:
    """Compares two candidates: data, configuration, metrics, rows, dense parameters."""
    with exit_on(Refused):
        difference = diff_candidates(registry or state / "registry", a, b)
    show_(difference, json, lambda _: _difference_lines(a, b, difference))


def _list_lines(registry: Path, rows: list[dict[str, Any]]) -> list[Any]:
    if not rows:
        return [f"no candidates in {registry}; `recsys offline` makes one"]
    keys = ("name", "kind", "model", "learned", "examples", "epochs", "auc", "log_loss", "parents")
    columns = ("candidate", *keys[1:6], "AUC", "log loss", "from")
    return [_table(columns, ([_cell(row, key) for key in keys] for row in rows)), ""]


def _candidate_lines(values: dict[str, Any]) -> list[Any]:
    tables = values.pop("tables")
    facts = [(key, _text(value)) for key, value in flattened(values).items()]
    sizes = [(table, *sizes.values()) for table, sizes in tables.items()]
    return [_table(("", ""), facts), "", _table(("table", "rows", "dim"), sizes), ""]


def _difference_lines(a: str, b: str, difference: Diff) -> list[Any]:
    fields = [(name, _text(x), _text(y)) for name, (x, y) in difference.fields.items()]
    columns = ("table", "rows", "rows", "only first", "only second", "distance")
    compared = difference.tables.items()
    tables = [(n, t.rows_a, t.rows_b, t.only_a, t.only_b, _text(t.distance)) for n, t in compared]
    about = (
        "distance is the mean of |a - b| / max(|a|, |b|) over rows in both; of dense parameters: "
        f"{_text(difference.dense)}"
    )
    return [_table(("differs", a, b), fields), "", _table(columns, tables), "", about]


def _cell(row: dict[str, Any], key: str) -> Any:
    """The value of a column; the refusal in place of the time range, the teacher without parents."""
    value = row.get(key, "")
    fallback = {"learned": "refused", "parents": "teacher"}.get(key, "")
    return row.get(fallback, "") if value == "" else value


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    return plain_table(columns, rows, fold=columns)
