"""The section ``files`` of ``app.yaml``: tables of interactions, items and users, and the meaning of columns.

``recsys init`` writes it; ``recsys import`` and ``recsys replay`` read events by it.
"""

import ast
import re
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from os.path import basename
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from recsys.config.yaml_with_lines import YamlWithLines

Unit = Literal["s", "ms", "us", "ns", "iso"]
_DOTTED: Final = re.compile(r"^(\d\d?)\.(\d\d?)\.(\d{4})")


def moment_of(text: str) -> datetime:
    """The moment of an ISO text, or of one with a date such as 31.1.2026 or 2026/01/31, or with UTC at its
    end; UTC where it has no zone. Raises ValueError."""
    text = text.strip().removesuffix(" UTC")
    text = text.replace("/", "-", 2) if text[4:5] == "/" else text
    iso = _DOTTED.sub(lambda date: f"{date[3]}-{date[2]:0>2}-{date[1]:0>2}", text)
    moment = datetime.fromisoformat(iso)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def list_of(value: Any) -> list[Any] | None:
    """The values of a cell that has a list as JSON or Python writes it; None of another."""
    if isinstance(value, str) and value.startswith("["):
        for read in (msgspec.json.decode, ast.literal_eval):
            with suppress(
                msgspec.MsgspecError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError
            ):
                return list(read(value))
    return value if isinstance(value, list) else None


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Files of one kind with the keys that all kinds have. ``files``: relative to the definition;
    ``separator``: between the values of a list."""

    files: list[str] = []
    separator: str = "|"
    time: str = ""
    unit: Unit = "iso"


class Interactions(Table, frozen=True, kw_only=True):
    """Files whose rows are engagements or shown items.

    A row is an engagement of the kind in ``kind`` (renamed by ``names``), or by its number in ``rating``:
    ``above`` from ``at_least`` on, else ``below``; without both, of the kind ``always``. With ``labels``,
    kinds of engagement by columns of 0 and 1, or a kind in ``shown``, it is a shown item, and of a kind that
    is an event an engagement too; shown items with the same user, time and ``request`` are one list.
    ``context``: column by field, of shown items; ``value``: number of those engagements whose kind has one.
    """

    user: str
    item: str
    kind: str = ""
    names: dict[str, str] = {}
    shown: list[str] = []
    rating: str = ""
    at_least: float = 0.0
    above: str = "like"
    below: str = "rate"
    labels: dict[str, str] = {}
    request: str = ""
    always: str = "click"
    context: dict[str, str] = {}
    value: str = ""

    @property
    def columns(self) -> list[str]:
        """Columns that are read, keys first."""
        others = (self.time, self.kind, self.rating, self.request, self.value, *self.labels)
        return [self.user, self.item, *filter(None, others), *self.context.values()]


class Entities(Table, frozen=True, kw_only=True):
    """Files with an item or a user a row. ``fields``: column by field."""

    id: str
    fields: dict[str, str] = {}

    @property
    def columns(self) -> list[str]:
        """Columns that are read, keys first."""
        return [self.id, *filter(None, (self.time, *self.fields.values()))]


class DataFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All tables of an app."""

    interactions: Interactions
    items: Entities | None = None
    users: Entities | None = None

    @property
    def tables(self) -> dict[str, Interactions | Entities]:
        """Tables by kind, in the order in which they are read."""
        by_kind = {"items": self.items, "users": self.users, "interactions": self.interactions}
        return {kind: table for kind, table in by_kind.items() if table is not None}

    @property
    def names(self) -> list[str]:
        """Names of all files."""
        return [name for table in self.tables.values() for name in table.files]

    def kind_of(self, columns: Collection[str], name: str = "") -> str:
        """The kind of a file: that with its name, else with its keys and most of its columns; empty if none
        fits."""
        kinds = {kind: set(table.columns) & set(columns) for kind, table in self.tables.items()}
        fit = [
            (name in map(basename, table.files), has_keys, len(kinds[kind]), kind)
            for kind, table in self.tables.items()
            for has_keys in [{*table.columns[: 1 + (kind == "interactions")]} <= kinds[kind]]
        ]
        return max((x for x in fit if x[0] or x[1]), default=("",))[-1]


def has_data_files(file: Path) -> bool:
    """Whether a definition has the section."""
    return "files" in (YamlWithLines(file.read_text("utf-8"), file).value or {})


def read_data_files(file: Path) -> DataFiles:
    """The section of a definition; raises ValueError with file, line and remedy."""
    marked = YamlWithLines(file.read_text("utf-8"), file)
    if not has_data_files(file):
        raise marked.error("there is no section `files`, expected one; `recsys init FILES` writes it")
    try:
        return msgspec.convert(marked.value["files"], DataFiles)
    except msgspec.ValidationError as error:
        path = str(error).partition("`$.")[2].rstrip("`").split(".")
        tables = {"interactions": Interactions, "items": Entities, "users": Entities}
        keys = ", ".join(tables.get(path[0], DataFiles).__struct_fields__)
        raise marked.error(
            f"files: {error}; the keys here are {keys}: see docs/reference/app.md", "files", *path
        ) from None
