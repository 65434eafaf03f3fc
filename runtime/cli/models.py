"""``recsys models``: lists the candidates of a registry, shows one, and compares two."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from runtime.cli.common import JsonOption, exit_on, print_json
from runtime.reports.candidate_list import describe_candidate, diff_candidates, list_candidates
from runtime.reports.tables import plain_table
from training.candidates.registry import Refused

models = typer.Typer(
    help="Lists, shows and compares candidates.", no_args_is_help=True, add_completion=False
)
Folder = Annotated[Path, Option("--registry", help="Candidate registry.")]
Name = Annotated[str, Argument(help="A candidate's name, as `list` prints it.")]


@models.callback()
def _models() -> None:
    """Makes the app a group; typer would otherwise run a single command directly."""


@models.command("list")
def list_(registry: Folder = Path("registry"), json: JsonOption = False) -> None:
    """Lists all candidates, the newest last; unreadable ones with the reason."""
    rows = list_candidates(registry)
    if json:
        return print_json(rows)
    if not rows:
        typer.echo(f"no candidates in {registry}; `recsys offline` makes one")
        return
    keys = ("name", "kind", "model", "learned", "examples", "epochs", "auc", "log_loss", "parents")
    _print_table(
        ("candidate", "kind", "model", "learned", "examples", "epochs", "AUC", "log loss", "from"),
        ([_cell(row, key) for key in keys] for row in rows),
    )


@models.command()
def show(name: Name, registry: Folder = Path("registry"), json: JsonOption = False) -> None:
    """Shows a candidate's provenance and tables, and verifies its digests."""
    with exit_on(Refused):
        values = describe_candidate(registry, name)
    if json:
        return print_json(values)
    tables = values.pop("tables")
    _print_table(("", ""), [(key, _text(value)) for key, value in _flat(values).items()])
    _print_table(("table", "rows", "dim"), [(t, *sizes.values()) for t, sizes in tables.items()])


@models.command()
def diff(a: Name, b: Name, registry: Folder = Path("registry"), json: JsonOption = False) -> None:
    """Compares two candidates: data, configuration, metrics, rows, dense parameters."""
    with exit_on(Refused):
        difference = diff_candidates(registry, a, b)
    if json:
        return print_json(difference)
    fields = [(name, _text(x), _text(y)) for name, (x, y) in difference.fields.items()]
    _print_table(("differs", a, b), fields)
    _print_table(
        ("table", "rows", "rows", "only first", "only second", "distance"),
        [
            (name, t.rows_a, t.rows_b, t.only_a, t.only_b, _text(t.distance))
            for name, t in difference.tables.items()
        ],
    )
    typer.echo(
        "distance is the mean of |a - b| / max(|a|, |b|) over rows in both; of dense parameters: "
        f"{_text(difference.dense)}"
    )


def _cell(row: dict[str, Any], key: str) -> Any:
    """The value of a column; the refusal in place of the time range, the teacher without parents."""
    value = row.get(key, "")
    fallback = {"learned": "refused", "parents": "teacher"}.get(key, "")
    return row.get(fallback, "") if value == "" else value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat |= {prefix + name: value} if nested is None else nested
    return flat


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_table(columns: tuple[str, ...], rows: Iterable[Sequence[Any]]) -> None:
    Console().print(plain_table(columns, rows, fold=columns))
    typer.echo("")
