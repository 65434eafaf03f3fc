"""``recsys models``: lists the candidates of a registry, shows one, and compares two."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer import Argument

from plugins.registry_report.candidate_diff import Diff, flattened
from plugins.registry_report.candidate_list import (
    describe_candidate,
    diff_candidates,
    list_candidates,
)
from runtime.cli.common import JsonOption, RegistryOption, StateOption, exit_on
from runtime.cli.common import show as show_
from runtime.reports.tables import plain_table
from training.candidates.registry import Refused

models = typer.Typer(
    help="Lists, shows and compares candidates.", no_args_is_help=True, add_completion=False
)
Name = Annotated[str, Argument(help="A candidate's name, as `list` prints it.")]


@models.command("list")
def list_(
    state: StateOption = Path("state"), registry: RegistryOption = None, json: JsonOption = None
) -> None:
    """Lists all candidates, the newest last; unreadable ones with the reason."""
    registry = registry or state / "registry"
    show_(list_candidates(registry), json, lambda rows: _list_lines(registry, rows))


@models.command()
def show(
    name: Name,
    state: StateOption = Path("state"),
    registry: RegistryOption = None,
    json: JsonOption = None,
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
