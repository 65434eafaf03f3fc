"""Tables on a terminal, in the one style that all commands use."""

from collections.abc import Container, Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def plain_table(
    columns: Iterable[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    right: Container[str] = (),
    fold: Container[str] = (),
) -> Table:
    """Builds a table without borders. ``right``: right-aligned columns; ``fold``: columns that wrap. No text
    is markup. The first column holds names, which are never cut: other commands take them."""
    names, rows = list(columns), list(rows)
    longest = max((len(row[0]) for row in rows if isinstance(row[0], str)), default=0)
    table = Table(
        title=title, box=None, pad_edge=False, header_style="bold", title_justify="left",
        show_header=any(names),
    )  # fmt: skip
    for place, name in enumerate(names):
        table.add_column(
            name,
            justify="right" if name in right else "left",
            overflow="fold" if name in fold else "ellipsis",
            min_width=None if place else longest,
            no_wrap=not place,  # else Rich narrows it with the others, and cuts these
        )
    for row in rows:
        table.add_row(*(c if hasattr(c, "__rich_console__") else Text(str(c)) for c in row))
    return table


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many there are more."""
    more = [f"{len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])
