"""The section ``files`` of ``app.yaml``: tables of interactions, items and users, and the meaning of columns.

``recsys init`` writes it; ``recsys import`` and ``recsys replay`` read events by it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from recsys.config.yaml_with_lines import YamlWithLines

Unit = Literal["s", "ms", "us", "ns", "iso"]


class _Section(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A mapping of the file."""


class Table(_Section, frozen=True, kw_only=True):
    """Files of one kind with the columns that all kinds have. ``files``: relative to the definition.
    ``fields``: column by field. ``separator``: between the values of a list."""

    files: list[str] = []
    time: str = ""
    unit: Unit = "iso"
    fields: dict[str, str] = {}
    separator: str = "|"
    kind_of_rows: ClassVar[str] = ""


class Interactions(Table, frozen=True, kw_only=True):
    """Files whose rows are engagements or shown items.

    A row is an engagement of the kind in ``kind`` (renamed by ``names``), or by its number in ``rating``:
    ``above`` from ``at_least`` on, else ``below``; without both, of the kind ``always``. With ``labels``,
    kinds of engagement by columns of 0 and 1, or a kind in ``shown``, it is a shown item; those with the same
    user, time and ``request`` are one list.
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

    kind_of_rows: ClassVar[str] = "interactions"

    @property
    def columns(self) -> list[str]:
        """Columns that a file must have."""
        named = (self.user, self.item, self.time, self.kind, self.rating, self.request)
        return [name for name in (*named, *self.labels) if name]


class Entities(Table, frozen=True, kw_only=True):
    """Files with an item a row."""

    id: str
    kind_of_rows: ClassVar[str] = "items"

    @property
    def columns(self) -> list[str]:
        """Columns that a file must have."""
        return [name for name in (self.id, self.time, *self.fields.values()) if name]


class Users(Entities, frozen=True, kw_only=True):
    """Files with a user a row."""

    kind_of_rows: ClassVar[str] = "users"


class DataFiles(_Section, frozen=True, kw_only=True):
    """All files of an app."""

    interactions: Interactions
    items: Entities | None = None
    users: Users | None = None

    @property
    def names(self) -> list[str]:
        """Names of all files, those of items and users first."""
        tables = (self.items, self.users, self.interactions)
        return [name for table in tables if table is not None for name in table.files]

    def table_of(self, columns: Collection[str]) -> Table | None:
        """The table that a file with these columns belongs to."""
        for table in (self.interactions, self.items, self.users):
            if table is not None and set(table.columns) <= set(columns):
                return table
        return None


def has_data_files(file: Path) -> bool:
    """Whether a definition has the section."""
    return "files" in (YamlWithLines(file.read_text("utf-8"), file).value or {})


def read_data_files(file: Path) -> DataFiles:
    """The section of a definition; raises ValueError with file, line and remedy."""
    marked = YamlWithLines(file.read_text("utf-8"), file)
    if not has_data_files(file):
        raise marked.error(
            "there is no section `files`, expected one; `recsys init FILES` writes it"
        )
    try:
        return msgspec.convert(marked.value["files"], DataFiles)
    except msgspec.ValidationError as error:
        path = str(error).partition("`$.")[2].rstrip("`").split(".")
        raise marked.error(f"files: {error}", "files", *path) from None
